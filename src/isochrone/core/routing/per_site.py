"""What boards and choices hold of all sites at once, apart from what is told of them: records of
decisions are read where nothing else needs numpy, which takes as long to import as all the rest."""

from typing import Any

import numpy as np

Milliseconds = np.ndarray[tuple[Any, ...], np.dtype[np.float32]]  # one a site
