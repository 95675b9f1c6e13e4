"""Probes of sites that were lost: one that fails keeps its site out, whatever else is heard."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import cast

import pytest

from isochrone.core.ids import SiteName
from isochrone.core.routing.loads import Loads, SiteLoad
from isochrone.gateway import site_probes
from isochrone.gateway.context import Context
from isochrone.gateway.process import TICK_S
from isochrone.gateway.site_probes import SiteProbes
from isochrone.gateway.target import Target
from tests.builders import MODEL, SECOND_NS, a_digest, a_site, a_table, a_view

NEAR = SiteName("near")


class Probed:
    """A gateway that knows one other site, which was lost at 1 s; `during` happens while it is
    probed, which fails if it returns False."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns, self.sequence = SECOND_NS, 1
        self.during: Callable[[], bool] = lambda: True
        self.loads = Loads()
        self.hear()
        self.loads.health.answered(NEAR, MODEL, "org", self.now_ns)
        self.loads.lost(NEAR, self.now_ns)
        self.counts = {"answered": 0, "failed": 0}
        self._due: list[Coroutine[object, object, None]] = []
        table = a_table(a_view(
            [a_site("ingress"), a_site("near")], rtt_ms={"near": 5.0}, serving=["near"],
        ))
        context = SimpleNamespace(
            loads=self.loads, site=SiteName("ingress"), view=SimpleNamespace(table=table),
            clock=SimpleNamespace(monotonic_ns=lambda: self.now_ns), spawn=self._due.append,
            site_probes=self.counts,
        )
        self._probes = SiteProbes(cast(Context, context))
        monkeypatch.setattr(self._probes, "_target", lambda site: cast(Target, site))
        monkeypatch.setattr(site_probes, "_ask", self._ask)

    @property
    def load(self) -> SiteLoad:
        load = self.loads.of(NEAR)
        assert load is not None
        return load

    def is_lost(self) -> bool:
        return self.load.unreachable

    def hear(self) -> None:
        self.sequence += 1
        self.loads.heard(a_digest("near", sequence=self.sequence), self.now_ns)

    def sweep(self) -> int:
        """How many probes began; they are over."""
        self._probes.sweep(self.now_ns)
        begun = len(self._due)
        while self._due:
            asyncio.run(self._due.pop())
        return begun

    async def _ask(self, context: Context, target: Target) -> None:
        if not self.during():
            raise TimeoutError


def test_a_probe_that_fails_after_a_digest_has_ended_the_loss_begins_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed = Probed(monkeypatch)

    def hang() -> bool:
        probed.now_ns += 2 * SECOND_NS
        probed.hear()
        assert not probed.is_lost()
        probed.now_ns += SECOND_NS // 4
        return False

    probed.during = hang
    assert probed.sweep() == 1
    assert probed.is_lost()
    assert probed.load.hold_ns == 4 * SECOND_NS
    assert probed.load.lost_ns == probed.now_ns


def test_a_probe_has_failed_before_the_hold_ends() -> None:
    assert site_probes.AHEAD_NS >= (site_probes.TIMEOUT_S + TICK_S) * SECOND_NS


def test_without_a_bus_an_answered_probe_ends_a_loss_as_a_digest_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed = Probed(monkeypatch)
    probed.loads.deaf(probed.now_ns)
    assert probed.sweep() == 1
    assert probed.is_lost()  # its hold lasts
    probed.now_ns += 2 * SECOND_NS
    assert probed.sweep() == 1
    assert not probed.is_lost()
    health = probed.loads.health.of(NEAR, MODEL)
    assert health is not None
    assert health.state == "recovering"
    for _ in range(60):
        probed.now_ns += SECOND_NS
        probed.loads.health.sweep(probed.now_ns)
        assert probed.sweep() == 0


def test_while_digests_arrive_an_answered_probe_does_not_end_a_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed = Probed(monkeypatch)
    probed.now_ns += 3 * SECOND_NS
    assert probed.sweep() == 1
    assert probed.counts == {"answered": 1, "failed": 0}
    assert probed.is_lost()


def test_a_loss_that_is_seen_long_after_the_last_one_begins_with_a_short_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed = Probed(monkeypatch)
    probed.now_ns += 63 * SECOND_NS
    probed.during = lambda: False
    assert probed.sweep() == 1
    assert probed.load.hold_ns == 2 * SECOND_NS
