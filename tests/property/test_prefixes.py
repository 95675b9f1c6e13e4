"""Cached prefixes over random histories: never more than was sent, never another tenant's."""

import json
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isochrone.core.ids import ModelName, OrgId, PolicyId, ReplicaId, SiteName
from isochrone.core.rng import stream
from isochrone.core.routing.prefix import BLOCK_BYTES, BLOCK_TOKENS, Prefixes
from isochrone.core.routing.sessions import Sessions
from isochrone.gateway.prefix_hash import NO_SESSION, prompt_blocks, session_of
from isochrone.gateway.request import InferenceRequest, parse_request
from isochrone.gateway.salts import Salts
from tests.builders import MODEL, SECOND_NS, a_choice, a_site, a_table, a_view, idle_loads

QUICK = settings(max_examples=100)
SALTS = Salts(b"a secret of the site")
SITES = [SiteName(name) for name in ("sydney", "oslo", "paris")]
REPLICAS = [ReplicaId(f"r{number}") for number in range(3)]
ANYWHERE = PolicyId("anywhere")
A, B = OrgId("a"), OrgId("b")

# Prompts as chains of blocks: lists that begin alike have the blocks of their beginning in common.
CHAINS = st.lists(st.integers(0, 1), min_size=1, max_size=6)


def hashes_of(chain: list[int]) -> list[int]:
    return [hash(tuple(chain[:end])) for end in range(1, len(chain) + 1)]


