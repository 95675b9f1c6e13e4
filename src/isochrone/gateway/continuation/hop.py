"""What two gateways say to each other about a continuation: the kin of a replica, as headers.

A serving gateway names the kin of the replica that answers. An ingress that continues names the kin
that it needs; the serving gateway then takes a replica of that kin or refuses.
"""

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote, unquote

from isochrone.core.continuation.kin import EngineFamily, Kin

REVISION = "x-isochrone-revision"
ENGINE = "x-isochrone-engine"

MOST_REVISION_BYTES = 512
_ENGINE, _REVISION = ENGINE.encode(), REVISION.encode()
_FAMILIES: dict[str, EngineFamily] = {
    family: family for family in ("llamacpp", "vllm", "unknown")
}


@lru_cache(maxsize=1024)
def kin_lines(kin: Kin) -> str:
    """Lines of a head that name a kin; without a revision only the engine is named."""
    lines = f"{ENGINE}: {kin.engine}\r\n"
    if kin.revision is not None:
        lines += f"{REVISION}: {quote(kin.revision, safe=':@+')}\r\n"
    return lines


def parse_kin(headers: Mapping[bytes, bytes]) -> Kin | None:
    """The kin that headers name; None when they name none, or not one that is known here."""
    family = _FAMILIES.get(headers.get(_ENGINE, b"").decode("latin-1"))
    if family is None:
        return None
    revision = headers.get(_REVISION)
    if revision is not None and len(revision) > MOST_REVISION_BYTES:
        return None
    known = None if not revision else unquote(revision.decode("latin-1"))
    return Kin(engine=family, revision=known)
