"""Least squares of relative errors, without coefficients below zero."""

from collections.abc import Sequence

import numpy as np


def least_squares(
    rows: Sequence[Sequence[float]], values: Sequence[float], scale: Sequence[float] | None = None
) -> list[float]:
    """Coefficients >= 0 with the least squares of errors over `scale` (the values themselves)."""
    weights = 1.0 / np.array(values if scale is None else scale)
    matrix, target = np.array(rows) * weights[:, None], np.array(values) * weights
    used = list(range(matrix.shape[1]))
    while True:
        found = np.linalg.lstsq(matrix[:, used], target, rcond=None)[0]
        if (found >= 0).all():
            break
        del used[int(found.argmin())]
    whole = [0.0] * matrix.shape[1]
    for place, value in zip(used, found.tolist(), strict=True):
        whole[place] = value
    return whole