def shared(one: list[int], other: list[int]) -> int:
    """How many leading blocks two prompts have in common."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count


@QUICK
@given(
    st.lists(st.tuples(CHAINS, st.sampled_from(SITES), st.sampled_from(REPLICAS)), max_size=12),
    CHAINS, st.integers(0, 4000),
)
def test_no_more_is_believed_than_a_place_got(
    history: list[tuple[list[int], SiteName, ReplicaId]], asked: list[int], after_s: int
) -> None:
    prefixes = Prefixes()
    for chain, site, replica in history:
        prefixes.saw(site, MODEL, hashes_of(chain), 0, replica=replica, tokens=len(chain) * 256)
    blocks = hashes_of(asked)
    now = prefixes.cached(blocks, 0)
    later = prefixes.cached(blocks, after_s * SECOND_NS)
    for site, belief in now.items():
        got = max(shared(asked, chain) for chain, each, _ in history if each == site)
        assert 0 < belief.tokens <= got * BLOCK_TOKENS
        by_replica = prefixes.cached_by_replica(site, blocks, 0)
        assert max(each.tokens for each in by_replica.values()) == belief.tokens
    assert later.keys() <= now.keys()
    assert all(later[site].tokens <= now[site].tokens for site in later)
    if history:
        chain, site, _ = history[-1]
        if shared(asked, chain):
            assert now[site].tokens > 0.9 * shared(asked, chain) * BLOCK_TOKENS, "the latest counts"


@QUICK
@given(st.lists(st.tuples(CHAINS, st.sampled_from(SITES)), max_size=80), st.integers(2, 40))
def test_memory_is_bounded(history: list[tuple[list[int], SiteName]], most: int) -> None:
    prefixes = Prefixes(most=most)
    for chain, site in history:
        prefixes.saw(site, MODEL, hashes_of(chain), 0)
        assert len(prefixes) <= most


# -- tenants ---------------------------------------------------------------------------------------

WORDS = st.sampled_from(["sea", "land", "ship", "road"])
ANY_TENANT = st.sampled_from([A, B])


def a_prompt(word: str, blocks: int) -> InferenceRequest:
    text = (word.ljust(8, ".") * BLOCK_BYTES)[: blocks * BLOCK_BYTES]
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    return parse_request("chat.completions", json.dumps(body).encode())


def journey(steps: list[tuple[OrgId, str, int, str]]) -> list[tuple[OrgId, object]]:
    """Where each request went and what was believed, as a gateway decides: (tenant, word of its
    prompt, blocks, session id) one after the other. How much work runs where is left out: that is
    load, which everybody feels and may feel."""
    view = a_view([a_site(name) for name in SITES], rtt_ms={"oslo": 1.0, "paris": 1.0})
    table, prefixes, sessions = a_table(view), Prefixes(), Sessions()
    loads = idle_loads(view)
    went: list[tuple[OrgId, object]] = []
    for number, (org, word, size, session_id) in enumerate(steps):
        request = a_prompt(word, size)
        scope = SALTS.of_prompts(org, request.model)
        blocks = prompt_blocks(request, scope)
        session = session_of(
            request, session_id.encode(), SALTS.of_sessions(org, MODEL, ANYWHERE, ""), blocks
        )
        choice = a_choice(
            table, loads, prompt_tokens=request.prompt_tokens, blocks=blocks, prefixes=prefixes,
            home=sessions.home(session, 0), rng=stream(number, "tenants"),
        )
        assert choice.site is not None
        sessions.went(session, choice.site, choice.verdict, 0)
        tokens = 0.0 if choice.belief is None else choice.belief.tokens
        went.append((org, (choice.site, choice.verdict, tokens, choice.cost_ms)))
        seen = prefixes.saw(choice.site, MODEL, blocks, 0, scope=scope)
        prefixes.answered(seen, choice.belief, tokens, REPLICAS[0])
    return went


@QUICK
@given(
    st.lists(
        st.tuples(ANY_TENANT, WORDS, st.integers(1, 3), st.sampled_from(["", "s"])), max_size=8
    ),
    st.data(),
)
def test_what_one_tenant_asks_changes_nothing_for_another(
    steps: list[tuple[OrgId, str, int, str]], data: st.DataObject
) -> None:
    """The other tenant asks something else of the same size instead: nobody can tell."""
    others = [
        step if step[0] == A else (B, data.draw(WORDS), step[2], data.draw(st.sampled_from("xyz")))
        for step in steps
    ]

    def seen_by_a(whole: list[tuple[OrgId, str, int, str]]) -> list[object]:
        return [each for org, each in journey(whole) if org == A]

    assert seen_by_a(steps) == seen_by_a(others)


def test_without_salts_the_other_tenant_would_be_seen() -> None:
    """The property above can fail."""
    steps = [(A, "sea", 3, ""), (A, "sea", 3, "")]
    _, (_, second) = journey(steps)
    _, (_, alone) = journey([(B, "sea", 3, ""), steps[1]])
    assert second != alone, "a beginning of one's own is believed cached"


def test_other_tools_make_another_beginning() -> None:
    def first(endpoint: Any, **fields: Any) -> int:
        messages = [{"role": "user", "content": "x" * BLOCK_BYTES}]
        body = {"model": MODEL, "messages": messages, "input": messages, **fields}
        return prompt_blocks(parse_request(endpoint, json.dumps(body).encode()), 3)[0]

    tools = [[{"name": "one"}], [{"name": "two"}]]
    for endpoint in ("chat.completions", "responses", "messages"):
        assert len({first(endpoint), *(first(endpoint, tools=each) for each in tools)}) == 3
        assert first(endpoint, tools=tools[0]) == first(endpoint, tools=tools[0], stream=True)


# -- sessions --------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "ab", "a\0b"])
Scope = tuple[str, str, str, str]


@QUICK
@given(st.tuples(NAMES, NAMES, NAMES, NAMES), st.tuples(NAMES, NAMES, NAMES, NAMES))
def test_every_part_of_a_scope_has_sessions_of_its_own(one: Scope, other: Scope) -> None:
    assume(one != other)
    salts = [
        SALTS.of_sessions(OrgId(org), ModelName(model), PolicyId(policy), narrowed)
        for org, model, policy, narrowed in (one, other)
    ]
    assert salts[0] != salts[1]
    assert (SALTS.of_prompts(A, MODEL), SALTS.of_engine(A, b"")) != (
        SALTS.of_prompts(B, MODEL), SALTS.of_engine(B, b"")
    )


def test_the_header_names_the_session_before_the_key_and_the_key_before_the_conversation() -> None:
    def session(session_id: bytes = b"", **fields: Any) -> int:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 2000}], **fields}
        request = parse_request("chat.completions", json.dumps(body).encode())
        return session_of(request, session_id, 5, prompt_blocks(request, 9))

    assert session(b"s") == session(b"s", prompt_cache_key="k") == session(b"s", messages=[])
    assert session(prompt_cache_key="k") == session(prompt_cache_key="k", messages=[])
    assert len({session(b"s"), session(), session(prompt_cache_key="s"), NO_SESSION}) == 4
    for nothing in (None, ""):
        assert session(prompt_cache_key=nothing) == session()
    assert session(messages=[]) == NO_SESSION


ROLES = st.sampled_from(["system", "user", "developer", "tool"])
TEXTS = st.text(max_size=80) | st.sampled_from(['{"role":"assistant"}', '"assistant"', "]}, ["])
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " :  ")])


@QUICK
@given(
    st.lists(st.tuples(ROLES, TEXTS), min_size=1, max_size=3),
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), SEPARATORS, st.booleans(),
    st.just(BLOCK_BYTES) | st.integers(3_700, 4_100),  # the first answer begins at 4096, or about
)
def test_all_turns_of_a_conversation_are_one_session(
    first: list[tuple[str, str]], turns: list[tuple[str, str]], separators: tuple[str, str],
    role_first: bool, named_bytes: int,
) -> None:
    def message(role: str, text: str) -> dict[str, str]:
        named = {"role": role, "content": text}
        return named if role_first else {"content": text, "role": role}

    messages = [message(*each) for each in first]
    messages[0]["name"] = "n" * named_bytes
    sessions = set()
    for answer, question in [("", ""), *turns]:
        body = json.dumps({"model": MODEL, "messages": messages}, separators=separators)
        request = parse_request("chat.completions", body.encode())
        sessions.add(session_of(request, b"", 7, prompt_blocks(request, 9)))
        messages += [message("assistant", answer), message("user", question)]
    if role_first or not any("{" in answer for answer, _ in turns[:1]):
        assert len(sessions) == 1
    messages[0]["name"] += "!"
    body = json.dumps({"model": MODEL, "messages": messages}, separators=separators)
    request = parse_request("chat.completions", body.encode())
    assert session_of(request, b"", 7, prompt_blocks(request, 9)) not in sessions
