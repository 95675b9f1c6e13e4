"""Pages of a list: `?limit=&after=` in, `{"items": [...], "next": cursor or null}` out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel

from isochrone.ports.tenants import Page

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)

MOST = 1000
USUAL = 100


class Listed(BaseModel, Generic[S]):
    """One page; `next` is what `after` wants for the following page, null on the last one."""

    items: list[S]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """The page that the caller asked for."""

    limit: int
    after: str | None

    @property
    def page(self) -> Page:
        """One row more than asked for tells whether there is a next page."""
        return Page(most=self.limit + 1, after=self.after)

    def listed(
        self, rows: Sequence[T], shape: Callable[[T], S], cursor: Callable[[T], str]
    ) -> Listed[S]:
        """Cut the rows of `page` to size and name the next page."""
        shown = rows[: self.limit]
        return Listed(
            items=[shape(row) for row in shown],
            next=cursor(shown[-1]) if len(rows) > self.limit else None,
        )


def paging(
    limit: Annotated[int, Query(ge=1, le=MOST)] = USUAL,
    after: Annotated[str | None, Query(max_length=300)] = None,
) -> Paging:
    """The dependency that reads `limit` and `after`."""
    return Paging(limit=limit, after=after)
