"""What is given to commands that call control and is no key, address or id: one line, no trace."""

import io
import json
import sys
from pathlib import Path

import pytest

from isochrone.cli.app import run
from isochrone.cli.show import print_table

AT = ("--url", "http://127.0.0.1:1")
KEY = ("--key", "isoadm_secret")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("status", *AT, "--key", "isoadm_secret\r"), 2),
        (("status", *AT, "--key", "isoadm_\nsecret"), 2),
        (("status", *AT, "--key", "isoadm_secret\u00e9\u043a"), 2),
        (("chat", "Hi", "--endpoint", "http://127.0.0.1:1/v1", "--key", "iso_secret\n"), 2),
        (("status", "--url", "http://[x", *KEY), 2),
        (("status", "--url", "http://exa mple", *KEY), 2),
        (("status", "--url", "http://a..b", *KEY), 2),
        (("status", "--url", f"http://{'x' * 64}.example", *KEY), 2),
        (("explain", "\udcff", *AT, *KEY), 1),
        (("usage", "--since", "\udcff", *AT, *KEY), 1),
        (("ledger", "credit", "1", "--once", "\u043a\u043b\u044e\u0447", *AT, *KEY), 2),
    ],
)
def test_what_cannot_be_sent_is_said_in_one_line_without_the_key(
    words: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["isochrone", *words])
    assert run() == code
    said = capsys.readouterr()
    assert said.err.startswith("isochrone: ")
    assert said.err.count("\n") == 1
    assert "secret" not in said.out + said.err


def test_a_damaged_file_of_the_local_cloud_is_said_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"control": "http://127.0.0.1:1"}))
    monkeypatch.setattr(sys, "argv", ["isochrone", "status", "--state", str(tmp_path)])
    assert run() == 2
    assert "was not written by `isochrone up`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("days", "read", "a" * 300),
        ("twin", "run", "a" * 300 + ".toml"),
        ("twin", "plan", "a" * 300 + ".toml"),
        ("twin", "report", "a" * 300),
        ("twin", "chaos", "--seeds", "9" * 20),
        ("usage", "--limit", "9" * 20),
        ("replay", "trace", "--start", "9" * 20),
    ],
    ids=lambda words: " ".join(words)[:20],
)
def test_names_and_numbers_beyond_all_bounds_are_said_in_one_line(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["isochrone", *words])
    assert run() == 2
    said = capsys.readouterr().err
    assert said.startswith("isochrone: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "words", [("keys", "hash", "--stdin"), ("member", "password", "m", "--stdin", *AT, *KEY)],
    ids=["key", "password"],
)
def test_a_secret_that_is_no_text_is_said_in_one_line_without_it(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["isochrone", *words])
    given = io.TextIOWrapper(io.BytesIO(b"a secret of \xff bytes\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", given)
    assert run() == 2
    assert capsys.readouterr().err == "isochrone: standard input: is not text in utf-8\n"


@pytest.mark.parametrize(
    "words",
    [
        ("replay", "~nobody-is-called-so/trace.csv"),
        ("status", "--state", "~nobody-is-called-so/mine"),
        ("up", "--state", "~nobody-is-called-so/mine"),
        ("restore", ".", "--state", "~nobody-is-called-so/mine"),
    ],
    ids=lambda words: words[0],
)
def test_a_folder_of_somebody_unknown_is_said_in_one_line(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["isochrone", *words])
    assert run() == 2
    said = capsys.readouterr().err
    assert said.endswith(": the folder ~nobody-is-called-so is not known\n")
    assert said.count("\n") == 1


def test_the_state_folder_of_up_is_that_of_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["isochrone", "status", "--state=~/mine"])
    assert run() == 1
    assert f"no cloud is up in {tmp_path}/mine" in capsys.readouterr().err


def test_what_cannot_be_written_is_said_before_anything_is_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["isochrone", *map(str, words)])
        assert run() == 2
        return capsys.readouterr().err

    assert f"--out {tmp_path}: is a folder" in told(
        "replay", "azure-conv-sample", "--out", tmp_path, *AT, *KEY
    )
    one, same = tmp_path / "one", tmp_path / "no" / ".." / "one"
    (tmp_path / "no").mkdir()
    assert told("twin", "sweep", "policies", "--json", one, "--parquet", same) == (
        f"isochrone: --json and --parquet name one file, {same}\n"
    )
    assert "--out and --json name one file" in told(
        "twin", "report", "policies", "--out", one, "--json", one
    )
    assert "--json and --progress-json name one file" in told(
        "twin", "run", "eight-sites", "--json", one, "--progress-json", one
    )
    assert not one.exists()


def test_names_are_shown_as_they_are_and_on_one_line_in_a_pipe(
    capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("operator:key:DE", "[red]x", "\\[b]", "back\\", "a:cat:b")
    request = "019aa1b2-0000-7000-8000-000000000001"
    print_table(
        ("request", *names), [(request, *(name * 12 for name in names))], title="of :fire: [b]",
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == "of :fire: [b]"
    [row] = [line for line in lines if request in line]
    for name in names:
        assert name * 12 in row
        assert any(name in line for line in lines[:3])
