"""Settings files: every problem at once, paths beside the file, rendering that parses back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isochrone.core.errors import InvalidInput
from isochrone.wiring.settings import load, parse, render, render_masked


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    host: str = "127.0.0.1"
    metrics_host: str = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    port: int
    database: str
    journal: Path
    world: Path | None = None
    nats_urls: tuple[str, ...] = ()
    timeout_s: float = 2.0
    workers: int = field(default=1, metadata={"min": 1, "max": 64})
    log_level: Literal["debug", "info"] = "info"
    trace: bool = False
    password: str = field(default="", metadata={"secret": True})


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        'port = 70000\njournal = 7\ntimeout_s = 0\nworkers = "two"\nlog_level = "loud"\n'
        "nats_urls = [1]\nprot = 1\npassword = 1797531\n"
    )
    with pytest.raises(InvalidInput) as caught:
        load(path, Sample)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 9
    assert "unknown key 'prot'" in text
    assert "missing key 'database' (a string)" in text
    assert "port: must be at most 65535, not 70000" in text
    assert "timeout_s: must be above 0" in text
    assert "log_level: must be one of 'debug', 'info'" in text
    assert "1797531" not in text, "a secret is never shown"
    assert all(problem.startswith(str(path)) for problem in caught.value.problems)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "good.toml"
    path.write_text('port = 1\ndatabase = "d"\njournal = "j/k"\nworld = "/abs"\n')
    settings = load(path, Sample)
    assert settings.journal == tmp_path / "j" / "k"
    assert settings.world == Path("/abs")


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe", None])
def test_a_file_that_is_no_toml_gives_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        load(path, Sample)
    assert len(caught.value.problems) == 1
    assert str(path) in caught.value.problems[0]


def test_secrets_are_masked_for_people() -> None:
    shown = render_masked(
        Sample(
            port=1,
            database="host=/run dbname=x password=hunter2 user=y",
            journal=Path("/j"),
            nats_urls=("nats://joe:hunter3@host:4222",),
            password="hunter4",
        )
    )
    assert "hunter" not in shown
    assert "user=y" in shown
    assert "@host:4222" in shown
    assert "# world is not set" in shown


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.builds(
        Sample,
        port=st.integers(0, 65535),
        database=_text,
        journal=st.just(Path("/journal \"x\"/é")),
        world=st.none() | st.just(Path("/w")),
        nats_urls=st.lists(_text, max_size=3).map(tuple),
        timeout_s=st.floats(0.001, 1e6),
        workers=st.integers(1, 64),
        log_level=st.sampled_from(["debug", "info"]),
        trace=st.booleans(),
        password=_text,
    )
)
def test_rendered_settings_parse_back(settings: Sample) -> None:
    assert parse(render(settings), Sample, source="rendered", folder=Path("/")) == settings


@pytest.mark.parametrize("given", ["1" + "0" * 400, "inf", "nan", "-inf"])
def test_a_number_that_is_none_for_us_is_a_problem(given: str) -> None:
    with pytest.raises(InvalidInput, match="timeout_s: must be a number"):
        parse(f'port = 1\ndatabase = "d"\njournal = "j"\ntimeout_s = {given}', Sample,
              source="f", folder=Path("/"))


def test_what_cannot_be_read_at_all_is_a_problem() -> None:
    with pytest.raises(InvalidInput, match="not valid TOML"):
        parse("port = 1" + "0" * 5000, Sample, source="f", folder=Path("/"))


def test_no_path_holds_a_nul() -> None:
    with pytest.raises(InvalidInput, match="journal: must be a path"):
        parse('port = 1\ndatabase = "d"\njournal = "j\\u0000"', Sample,
              source="f", folder=Path("/"))


@pytest.mark.parametrize("name", ["host", "metrics_host"])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_host_is_not_taken_for_every_address(name: str, empty: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name}: must be an address or the name of a host"):
        parse(f'{name} = "{empty}"', Listening, source="f", folder=Path("/"))
    assert parse(f'{name} = "0.0.0.0"', Listening, source="f", folder=Path("/"))
