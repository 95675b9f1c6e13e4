"""Residency on the real cloud: served where allowed, refused where not, never elsewhere."""

import json
import os
import signal
import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.rig.cloud import Cloud, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig


def make_key(cloud: Cloud, *flags: str) -> dict[str, object]:
    made = isochrone("keys", "create", "--state", cloud.state, "--json", *flags)
    assert made.returncode == 0, made.stderr
    key: dict[str, object] = json.loads(made.stdout)
    return key


@pytest.fixture(scope="module")
def german(cloud: Cloud) -> str:
    key = make_key(cloud, "--residency", "DE")
    assert set(key) >= {"id", "key", "residency", "transit"}
    assert (key["residency"], key["transit"]) == (["DE"], ["any"])
    secret = str(key["key"])
    wait_until(lambda: cloud.chats("sydney", key=secret), "the new key is known at Sydney")
    return secret


def test_a_bound_key_is_served_at_home_from_anywhere(cloud: Cloud, german: str) -> None:
    for site in ("sydney", "frankfurt", "ashburn"):
        reply = cloud.chat(site, key=german)
        assert reply.status == 200
        assert reply.headers["x-isochrone-site"] == "frankfurt"
        assert reply.headers["x-isochrone-country"] == "DE"


def test_the_emulated_distance_is_felt(cloud: Cloud, german: str) -> None:
    began = time.monotonic()
    assert cloud.chat("sydney", key=german, max_tokens=1).status == 200
    assert time.monotonic() - began > 0.2, "Sydney to Frankfurt and back takes longer than that"


def test_blocs_work_and_nobody_serves_where_nobody_may(cloud: Cloud) -> None:
    european = str(make_key(cloud, "--residency", "EEA")["key"])
    wait_until(lambda: cloud.chats("ashburn", key=european), "the key is known")
    assert cloud.chat("ashburn", key=european).headers["x-isochrone-country"] == "DE"
    french = str(make_key(cloud, "--residency", "FR")["key"])
    wait_until(lambda: cloud.chat("ashburn", key=french).status == 403, "the key is known")
    for site in ("sydney", "frankfurt", "ashburn"):
        reply = cloud.chat(site, key=french)
        assert reply.status == 403
        assert reply.headers["x-isochrone-reason"] == "residency"


def test_transit_is_refused_from_the_head_alone(cloud: Cloud) -> None:
    key = str(make_key(cloud, "--residency", "DE", "--transit", "DE")["key"])
    wait_until(lambda: cloud.chats("frankfurt", key=key), "the key is known at Frankfurt")
    parts = urlsplit(cloud.endpoint("sydney"))
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=20) as link:
        link.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: sydney\r\ncontent-length: 1000000\r\n"
            b"authorization: Bearer " + key.encode() + b"\r\n\r\n"
        )
        answer = b""
        while piece := link.recv(65536):  # ends by itself: the connection closes
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403")
    assert b"connection: close" in head.lower()
    assert b"x-isochrone-reason: transit" in head.lower()
    assert cloud.endpoint("frankfurt").encode() in body
    assert cloud.endpoint("ashburn").encode() not in body


@pytest.mark.parametrize("victim", ["replica", "gateway"])
def test_an_unhealthy_home_is_503_and_never_elsewhere(
    cloud: Cloud, german: str, victim: str
) -> None:
    assert cloud.process is not None
    # Its supervisor is frozen, or it would bring the victim back before anybody could look.
    supervisor = cloud.pids()["agent frankfurt"] if victim == "replica" else cloud.process.pid
    pid = cloud.pids()[f"{victim} frankfurt"]
    assert supervisor is not None
    assert pid is not None
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        seen = set()
        began = time.monotonic()
        while time.monotonic() - began < 3:
            asked = time.monotonic()
            bound = cloud.chat("sydney", key=german)
            assert bound.status == 503
            assert time.monotonic() - asked < 2
            seen.add(bound.headers["x-isochrone-reason"])
            free = cloud.chat("sydney")
            assert free.status == 200
            assert free.headers["x-isochrone-site"] != "frankfurt"
        assert seen
    finally:
        os.kill(supervisor, signal.SIGCONT)
    wait_until(lambda: cloud.chats("sydney", key=german), "Frankfurt is back")
    assert cloud.chat("sydney", key=german).headers["x-isochrone-site"] == "frankfurt"
    wait_until(lambda: cloud.pids()[f"{victim} frankfurt"] not in (None, pid), "up.json is current")
