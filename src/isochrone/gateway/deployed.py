"""What a gateway reads of the view's entry of a deployment."""

from collections.abc import Iterable, Mapping

import msgspec

from isochrone.core.admission.classes import CLASSES
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.routing.choice import Refused
from isochrone.core.world.site_policy import SitePolicy
from isochrone.core.world.tenant import Class

Closed = Mapping[tuple[Class, ModelName], tuple[Refused, ...]]


class Deployed(msgspec.Struct, frozen=True):
    """The part of a deployment that matters here: that `site` serves `model`, with no `replicas`
    where an operator stopped it, and how classes share its slots there."""

    site: str
    model: str
    replicas: int = 1
    admission: SitePolicy | None = None


def closed_sites(deployed: Iterable[Deployed]) -> Closed:
    """The sites that take nothing of a class, by class and model: its ceiling there is 0."""
    found: dict[tuple[Class, ModelName], list[Refused]] = {}
    for each in deployed:
        if each.admission is None:
            continue
        for class_, rule in zip(CLASSES, each.admission.rules(), strict=True):
            if rule.ceiling == 0:
                detail = f"class_closed: {class_} is not taken"
                shut = Refused(site=SiteName(each.site), rule="saturated", detail=detail)
                found.setdefault((class_, ModelName(each.model)), []).append(shut)
    return {key: tuple(shut) for key, shut in found.items()}
