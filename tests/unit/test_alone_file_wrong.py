"""Values in the file of a gateway alone that would end the process, or that it could not use."""

from pathlib import Path

import pytest

from isochrone.core.errors import InvalidInput
from isochrone.gateway.target import place_of
from isochrone.wiring.alone_file import parse_alone
from tests.fixtures.alone_files import SMALL


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as caught:
        parse_alone(text, source="gateway.toml", path=Path("/etc/gateway.toml"))
    return caught.value.problems


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://x:99999/v1", "nothing can be asked"),
        ("http://x:0/v1", "nothing can be asked"),
        ("http://x:abc/v1", "nothing can be asked"),
        ("http://:80/v1", "nothing can be asked"),
        ("http://[::1/v1", "nothing can be asked"),
        ("http://a..example/v1", "nothing can be asked"),
        (f"http://{'a' * 64}.example/v1", "nothing can be asked"),
        ("http://x/\u043f\u0443\u0442\u044c/v1", "percent-encoded"),
        ("http://me:word@x/v1", "state key_env or key_file"),
    ],
)
def test_where_nothing_can_be_asked_is_no_upstream(url: str, said: str) -> None:
    (found,) = problems(SMALL.replace("http://127.0.0.1:8080/v1", url))
    assert found.startswith('gateway.toml: site "here", upstream 1: url ')
    assert said in found


@pytest.mark.parametrize(
    ("url", "host", "header"),
    [
        ("https://[::1]:8443/v1", "::1", "[::1]:8443"),
        ("http://b\u00fccher.example/v1", "xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("http://b\u00fccher.example:81/v1", "xn--bcher-kva.example", "xn--bcher-kva.example:81"),
    ],
)
def test_an_upstream_is_asked_by_a_name_of_the_dns(url: str, host: str, header: str) -> None:
    parse_alone(
        SMALL.replace("http://127.0.0.1:8080/v1", url),
        source="gateway.toml", path=Path("/etc/gateway.toml"),
    )
    address, said, path = place_of(url)
    assert (address.host, said, path) == (host, header, "/v1")


@pytest.mark.parametrize(
    "line", ["max_connections = 0", "retry_min_per_s = 1e308", 'journal = "a\\u0000"',
             'usage = "a\\u0000"', 'request_log = "a\\u0000"', f"total_timeout_s = 1{'0' * 400}"],
)
def test_what_would_end_the_process_is_a_problem_of_the_file(line: str) -> None:
    (found,) = problems(f"[gateway]\n{line}\n{SMALL}")
    assert line.split(" ")[0] in found


def test_a_number_too_long_for_python_is_a_problem_of_the_file() -> None:
    (found,) = problems(f"[gateway]\nport = 1{'0' * 5000}\n{SMALL}")
    assert "not a TOML file" in found


@pytest.mark.parametrize("when", ["9999-12-31T23:59:59Z", "2262-04-12T00:00:00Z"])
@pytest.mark.parametrize("key", ["expires", "until"])
def test_an_instant_that_cannot_be_told_is_a_problem_of_the_file(key: str, when: str) -> None:
    more = f"{key} = {when}\n"
    if key == "until":
        more = '[[entitlement]]\nname = "gold"\ntok_s = 20\n' + more
    (found,) = [each for each in problems(SMALL + more) if f"{key} is {when[:4]}" in each]
    assert "from 1970 to 2261" in found


@pytest.mark.parametrize("setting", ["total_timeout_s", "first_byte_timeout_s", "batch_wait_s",
                                     "between_events_timeout_s", "ttft_target_ms"])
def test_a_duration_that_no_clock_counts_is_a_problem_of_the_file(setting: str) -> None:
    (found,) = problems(f"[gateway]\n{setting} = 1e300\n{SMALL}")
    assert f"{setting}: must be at most 1000000000" in found


@pytest.mark.parametrize(
    "line", ['[gateway]\nusage = "a\\nb: all is well\\u001b[2J"', '[[policy]]\nname = "a\\nb"']
)
def test_each_problem_is_one_line_whatever_the_value(line: str) -> None:
    for found in problems(f"{line}\n{SMALL}"):
        assert "a\\nb" in found
        assert found.isprintable()


def test_usage_and_the_request_log_are_two_files() -> None:
    (found,) = problems(f'[gateway]\nrequest_log = "./usage.jsonl"\n{SMALL}')
    assert "usage and request_log are the same file" in found
