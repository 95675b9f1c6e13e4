"""The bodies that the Control API takes. Unknown fields are refused; instants are wall ns UTC."""

from typing import Annotated
from unicodedata import category

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints


def _plain(text: str) -> str:
    """Names are printed on terminals, where an escape sequence would be obeyed, and the book cannot
    hold a NUL."""
    if any(category(each) == "Cc" for each in text):
        raise ValueError("must not have control characters, such as line breaks")
    return text


Plain = AfterValidator(_plain)
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), Plain
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=400), Plain]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=100), Plain]


class Body(BaseModel):
    """A request body."""

    model_config = ConfigDict(extra="forbid", frozen=True)
