"""Sources of requests: the rate that was asked for, the same for one seed, flat memory."""

import tracemalloc
from collections.abc import Iterator
from itertools import islice, pairwise, takewhile
from statistics import mean, pstdev

import numpy as np
import pytest

from isochrone.core.errors import InvalidInput
from isochrone.twin.workloads.asks import Ask, all_mixed, mixed
from isochrone.twin.workloads.coding_sessions import coding_asks, parse_sessions
from isochrone.twin.workloads.fitted import (
    Family,
    Fitted,
    Lengths,
    Window,
    fitted_asks,
    parse_client_rates,
    parse_length_histogram,
    parse_length_percentiles,
    parse_rate_curve,
)
from isochrone.twin.workloads.placing import Mix, placed
from isochrone.twin.workloads.recorded import Recorded, RecordedRow, recorded_asks
from isochrone.twin.world.demand import Demand

SHORT = Lengths(shares=(0.0, 1.0), tokens=(100.0, 100.0))
TRACE = Recorded(block_tokens=512, rows=tuple(
    RecordedRow(
        at_s=each * 0.5, prompt_tokens=1_300, output_tokens=10, blocks=(0, each // 2 + 1, 90 + each)
    )
    for each in range(40)
))
SESSION = (
    '{"block_size":64,"tool_tokens":512,"system_tokens":0,"requests":['
    '{"t":0,"in":1024,"out":5,"keep":0,"new":[[1,16]]},'
    '{"t":10,"in":1536,"out":5,"keep":16,"new":[[17,8]]},'
    '{"t":99999,"in":1600,"out":5,"keep":12,"new":[[40,13]]}]}'
)
FLAT = Demand(
    share=np.array([0.5, 0.3, 0.2]), ahead_s=np.zeros(3), start_s=0.0, flat=True
)


def until(asks: Iterator[Ask], end_s: float) -> list[Ask]:
    return list(takewhile(lambda ask: ask.at_s < end_s, asks))


def a_fit(*, spread: float = 1.0, clients: int = 1) -> Fitted:
    return Fitted(
        clients=tuple(
            (
                Window(start_s=0, end_s=600, rate_rps=1.0, family="Gamma", spread=spread),
                Window(start_s=600, end_s=1200, rate_rps=3.0, family="Gamma", spread=spread),
            )
            for _ in range(clients)
        ),
        period_s=1200.0, prompt=SHORT, output=SHORT,
    )


@pytest.mark.parametrize("rate_rps", [0.7, 2.0, 33.0])
def test_a_trace_comes_at_any_rate_and_its_copies_share_one_block(rate_rps: float) -> None:
    asks = until(recorded_asks(TRACE, rate_rps, 1), 300.0)
    assert len(asks) == pytest.approx(300 * rate_rps, rel=0.05)
    assert [ask.at_s for ask in asks] == sorted(ask.at_s for ask in asks)
    assert len({ask.blocks[0] for ask in asks}) == 1
    # Two rows of a copy are one conversation and have the same second block; nobody else has it.
    holders: dict[int, set[int]] = {}
    for ask in asks:
        holders.setdefault(ask.blocks[2], set()).add(ask.group)
    assert all(len(groups) == 1 for groups in holders.values())
    assert asks == until(recorded_asks(TRACE, rate_rps, 1), 300.0)
    assert asks != until(recorded_asks(TRACE, rate_rps, 2), 300.0)


def test_coarse_blocks_are_cut_to_those_of_the_twin() -> None:
    ask = next(recorded_asks(TRACE, 2.0, 1))
    assert len(ask.blocks) == 1_300 // 256


def test_coding_sessions_grow_and_share_their_tools_only() -> None:
    sessions = parse_sessions(SESSION, "x")
    asks = until(coding_asks(sessions, 0.5, 3), 20_000.0)
    assert len(asks) == pytest.approx(10_000, rel=0.1)
    turns: dict[int, list[Ask]] = {}
    for ask in asks:
        turns.setdefault(ask.session, []).append(ask)
    whole = [each for each in turns.values() if len(each) == 3]
    first, second, third = whole[0]
    assert [len(ask.blocks) for ask in whole[0]] == [4, 6, 6]
    assert second.blocks[:4] == first.blocks
    assert third.blocks[:3] == first.blocks[:3]
    assert third.blocks[3] != first.blocks[3]
    assert third.at_s - second.at_s == pytest.approx(1_800.0)  # a long pause is cut
    other = whole[1][0]
    assert other.blocks[:2] == first.blocks[:2]  # 512 tokens of tools
    assert not set(other.blocks[2:]) & set(first.blocks[2:])


def test_sessions_are_under_way_at_the_start() -> None:
    sessions = parse_sessions(SESSION, "x")
    asks = until(coding_asks(sessions, 0.5, 3), 1_000.0)
    assert len(asks) == pytest.approx(500, rel=0.2)
    assert any(len(ask.blocks) == 6 for ask in asks[:50])


def test_bad_sessions_are_all_told() -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_sessions('{"block_size":64}\n' + SESSION.replace("64,", "60,", 1), "x")
    assert [each.split(":")[0] for each in raised.value.problems] == ["x, line 1", "x, line 2"]
    for good, bad in (('"t":10', '"t":1e300'), ('"keep":16', '"keep":-1'),
                      ("[17,8]", "[17,1000000000000]"), ("[17,8]", "[17,-8]")):
        with pytest.raises(InvalidInput, match="line 1: expected t in s, and counts of blocks"):
            parse_sessions(SESSION.replace(good, bad), "x")


def test_a_fit_follows_its_windows_and_its_spread() -> None:
    asks = until(fitted_asks(a_fit(), 4.0, 1), 12_000.0)
    assert len(asks) == pytest.approx(48_000, rel=0.03)
    slow = sum(ask.at_s % 1200 < 600 for ask in asks)
    assert slow == pytest.approx(len(asks) / 4, rel=0.05)
    for spread in (0.5, 1.0, 3.0):
        fit = Fitted(clients=((
            Window(start_s=0, end_s=600, rate_rps=1.0, family="Gamma", spread=spread),
        ),), period_s=600.0, prompt=SHORT, output=SHORT)
        times = [ask.at_s for ask in islice(fitted_asks(fit, 1.0, 2), 20_000)]
        steps = [after - before for before, after in pairwise(times)]
        assert pstdev(steps) / mean(steps) == pytest.approx(spread, rel=0.08)


@pytest.mark.parametrize(("family", "spread"), [("Gamma", 8.0), ("Weibull", 0.4), ("Gamma", 0.2)])
def test_a_fit_has_its_rate_from_the_first_second_on(family: Family, spread: float) -> None:
    """However much the times between a client's requests differ."""
    fit = Fitted(clients=((
        Window(start_s=0, end_s=600, rate_rps=1.0, family=family, spread=spread),
    ),), period_s=600.0, prompt=SHORT, output=SHORT)
    counts = [len(until(fitted_asks(fit, 1.0, seed), 50.0)) for seed in range(2_000)]
    assert mean(counts) == pytest.approx(50.0, abs=4 * pstdev(counts) / 2_000**0.5)
    assert 4 * pstdev(counts) / 2_000**0.5 < 6.0, "or it would show nothing"


def test_lengths_come_at_their_quantiles() -> None:
    lengths = Lengths(shares=(0.0, 0.5, 1.0), tokens=(10.0, 100.0, 1_000.0))
    assert [lengths.at(share) for share in (0.0, 0.25, 0.5, 0.999999)] == [10, 32, 100, 1_000]
    table = parse_length_percentiles("field,percentile,tokens\nx,10,5\nx,90,50\n", "t")["x"]
    assert (table.at(0.05), table.at(0.1), table.at(0.95)) == (5, 5, 50)
    bins = parse_length_histogram("field,bin_lo,requests\nx,4,1\nx,8,3\n", "t")["x"]
    assert (bins.at(0.0), bins.at(0.25), bins.at(1.0)) == (4, 8, 16)


def test_the_tables_of_fits_tell_all_their_problems() -> None:
    head = "client,window_s,rate_rps,cv,dist,p1\n"
    clients, period_s = parse_client_rates(head + "0,0,1,2,Gamma,9\n1,600,2,9,Weibull,0.5\n", "r")
    assert period_s == 1200.0
    assert [each[0].spread for each in clients] == [2.0, 0.5]
    with pytest.raises(InvalidInput) as raised:
        parse_client_rates(head + "0,0,0,2,Gamma,9\n0,0,1,x,Gamma,9\n0,0,1,1,Pareto,1\n", "r")
    assert len(raised.value.problems) == 3
    windows, whole_s = parse_rate_curve("t_s,inv_per_min\n0,60\n60,0\n120,120\n", "w")
    assert [window.rate_rps for window in windows] == [1.0, 2.0]
    assert whole_s == 180.0


def test_a_conversation_keeps_its_place_and_quiet_hours_are_quiet() -> None:
    night = Demand(share=np.array([1.0]), ahead_s=np.zeros(1), start_s=2 * 3600.0)
    noon = Demand(share=np.array([1.0]), ahead_s=np.zeros(1), start_s=10.5 * 3600.0)

    def count(demand: Demand) -> int:
        return sum(len(chunk) for chunk in placed(
            lambda rate, seed: fitted_asks(a_fit(), rate, seed), demand, Mix(),
            rate_rps=5.0, length_s=1200.0, seed=1,
        ))

    assert count(noon) > 6 * count(night)
    rows = [row for chunk in placed(
        lambda rate, seed: recorded_asks(TRACE, rate, seed), FLAT,
        Mix(tenants=(0.75, 0.25), classes=(0.2, 0.5, 0.3)),
        rate_rps=40.0, length_s=200.0, seed=1,
    ) for row in chunk.rows()]
    shares = np.bincount([row.ingress for row in rows]) / len(rows)
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.05)
    assert sum(row.tenant for row in rows) / len(rows) == pytest.approx(0.25, abs=0.05)
    assert np.bincount([row.class_ for row in rows]) / len(rows) == pytest.approx(
        [0.2, 0.5, 0.3], abs=0.05
    )
    where: dict[int, set[tuple[int, int, int]]] = {}
    for row in rows:
        where.setdefault(row.blocks[2], set()).add((row.ingress, row.tenant, row.class_))
    assert all(len(each) == 1 for each in where.values())
    # Tenants share nothing, not even what every request of the trace begins with.
    assert len({row.blocks[0] for row in rows}) == 2


def test_memory_does_not_grow_with_the_length() -> None:
    def most_bytes(length_s: float) -> int:
        tracemalloc.start()
        for _ in placed(
            lambda rate, seed: fitted_asks(a_fit(clients=4), rate, seed), FLAT, Mix(),
            rate_rps=200.0, length_s=length_s, seed=1,
        ):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert most_bytes(120.0) < 1.2 * most_bytes(30.0)


def test_mixing_one_by_one_and_all_at_once_is_the_same() -> None:
    values = np.array([0, 1, 2**63, 2**64 - 1], dtype=np.uint64)
    assert all_mixed(values).tolist() == [mixed(each) for each in values.tolist()]
