"""What two gateways say to each other about a continuation: the kin of a replica, as headers.

A serving gateway names the kin of the replica that answers. An ingress that continues names the kin
that it needs; the serving gateway then takes a replica of that kin or refuses.
"""

from collections.abc import Mapping
from urllib.parse import quote, unquote

from isochrone.core.continuation.kin import EngineFamily, Kin

REVISION = "x-isochrone-revision"
ENGINE = "x-isochrone-engine"

MOST_REVISION_BYTES = 512
_FAMILIES: dict[str, EngineFamily] = {
    family: family for family in ("llamacpp", "vllm", "unknown")
}


def kin_headers(kin: Kin) -> list[tuple[str, str]]:
    """Headers that name a kin; without a revision only the engine is named."""
    headers: list[tuple[str, str]] = [(ENGINE, kin.engine)]
    if kin.revision is not None:
        headers.append((REVISION, quote(kin.revision, safe=":@+")))
    return headers


def parse_kin(headers: Mapping[bytes, bytes]) -> Kin | None:
    """The kin that headers name; None when they name none, or not one that is known here."""
    family = _FAMILIES.get(headers.get(ENGINE.encode(), b"").decode("latin-1"))
    if family is None:
        return None
    revision = headers.get(REVISION.encode())
    if revision is not None and len(revision) > MOST_REVISION_BYTES:
        return None
    known = None if not revision else unquote(revision.decode("latin-1"))
    return Kin(engine=family, revision=known)
