"""A session's home: what it may cost, when it moves, when it is forgotten."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from isochrone.core.ids import SiteName
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.routing.bond import HomeVerdict
from isochrone.core.routing.choice import Refused, Rule
from isochrone.core.routing.chosen import Choice
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.patience import patience_ms
from isochrone.core.routing.prefix import BLOCK_TOKENS, Prefixes
from isochrone.core.routing.sessions import (
    FORGOTTEN_NS,
    HOLD_NS,
    MOST_LIMIT_MS,
    Home,
    Sessions,
    judge,
    limit_ms,
)
from isochrone.core.world.view import View
from isochrone.gateway.affinity import Affinity
from isochrone.gateway.context import Context
from isochrone.gateway.tries import Tries
from tests.builders import (
    MODEL,
    SECOND_NS,
    a_choice,
    a_digest,
    a_load,
    a_policy,
    a_site,
    a_table,
    a_view,
)

SYDNEY, OSLO, PARIS = SiteName("sydney"), SiteName("oslo"), SiteName("paris")
INF = float("inf")


# -- the rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved_ms", "limit"), [(0, 3), (2, 3), (400, 400), (9_000, MOST_LIMIT_MS)]
)
def test_a_home_may_cost_what_a_move_throws_away(saved_ms: float, limit: float) -> None:
    assert limit_ms(3, saved_ms, is_held=False) == limit
    assert limit_ms(3, saved_ms, is_held=True) == MOST_LIMIT_MS


def test_what_counts_as_equal_is_never_a_reason_to_move() -> None:
    for is_held in (False, True):
        assert limit_ms(5_000, 0, is_held=is_held) == 5_000


@pytest.mark.parametrize(
    ("home_ms", "moved_s_ago", "verdict"),
    [
        (100, 1000, "kept"), (500, 1000, "kept"), (501, 1000, "moved"), (INF, 1000, "gone"),
        (501, 29, "kept"), (100 + MOST_LIMIT_MS, 29, "kept"), (101 + MOST_LIMIT_MS, 29, "overflow"),
        (501, 30, "moved"), (INF, 1, "gone"),
    ],
)
def test_the_verdict(home_ms: float, moved_s_ago: int, verdict: HomeVerdict) -> None:
    now_ns = 5_000 * SECOND_NS
    home = Home(SYDNEY, now_ns - moved_s_ago * SECOND_NS, now_ns)
    limit = limit_ms(3, 400, is_held=home.is_held(now_ns))
    assert judge(home, home_ms, 100, limit, now_ns) == verdict


@pytest.mark.parametrize(
    ("moved_s_ago", "used_s_ago", "verdict"),
    [(1000, 10, "moved"), (30, 10, "moved"), (29, 10, "overflow"), (1, 0, "overflow"),
     (0, 0, "gone"), (2, 2, "gone")],
)
def test_a_queue_that_sends_a_request_back_is_cost(
    moved_s_ago: int, used_s_ago: int, verdict: HomeVerdict
) -> None:
    now_ns = 5_000 * SECOND_NS
    moved_ns, used_ns = now_ns - moved_s_ago * SECOND_NS, now_ns - used_s_ago * SECOND_NS
    home = Home(SYDNEY, moved_ns, used_ns)
    limit = limit_ms(3, 400, is_held=home.is_held(now_ns))
    assert judge(home, INF, 100, limit, now_ns, is_full=True) == verdict
    assert judge(home, INF, 100, limit, now_ns) == "gone"


# -- the memory ------------------------------------------------------------------------------------


def site_of(sessions: Sessions, session: int, now_ns: int) -> SiteName | None:
    home = sessions.home(session, now_ns)
    return None if home is None else home.site


def test_only_a_move_changes_the_home() -> None:
    sessions = Sessions()
    sessions.went(1, SYDNEY, "new", 0)
    home = sessions.home(1, 0)
    assert home is not None
    assert not home.is_held(0), "nobody moved yet"
    sessions.went(1, SYDNEY, "kept", 1)
    sessions.went(1, OSLO, "overflow", 2)
    assert site_of(sessions, 1, 2) == SYDNEY
    sessions.went(1, OSLO, "moved", 3)
    assert site_of(sessions, 1, 3) == OSLO
    sessions.went(1, PARIS, "gone", 4)
    assert site_of(sessions, 1, 4) == PARIS
    home = sessions.home(1, 4)
    assert home is not None
    assert [home.is_held(at_ns) for at_ns in (4, 3 + HOLD_NS, 4 + HOLD_NS)] == [True, True, False]
    assert site_of(sessions, 2, 4) is None


def test_a_session_that_is_not_heard_of_is_forgotten() -> None:
    sessions = Sessions()
    sessions.went(1, SYDNEY, "new", 0)
    sessions.went(1, SYDNEY, "kept", 10)
    assert site_of(sessions, 1, FORGOTTEN_NS) == SYDNEY
    assert site_of(sessions, 1, FORGOTTEN_NS + 10) is None
    sessions.went(1, OSLO, "new", FORGOTTEN_NS + 10)
    home = sessions.home(1, FORGOTTEN_NS + 10)
    assert home is not None
    assert (home.site, home.is_held(FORGOTTEN_NS + 10)) == (OSLO, False)


def test_sessions_are_bounded_and_those_in_use_stay() -> None:
    sessions = Sessions(most=100)
    for number in range(5_000):
        sessions.went(1, SYDNEY, "kept", number)
        sessions.went(number + 2, OSLO, "new", number)
        assert len(sessions) <= 100
    assert site_of(sessions, 1, 5_000) == SYDNEY
    assert site_of(sessions, 2, 5_000) is None
    assert site_of(sessions, 5_001, 5_000) == OSLO


# -- in a choice -----------------------------------------------------------------------------------

BLOCKS = list(range(1, 9))  # 2,048 tokens


def world() -> View:
    return a_view(
        [a_site("sydney"), a_site("oslo", "NO"), a_site("paris", "FR")],
        rtt_ms={"oslo": 20.0, "paris": 300.0}, policies=[a_policy("fr", ("FR",))],
    )


def loads_of(busy: dict[str, int] | None = None, now_ns: int = 0) -> Loads:
    """Prompt tokens that wait at each site; every replica prefills 1,000 tokens/s."""
    loads = Loads()
    for name in ("sydney", "oslo", "paris"):
        loads.heard(a_digest(name, a_load(prompt_tokens=(busy or {}).get(name, 0))), now_ns)
    return loads


def chosen(
    loads: Loads, home: Home | None, prefixes: Prefixes | None = None, **changes: Any
) -> tuple[str | None, str, float]:
    choice: Choice = a_choice(
        a_table(world()), loads, prompt_tokens=len(BLOCKS) * BLOCK_TOKENS, blocks=BLOCKS,
        prefixes=prefixes, home=home, **changes,
    )
    return choice.site, choice.verdict, round(choice.limit_ms, 3)


def at_home(site: SiteName) -> Home:
    return Home(site, -HOLD_NS, 0)


def test_worked_example() -> None:
    """docs/sessions.md, worked example: five turns of a conversation."""
    prefixes, sessions = Prefixes(), Sessions()

    def turn(at_s: int, blocks: int, busy: dict[str, int]) -> tuple[str | None, str, int]:
        now_ns = at_s * SECOND_NS
        choice = a_choice(
            a_table(world()), loads_of(busy, now_ns), prompt_tokens=blocks * BLOCK_TOKENS,
            blocks=BLOCKS[:blocks], prefixes=prefixes, home=sessions.home(7, now_ns),
            now_ns=now_ns,
        )
        assert choice.site is not None
        sessions.went(7, choice.site, choice.verdict, now_ns)
        prefixes.saw(choice.site, MODEL, BLOCKS[:blocks], now_ns)
        return choice.site, choice.verdict, round(choice.limit_ms)

    assert turn(0, 2, {}) == ("sydney", "none", 0)
    assert turn(10, 3, {"sydney": 900}) == ("sydney", "kept", 506)
    assert turn(20, 4, {"sydney": 2_000}) == ("oslo", "moved", 759)
    assert turn(30, 5, {"oslo": 1_500}) == ("oslo", "kept", 2_000)
    assert turn(60, 6, {"oslo": 2_500}) == ("sydney", "moved", 1_236)


def test_a_session_stays_though_another_site_is_a_little_sooner() -> None:
    prefixes = Prefixes()
    prefixes.saw(OSLO, MODEL, BLOCKS, 0)
    assert chosen(loads_of({"oslo": 2_100}), at_home(OSLO), prefixes) == ("oslo", "kept", 2_000)
    assert chosen(loads_of({"oslo": 2_100}), None, prefixes) == ("sydney", "none", 0)
    assert chosen(loads_of({"oslo": 4_100}), at_home(OSLO), prefixes)[:2] == ("sydney", "moved")


def test_without_a_cached_beginning_only_equals_are_kept() -> None:
    assert chosen(loads_of(), at_home(OSLO)) == ("oslo", "kept", 102.4)  # 5 % of 2,048 ms
    assert chosen(loads_of({"oslo": 100}), at_home(OSLO))[:2] == ("sydney", "moved")


def test_a_home_outside_what_is_allowed_is_never_used() -> None:
    prefixes = Prefixes()
    prefixes.saw(OSLO, MODEL, BLOCKS, 0)
    bound = chosen(loads_of(), at_home(OSLO), prefixes, policy_id="fr")
    assert bound[:2] == ("paris", "gone")
    narrowed = chosen(loads_of(), at_home(OSLO), prefixes, narrowing=Narrowing(residency=("FR",)))
    assert narrowed[:2] == ("paris", "gone")
    assert chosen(loads_of(), at_home(SiteName("atlantis")))[1] == "gone"


def sent_back(site: SiteName, rule: Rule = "saturated") -> Refused:
    return Refused(site=site, rule=rule, detail="busy, 1 s")


def test_a_home_that_is_too_busy_has_not_failed() -> None:
    now_ns = HOLD_NS - 1
    held, calm = Home(OSLO, 0, 1), at_home(OSLO)
    loads = loads_of(now_ns=now_ns)

    def verdict(home: Home, *tried: Refused, policy_id: str = "anywhere") -> str:
        return chosen(loads, home, now_ns=now_ns, tried=tried, policy_id=policy_id)[1]

    assert verdict(held, sent_back(OSLO)) == "overflow"
    assert verdict(calm, sent_back(OSLO)) == "moved"
    assert verdict(held, sent_back(PARIS)) == "kept"
    assert verdict(held, sent_back(OSLO, "unreachable")) == "gone"
    assert verdict(held, sent_back(OSLO), sent_back(OSLO, "no_ready_replica")) == "gone"
    assert verdict(held, sent_back(OSLO), policy_id="fr") == "gone", "it is not allowed any more"


def test_a_request_that_is_kept_at_home_may_wait_for_what_the_home_is_worth() -> None:
    """docs/sessions.md, worked example, at 10 s; docs/spill.md, patience."""
    prefixes, now_ns = Prefixes(), 10 * SECOND_NS
    prefixes.saw(SYDNEY, MODEL, BLOCKS[:2], 0)

    def choice_of(home: Home | None, waiting: int) -> Choice:
        return a_choice(
            a_table(world()), loads_of({"sydney": waiting}, now_ns), prompt_tokens=3 * BLOCK_TOKENS,
            blocks=BLOCKS[:3], prefixes=prefixes, home=home, now_ns=now_ns,
        )

    kept = choice_of(at_home(SYDNEY), 900)
    assert (kept.site, kept.verdict, kept.queue_ms) == ("sydney", "kept", 900.0)
    spared_ms = 788.0 - kept.prefill_ms  # Oslo, which is next, and what is read anew here
    assert patience_ms(kept, "on_demand", 1) == pytest.approx((spared_ms + 506.1) * 1.1 + 60, 1e-3)
    assert patience_ms(kept, "on_demand", 1) > kept.queue_ms
    without = choice_of(None, 100)
    assert (without.site, without.verdict) == ("sydney", "none")
    assert patience_ms(without, "on_demand", 1) == pytest.approx(spared_ms * 1.1 + 60, 1e-3)


def test_sites_that_are_busy_in_turns_do_not_send_a_session_to_and_fro() -> None:
    """As the gateway does: who waits too long where it is sent is sent back, and goes on."""
    prefixes, sessions, table = Prefixes(), Sessions(), a_table(world())
    moves: list[SiteName] = []
    for turn in range(12):
        now_ns = (1 + 2 * turn) * SECOND_NS
        busy = {"sydney": 700} if turn % 2 else {"oslo": 700}
        loads, tried = loads_of(busy, now_ns), list[Refused]()
        while True:
            home = sessions.home(7, now_ns)
            choice = a_choice(
                table, loads, prompt_tokens=100, prefixes=prefixes, home=home, tried=tried,
                now_ns=now_ns, target_ms=0.0,
            )
            site = choice.site
            assert site is not None
            sessions.went(7, site, "new" if home is None else choice.verdict, now_ns)
            if len(tried) == 2 or busy.get(site, 0) == 0:
                break
            tried.append(sent_back(site))
            now_ns += 40_000_000
        now = sessions.home(7, now_ns)
        assert now is not None
        if not moves or moves[-1] != now.site:
            moves.append(now.site)
    assert moves == ["sydney", "oslo"]


def test_nobody_is_chosen_where_nobody_can() -> None:
    choice = a_choice(a_table(world()), Loads(), home=at_home(OSLO))
    assert (choice.site, choice.verdict) == (None, "none")


# -- what is told of it ----------------------------------------------------------------------------


class _Told:
    """A request of session 7 of whose tries all but the last fail, and what its record says."""

    def __init__(self, sessions: Sessions, prefixes: Prefixes, now_ns: int = 0) -> None:
        request = SimpleNamespace(
            model=MODEL, prompt_tokens=len(BLOCKS) * BLOCK_TOKENS, output_tokens=1, choices=1
        )
        self.affinity = Affinity(cast(Tries, SimpleNamespace(request=request)), BLOCKS, 7, 0)
        self.context = cast(Context, SimpleNamespace(sessions=sessions))
        self.prefixes, self.now_ns = prefixes, now_ns
        self.tried: list[Refused] = []

    def goes(self, busy: dict[str, int] | None = None) -> str:
        home = self.affinity.find_home(self.context, self.now_ns)
        choice = a_choice(
            a_table(world()), loads_of(busy, self.now_ns), blocks=BLOCKS, prefixes=self.prefixes,
            prompt_tokens=len(BLOCKS) * BLOCK_TOKENS, home=home, tried=self.tried,
            now_ns=self.now_ns,
        )
        self.affinity.chosen(self.context, choice, self.now_ns)
        assert choice.site is not None
        self.tried.append(sent_back(choice.site, "unreachable"))
        return choice.site

    @property
    def said(self) -> tuple[str, str | None, int]:
        bond = self.affinity.bond()
        return bond.verdict, bond.home, round(bond.limit_ms)


def test_a_session_that_had_no_home_leaves_none_when_its_first_try_fails() -> None:
    sessions = Sessions()
    told = _Told(sessions, Prefixes())
    assert told.goes() == "sydney"
    assert told.said == ("new", None, 0)
    assert told.goes() == "oslo"
    assert told.said == ("new", None, 0), "and not that it leaves Sydney, where it never was"
    assert site_of(sessions, 7, 0) == OSLO


def test_of_the_homes_that_a_request_leaves_its_record_names_the_one_that_was() -> None:
    sessions, prefixes = Sessions(), Prefixes()
    sessions.went(7, OSLO, "new", 0)
    told = _Told(sessions, prefixes)
    assert told.goes({"oslo": 5_000}) == "sydney"
    moved = told.said
    assert moved[:2] == ("moved", "oslo")
    assert told.goes({"oslo": 5_000}) == "paris"
    assert told.said == moved, "Oslo was left for its queue, and nothing was at Sydney"
    assert site_of(sessions, 7, 0) == PARIS


def test_a_home_that_fails_a_request_that_it_was_to_keep_is_gone() -> None:
    sessions, prefixes = Sessions(), Prefixes()
    sessions.went(7, OSLO, "new", 0)
    prefixes.saw(OSLO, MODEL, BLOCKS, 0)
    told = _Told(sessions, prefixes)
    assert told.goes() == "oslo"
    assert told.said[:2] == ("kept", "oslo")
    assert told.goes() == "sydney"
    assert told.said[:2] == ("gone", "oslo")
