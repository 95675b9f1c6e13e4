"""The bodies that the Control API takes. Unknown fields are refused; instants are wall ns UTC."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=400)]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class Body(BaseModel):
    """A request body."""

    model_config = ConfigDict(extra="forbid", frozen=True)
