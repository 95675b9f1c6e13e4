"""`isochrone explain`: why a request ran where it ran, readable by an auditor."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud, part
from isochrone.core.metering.words import REPORTERS, SOURCES
from isochrone.core.residency.rule import UNBOUND
from isochrone.core.routing.choice import Stopped
from isochrone.core.routing.words import BECAUSE, HOMES, UNPAID, words_of_bounds, words_of_stop

BAR_WIDTH = 48

BODIES = {
    "read": "the body was not understood",
    "in_part": "the body was not read to its end",
    "unread": "the body was not read",
}


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Example: `isochrone explain 019aa1b2-...`, the id of the answer's header "
        "x-isochrone-request"
    )(explain)


def explain(
    request_id: Annotated[str, typer.Argument(help="Id from x-isochrone-request or `usage`.")],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain one request: where it entered, which sites were considered, what each would have
    cost, which were refused by which rule, and what was used."""
    from isochrone.cli.show import print_json

    found = find_cloud(state, url, key).api.get(f"requests/{part(request_id)}")
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    """All of it as text."""
    for line in summary(found):
        print(line)
    decision = found["decision"]
    if decision is None:
        print(f"\n{undecided(found)}")
    else:
        _print_decision(decision)
    print("\nTime (ms since the request was received)")
    for line in timings(found["timings"], decision, stream=found["stream"]):
        print(f"  {line}")


def summary(found: Mapping[str, Any]) -> list[str]:
    """Who, what, where, how much: one line each."""
    from isochrone.cli.show import instant

    ingress, serving, tokens = found["ingress"], found["serving"], found["tokens"]
    decision = found["decision"]
    served = "served nowhere"
    if serving["site"] is not None:
        served = f"{serving['site']} ({serving['country'] or 'no country'}), " + (
            f"replica {serving['replica'] or 'unknown'}"
        )
    counts = (
        f"{tokens['input_uncached']} input uncached, {tokens['input_cached']} input cached, "
        f"{tokens['output']} output"
    )
    lines = [
        ("request", found["id"]),
        ("asked", _asked(found)),
        ("received", f"{instant(found['received_at'])} UTC, key {found['key_id']}"),
        ("outcome", _outcome(found)),
        ("entered", f"{ingress['site']} ({ingress['country'] or 'no country'}): "
         f"{ingress['plaintext']}"),
        ("served", served),
    ]
    lines += [("class", said) for said in class_lines(found.get("classes"))]
    lines += [("stopped", words_of_stop(Stopped(**each))) for each in found.get("stops", ())]
    if found["revision"]:
        lines.append(("weights", found["revision"]))
    if decision is not None:
        lines.append(("policy", policy_line(decision)))
        lines += ground_lines(decision)
        lines += bond_lines(decision)
    lines += [
        ("tokens", f"{counts}; {SOURCES[tokens['source']]}"),
        ("record", REPORTERS[found["reporter"]]),
    ]
    if found.get("price") is not None:
        price = found["price"]
        lines.append(("price", f"{price['amount']} {price['currency']} by itself"))
    return [f"{name:<10}{text}" for name, text in lines]


def class_lines(classes: Mapping[str, Any] | None) -> list[str]:
    """How a request came to be served in another class than the one that it asked for."""
    if classes is None:
        return []
    wanted, allowed, because = classes["wanted"], classes["allowed"], classes["because"]
    lines = []
    if allowed != wanted:
        lines.append(f"{wanted} was asked for, which the key does not have; it has {allowed}")
    if because is not None:
        known: Mapping[str, str] = {str(name): said for name, said in UNPAID.items()}
        why = known.get(because, because)
        lines.append(f"{classes['served']} instead of {allowed}: {why}")
    return lines


def ground_lines(decision: Mapping[str, Any]) -> list[tuple[str, str]]:
    """By which version of which policy it was chosen."""
    if "ground" not in decision:
        return []
    said = f"{decision['ground']}: digest of policy {decision['policy_id']}, sites and round trips"
    return [("ground", said)]


def policy_line(decision: Mapping[str, Any]) -> str:
    """What bound the request: the policy's axes, and what its own headers narrowed."""
    return words_of_bounds(
        decision["residency"], decision["transit"], decision.get("caches") or (),
        *(decision.get(each, UNBOUND) for each in ("logs", "narrowed", "narrowed_transit")),
    )


