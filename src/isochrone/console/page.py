"""Page: an entry of the list of pages, and Visit: what a page is built with."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
from starlette.requests import Request

from isochrone.console.api import Api
from isochrone.core.tenancy.authorise import Action, CallerRole

Group = Literal["Cloud", "Operate", "Book", "Use", "You"]


class Me(msgspec.Struct, frozen=True):
    """Who is signed in, as GET /me says."""

    id: str
    role: CallerRole
    org_id: str | None
    organisation: str | None
    name: str | None
    login: str | None
    is_given: bool
    rights: tuple[Action, ...]

    def may(self, action: Action) -> bool:
        return action in self.rights


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One person who opened one page: who it is, control with their session, and the query of the
    address."""

    me: Me
    api: Api
    query: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`build` puts the page into the frame. `roles` see it in the menu and may open it; `needs` are
    the rights without which it would be empty, which a test compares with the roles. Control
    decides each call all the same."""

    path: str
    title: str
    icon: str
    group: Group
    roles: tuple[CallerRole, ...]
    needs: tuple[Action, ...]
    build: Callable[[Visit], Awaitable[None]]


def theme_of(request: Request) -> str | None:
    """The colours that its viewer chose, None for what the system says."""
    said = request.cookies.get("isochrone-theme")
    return said if said in ("dark", "light") else None
