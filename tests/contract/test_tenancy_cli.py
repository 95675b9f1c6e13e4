"""`isochrone org | project | member | key | audit` against a real Control API on loopback."""

import asyncio
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isochrone.adapters.network.web import UvicornServer, listen
from isochrone.cli.app import run
from isochrone.cli.terms import duration_s
from isochrone.core.errors import InvalidInput
from tests.contract.test_control_api import ADMIN, Api, api  # noqa: F401
from tests.contract.test_money_api import use_too_much

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def url(api: Api) -> Iterator[str]:  # noqa: F811
    """Where the API listens."""
    listener = listen("the API", "127.0.0.1", 0)
    server = UvicornServer(api.client.app, listener)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    yield "http://{}:{}".format(*server.address)
    server.stop()
    thread.join(timeout=30)
    assert not thread.is_alive()
    listener.close()


@pytest.fixture
def cli(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Cli:
    """Runs one command; exit code, output, complaints."""

    def call(*words: str, key: str = ADMIN) -> tuple[int, str, str]:
        place = () if "--help" in words else ("--url", url, "--key", key)
        monkeypatch.setattr(sys, "argv", ["isochrone", *words, *place])
        code = run()
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def ok(answer: tuple[int, str, str]) -> Any:
    code, output, complaint = answer
    assert code == 0, complaint
    return json.loads(output)


def test_an_organisation_from_its_making_to_the_erasure_of_its_member(cli: Cli) -> None:
    org = ok(cli("org", "create", "acme", "--json"))["id"]
    owner = ok(cli("member", "add", "Ada", "--role", "owner", "--org", org, "--json"))
    ada = owner["key"]
    project = ok(cli("project", "create", "chatbot", "--json", key=ada))["id"]
    assert cli("project", "rename", project, "assistant", key=ada)[1] == f"{project}  assistant\n"
    made = ok(cli("key", "create", "--project", project, "--scopes", "chat,usage", "--expires",
                  "2031-01-01T00:00:00Z", "--json", key=ada))
    assert made["key"].startswith("iso_")
    code, text, _ = cli("key", "rotate", made["id"], "--overlap", "2h", key=ada)
    assert code == 0
    assert f"replaces  {made['id']}   (works for another 2h)" in text
    assert "until     20" in text
    (old, new) = sorted(ok(cli("keys", "list", "--json", key=ada)), key=lambda row: row["id"])
    assert (new["replaces"], old["id"], new["scopes"]) == (old["id"], made["id"], ["chat", "usage"])
    charles = ok(cli("member", "add", "Charles", "--role", "billing", "--email",
                     "c@acme.example", "--json", key=ada))
    assert cli("member", "role", charles["id"], "auditor", key=ada)[0] == 0
    fresh = ok(cli("member", "rotate", charles["id"], "--overlap", "0", "--json", key=ada))
    assert cli("audit", key=charles["key"])[0] == 1
    assert "key" in cli("audit", "--kind", "key", key=fresh["key"])[1]
    assert "c@acme.example" in cli("member", key=ada)[1]
    assert cli("org", "erase-person", charles["id"], "--yes", key=ada)[1] == (
        f"erased {charles['id']}\n"
    )
    assert "acme.example" not in cli("member", key=ada)[1]
    other = ok(cli("member", "add", "robot", "--role", "developer", "--service", "--json", key=ada))
    assert cli("member", "remove", other["id"], key=ada)[1] == f"removed {other['id']}\n"
    assert "retains 30 days" in cli("org", "change", org, "--retain-days", "30", key=ada)[1]
    assert "retain_days: 90 -> 30" in cli("audit", "--kind", "organisation", key=ada)[1]
    assert [row["id"] for row in ok(cli("org", "--json", key=ada))] == [org]
    assert [row["id"] for row in ok(cli("project", "list", "--json", key=ada))] == [project]
    closed = cli("project", "close", project, "--yes", key=ada)[1]
    assert closed == f"{project}  assistant  closed\n"
    assert "is closed" in cli("key", "create", "--project", project, key=ada)[2]
    assert cli("project", "reopen", project, key=ada)[1] == f"{project}  assistant  open\n"
    assert "the last owner" in cli("member", "remove", owner["id"])[2]
    assert cli("org", "close", org, "--yes", key=ada)[1] == f"{org}  acme  closed\n"
    assert cli("org", "reopen", org, key=ada)[0] == 1
    assert cli("org", "reopen", org)[1] == f"{org}  acme  open\n"


def test_events_are_told_listed_and_reported(cli: Cli, tmp_path: Path) -> None:
    listed = {row["meter"]: row["aggregation"] for row in ok(cli("meter", "--json"))}
    assert listed["gpu_seconds"] == "time_weighted"
    assert "gateways" in cli("meter", "list")[1]
    whole = ("--at", "2026-11-20T10:00:00Z", "--until", "2026-11-20T11:00:00Z")
    told = ok(cli("meter", "send", "gpu_seconds", "8", *whole, "--kind", "H100", "--once", "e1",
                  "--json"))
    assert told == [{"id": "e1", "result": "accepted", "reason": ""}]
    again = cli("meter", "send", "gpu_seconds", "8", *whole, "--kind", "H100", "--once", "e1")
    assert (again[0], "duplicate" in again[1]) == (0, True)
    other = cli("meter", "send", "gpu_seconds", "9", *whole, "--kind", "H100", "--once", "e1")
    assert (other[0], "conflicting" in other[1]) == (1, True)
    file = tmp_path / "events.jsonl"
    lines = [
        {"id": "e2", "meter": "luck", "amount": 3, "at": "2026-11-20T10:00:00Z"},
        {"id": "e3", "meter": "gpu_seconds", "amount": 4, "at": "2026-11-20T10:00:00Z",
         "until": "2026-11-20T11:00:00Z", "kind": "H100", "replaces": "e1"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, text, _ = cli("meter", "send", "--file", str(file))
    assert (code, "unmetered" in text) == (1, True)
    counts = {row["id"]: row["counts"] for row in ok(cli("meter", "events", "--json"))}
    assert counts == {"e1": False, "e2": False, "e3": True}
    held = ok(cli("meter", "events", "--meter", "gpu_seconds", "--limit", "1", "--json"))
    assert [(row["id"], row["amount"], row["kind"]) for row in held] == [("e1", 8, "H100")]
    assert ok(cli("meter", "events", "--since", "2026-11-20T10:00:01Z", "--json")) == []
    assert "replaces e1" in cli("meter", "events")[1]
    assert [row["id"] for row in ok(cli("meter", "unmetered", "--json"))] == ["e2"]
    assert "luck" in cli("meter", "unmetered")[1]
    file.write_text("[]\n{\n")
    for words, said in (
        (("send", "--file", str(file)), ["line 1: is no JSON object", "line 2: is no JSON object"]),
        (("send", "bytes", "1"), ["give a meter, its amount and --at"]),
        (("send", "bytes", "1", "--file", str(file)), ["either a meter"]),
    ):
        code, output, complaint = cli("meter", *words)
        assert (code, output) == (2, "")
        assert all(each in complaint for each in said)


def test_events_that_were_taken_are_told_although_later_ones_were_not(
    cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    at = "2026-11-20T10:00:00Z"
    lines: list[dict[str, object]] = [
        {"id": f"e{number}", "meter": "bytes", "amount": 1, "at": at} for number in range(1001)
    ]
    lines[7]["subject"] = "two\u2028lines\u0085here"
    lines[1000]["amount"] = "much"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    code, output, complaint = cli("meter", "send", "--file", str(file), "--json")
    assert code == 1, "something was done"
    assert [each["id"] for each in json.loads(output)] == [f"e{number}" for number in range(1000)]
    assert "event 1001 and all after it were not taken: " in complaint
    file.write_text('{"amount": NaN}\n' + "[" * 100_000 + "\n")
    code, _, complaint = cli("meter", "send", "--file", str(file))
    assert (code, complaint.count("is no JSON object")) == (2, 2)


def test_the_first_name_of_the_key_command_goes_on_working(cli: Cli) -> None:
    made = ok(cli("keys", "create", "--residency", "DE", "--json"))
    assert set(made) == {"id", "key", "residency", "transit"}
    assert cli("keys", "revoke", made["id"])[1] == f"revoked {made['id']}\n"


def test_bad_input_is_told_whole_and_exits_with_2(
    cli: Cli, api: Api, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    before = [api.call("GET", path)[1] for path in ("keys", "principals", "audit")]
    for words, said in (
        (("key", "create", "--scopes", "chat,root", "--classes", "gold"), ["scopes", "classes"]),
        (("key", "create", "--expires", "soon", "--residency", "XX"), ["expires_at", "XX"]),
        (("key", "rotate", "x", "--overlap", "soon"), ["--overlap soon: expected a duration"]),
        (("member", "add", "x", "--role", "king", "--email", "x"), ["role", "email"]),
        (("org", "change", "default"), ["--name, --retain-days or both"]),
        (("org", "change", "default", "--retain-days", "9999"), ["retain_days"]),
        (("audit", "--since", "soon"), ["since: must be like"]),
        (("audit", "--kind", "luck"), ["kind: 'luck' is none of account"]),
    ):
        code, output, complaint = cli(*words)
        assert (code, output) == (2, "")
        for part in said:
            assert part in complaint
        assert len(complaint.splitlines()) == len(said)
    for words in (
        ("org", "close", "default"), ("org", "erase-person", "x"), ("project", "close", "default"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        code, output, complaint = cli(*words)
        assert (code, output.strip()) == (2, ""), "nobody is there to say yes"
        assert "nothing was done; answer y, or give --yes" in complaint
        monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
        assert cli(*words)[0] == 2
    assert cli("member", "remove", "nobody")[0] == 1
    assert [api.call("GET", path)[1] for path in ("keys", "principals", "audit")] == before


def test_bad_input_about_money_is_told_and_writes_nothing(
    cli: Cli, api: Api, tmp_path: Path  # noqa: F811
) -> None:
    paths = ("limits", "prices", "ledger/postings", "meters/events")
    sheet = tmp_path / "sheet.toml"
    sheet.write_text('id = "x"\ncurrency = "euro"\nvalid_from = "soon"\nprices = []\n')
    before = [api.call("GET", path)[1] for path in paths]
    for words, code, said in (
        (("limit", "set", "luck", "5", "--project", "default"), 2, "kind: input should be"),
        (("limit", "set", "concurrent", "5"), 2, "of whom: name a key, a project, or"),
        (("limit", "set", "concurrent", "2.5", "--project", "default"), 2, "not a whole number"),
        (("limit", "set", "concurrent", "5", "--of-key", "lost"), 1, "there is no key 'lost'"),
        (("limit", "show", "lost"), 1, "there is no limit 'lost'"),
        (("limit", "remove", "lost"), 1, "there is no limit 'lost'"),
        (("price", "create", str(sheet)), 2, "three capital letters"),
        (("price", "create", str(tmp_path / "lost")), 2, "cannot be read"),
        (("price", "show", "lost"), 1, "no such version of a sheet 'lost'"),
        (("ledger", "spent", "--month", "2026-13"), 2, "month: must be like 2026-11"),
        (("ledger", "spent", "--org", "lost"), 1, "there is no organisation 'lost'"),
        (("ledger", "balances", "--project", "lost"), 1, "there is no project 'lost'"),
        (("ledger", "postings", "--org", "lost"), 1, "there is no organisation 'lost'"),
        (("ledger", "credit", "ten"), 2, "not a plain decimal"),
        (("ledger", "credit", "1", "--project", "lost"), 1, "there is no project 'lost'"),
        (("ledger", "correct", "lost", "--about", "x"), 1, "there is no posting 'lost'"),
        (("reconcile", "--day", "yesterday"), 2, "day: must be like 2026-11-20"),
        (("reconcile", "--day", "2199-01-01"), 2, "day: 2199-01-01 has not begun"),
        (("project", "list", "--org", "lost"), 1, "there is no organisation 'lost'"),
    ):
        found, output, complaint = cli(*words)
        assert (found, output) == (code, ""), words
        assert said in complaint, words
    assert [api.call("GET", path)[1] for path in paths] == before


def test_what_was_spent_is_shown_beside_a_project_that_comes_to_too_much(
    cli: Cli, api: Api  # noqa: F811
) -> None:
    other = use_too_much(api)
    code, output, complaint = cli("ledger", "spent")
    assert (code, complaint) == (0, ""), complaint
    assert "project 'default' of 'default': an amount of money is beyond 38 digits" in output
    assert f"default / {other}, " in output
    assert "output_tokens" in output
    code, output, complaint = cli("ledger", "spent", "--project", "default")
    assert (code, output) == (1, "")
    assert "project 'default' of 'default'" in complaint


def test_a_sheet_is_shown_with_all_that_bounds_its_prices(cli: Cli, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.toml"
    sheet.write_text("""id = "own"
currency = "EUR"
valid_from = "2200-01-01T00:00:00Z"
[[prices]]
name = "gpu"
meters = ["gpu_seconds"]
kinds = ["H100"]
bound = true
least = "1.50"
charge = { model = "per_unit", price = "2" }
[[prices]]
name = "disk"
meters = ["bytes"]
charge = { model = "per_unit", price = "1" }
[[adjustments]]
name = "discount"
basis_points = -2000
models = ["tiny"]
[[fees]]
name = "care"
basis_points = 100
of = ["gpu", "disk"]
[[recurring]]
name = "desk"
amount = "9.00"
""")
    assert cli("price", "create", str(sheet)) == (0, "added own 1\n", "")
    code, text, _ = cli("price", "show", "own")
    assert code == 0
    for said in ("H100, named by the policy, at least 1.50", "discount: -20 % of tiny\n",
                 "care: 1 % of disk, gpu\n"):
        assert said in text


@pytest.mark.parametrize("verb", ["org", "project", "member", "key", "audit", "meter"])
def test_help_teaches_by_example(cli: Cli, verb: str) -> None:
    code, output, _ = cli(verb, "--help")
    assert code == 0
    assert f"isochrone {verb}" in output
    assert "Example" in output


@pytest.mark.parametrize(
    "words",
    [("key", "list"), ("keys", "list"), ("member", "list"), ("org", "list"), ("project", "list"),
     ("policies", "list"), ("limit", "list"), ("entitlement", "list"), ("price", "list"),
     ("meter", "list"), ("ledger", "spent"), ("ledger", "balances")],
)
def test_options_before_a_command_of_a_group_hold_for_it(
    words: tuple[str, str], url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ISOCHRONE_URL", "http://127.0.0.1:1")
    group, command = words
    place = ("--url", url, "--key", ADMIN, "--json")
    monkeypatch.setattr(sys, "argv", ["isochrone", group, *place, command])
    assert run() == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)
    other = ("--url", "http://127.0.0.1:1", "--key", "isoadm_other")
    monkeypatch.setattr(sys, "argv", ["isochrone", group, *other, command, *place])
    assert run() == 0, "what stands nearer holds"
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["isochrone", group, "--state", str(tmp_path), command])
    assert run() == 1
    assert f"no cloud is up in {tmp_path}" in capsys.readouterr().err


def test_durations() -> None:
    given = ("0", "0s", "30s", "90m", "12h", "7d")
    assert [duration_s(text, "--overlap") for text in given] == [
        0, 0, 30, 5_400, 43_200, 604_800,
    ]
    for wrong in ("", "1", "1w", "-1d", "1.5h", "d"):
        with pytest.raises(InvalidInput):
            duration_s(wrong, "--overlap")


def test_the_documented_commands_exist(cli: Cli) -> None:
    document = Path(__file__).parents[2] / "docs" / "tenancy.md"
    lines = [
        line.split("#")[0].split()[1:] for line in document.read_text("utf-8").splitlines()
        if line.startswith("    isochrone ")
    ]
    assert len(lines) >= 6
    for words in lines:
        names = [word for word in words[:2] if word.isalpha() and word.islower()]
        assert cli(*names, "--help")[0] == 0, words


def test_a_site_is_drained_stopped_and_started(cli: Cli) -> None:
    def site() -> tuple[bool, bool]:
        found = ok(cli("sites", "sydney", "--json"))
        return found["draining"], found["stopped"]

    assert cli("site", "drain", "sydney")[1] == "sydney is being drained\n"
    assert site() == (True, False)
    assert cli("site", "drain", "sydney", "--undo")[1] == "sydney takes requests again\n"
    assert ok(cli("site", "stop", "sydney", "--at-once", "--json"))["stopped"]
    assert site() == (False, True)
    assert cli("site", "start", "sydney")[1] == "the replicas of sydney are being started\n"
    assert site() == (False, False)
    assert cli("site", "stop", "nowhere")[0] == 1
    code, _, complaint = cli("replica", "restart", "sydney/tiny/0")
    assert code == 1
    assert "nothing was heard from sydney" in complaint
    assert ok(cli("org", "create", "acme", "--project", "main", "--json"))["name"] == "acme"