def bond_lines(decision: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What bound the request to a site beside its cost: a cached beginning, and a session."""
    bond = decision.get("bond")
    if bond is None:
        return []
    lines = [(
        "prefix", f"{bond['cached_tokens']} of about {bond['prompt_tokens']} prompt tokens were "
        "believed to be cached there",
    )]
    said = HOMES[bond["verdict"]]
    if said:
        lines.append(("session", said.format(home=bond["home"], limit=bond["limit_ms"])))
    return lines


def undecided(found: Mapping[str, Any]) -> str:
    """Why there is no decision to show."""
    if found["ingress"]["body"] == "unread":
        return f"No site was considered: rule {found['reason']} refused the request at its ingress."
    if found["timings"]["chosen_ms"] is not None:
        return "A site was chosen, but what it was chosen from has not been reported."
    return "No decision was recorded: the request ended before a site was chosen."


def _asked(found: Mapping[str, Any]) -> str:
    """What was asked, as far as it is known: model and stream are said in the body."""
    if not found["model"] and found["reason"] == "model_not_found":
        return f"{found['endpoint']} of a model that nobody serves, whose name was not kept"
    if not found["model"]:
        return f"{found['endpoint']}; {BODIES[found['ingress']['body']]}"
    stream = "streamed" if found["stream"] else "not streamed"
    classes = found.get("classes")
    wanted = found["class"] if classes is None else classes["wanted"]
    return f"{found['endpoint']} of {found['model']}, {stream}, class {wanted}"


def _outcome(found: Mapping[str, Any]) -> str:
    if found["ingress"]["body"] == "unread":
        return f"refused by rule {found['reason']}, status {found['status']}"
    reason = f", {found['reason']}" if found["reason"] else ""
    return f"{found['outcome']}, status {found['status']}{reason}"


def timings(
    times: Mapping[str, Any], decision: Mapping[str, Any] | None, *, stream: bool = True
) -> list[str]:
    """A bar per step, to scale; steps that were not reached are left out."""
    total = max(times["total_ms"], 0.001)
    steps = [
        ("chosen", times["chosen_ms"]),
        ("sent", times["sent_ms"]),
        ("first byte", times["first_byte_ms"]),
        ("end", times["total_ms"]),
    ]
    lines, before = [], 0.0
    for name, at in steps:
        if at is None:
            continue
        start = round(BAR_WIDTH * before / total)
        length = max(1, round(BAR_WIDTH * at / total) - start)
        bar = (" " * min(start, BAR_WIDTH - 1) + "█" * length)[:BAR_WIDTH]
        lines.append(f"{name:<11}{at:>10.1f}  {bar:<{BAR_WIDTH}}  +{max(at - before, 0):.1f}")
        before = at
    if decision is not None:
        lines += predictions(decision) if stream else _whole(decision)
    if decision is not None and decision.get("queued_ms"):
        lines.append(f"of this {decision['queued_ms']:.1f} waiting for its turn at an engine")
    return lines


def predictions(decision: Mapping[str, Any]) -> list[str]:
    """First tokens as expected and as they came, at each site where a stream was; each counts from
    when its site was chosen."""
    lines = [_prediction(each, f" at {each['site']}") for each in decision.get("foretold", ())]
    if decision["predicted_ttft_ms"] is not None:
        where = f" at {decision['candidates'][0]['site']}" if decision.get("since_ms") else ""
        lines.append(_prediction(decision, where))
    return lines


def _whole(decision: Mapping[str, Any]) -> list[str]:
    expected_ms = decision["predicted_ttft_ms"]
    return [] if expected_ms is None else [
        f"first token expected after {expected_ms:.1f}; an answer that comes whole does not show it"
    ]


def _prediction(told: Mapping[str, Any], where: str) -> str:
    since_ms = told.get("since_ms", 0.0)
    chosen = f", chosen at {since_ms:.1f}," if since_ms else ""
    later = " more" if since_ms else ""
    expected, actual = told["predicted_ttft_ms"], told["actual_ttft_ms"]
    seen = "not reached" if actual is None else f"{actual:.1f}{off(expected, actual)}"
    return f"first token{where}{chosen} expected after {expected:.1f}{later}, was {seen}"


def off(expected_ms: float, actual_ms: float) -> str:
    """How far a prediction was off."""
    if expected_ms <= 0:
        return ""
    share = (actual_ms - expected_ms) / expected_ms
    return f" ({abs(share):.0%} {'later' if share > 0 else 'sooner'})"


def others(decision: Mapping[str, Any]) -> list[str]:
    """Of a choice that was kept in brief, what is known of the other sites and how to see more."""
    if decision.get("is_full", True):
        return []
    eligible, next_best = decision["eligible"], decision["runner_up"]
    if next_best is None:
        return ["It was the only site that could serve it."]
    return [
        f"It was chosen from {eligible} sites that could serve it. The next best was "
        f"{next_best['site']}, expected after {next_best['cost_ms']:.1f}.",
        "What the others would have cost was not recorded: of requests to which nothing unusual "
        "happened, that is kept of a sample.",
        "A request with the header `x-isochrone-explain: full` has all of it recorded.",
    ]


def _print_decision(decision: Mapping[str, Any]) -> None:
    from isochrone.cli.rules import meanings
    from isochrone.cli.show import print_table

    brief = others(decision)
    print(
        "\nThe chosen site (ms)" if brief
        else "\nSites that could serve it, soonest first (ms; the first was chosen)"
    )
    if decision.get("because"):
        print(f"Chosen: {BECAUSE[decision['because']]}.")
    print_table(
        ("", "site", "expected", "round trip", "round trip is", "transfer", "queue", "prefill",
         "decode", "digest age"),
        [
            (
                "→" if number == 0 else "", one["site"], one["cost_ms"], one["rtt_ms"],
                one["rtt_source"], one.get("transfer_ms", 0.0), one["queue_ms"], one["prefill_ms"],
                one["decode_ms"], one["digest_age_ms"],
            )
            for number, one in enumerate(decision["candidates"])
        ],
        empty="  none: an allowed site exists, but none was healthy"
        if decision["allowed_exists"]
        else "  none: no site that serves the model is allowed",
    )
    if brief:
        print("\n".join(brief), end="\n\n")
    titles = (("Sites refused", "refused"), ("Tries that failed before, in order", "tried"))
    for title, listed in titles:
        if decision[listed]:
            print(title)
            print_table(
                ("site", "rule", "fact"),
                [(one["site"], one["rule"], one["detail"]) for one in decision[listed]],
            )
    rules = meanings([*decision["refused"], *decision["tried"]])
    if rules:
        print("Rules")
        print_table(("rule", "meaning"), rules)
