"""The state folder and the ports of a local cloud: kept, claimed, and refused with one line."""

import os
import socket
from pathlib import Path

import pytest

from isochrone.core.errors import InvalidInput
from isochrone.wiring.local.ports import HOST, Claims, Ports, choose_ports
from isochrone.wiring.local.state import open_state

pytestmark = pytest.mark.rig

SITES = ("sydney", "frankfurt")


def _refusal(folder: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        open_state(folder)
    assert len(caught.value.problems) == 1
    line = caught.value.problems[0]
    assert "\n" not in line
    assert str(folder) in line
    return line


def _close(folder: Path) -> None:
    """Open a folder as a first start does and let it go again."""
    os.close(open_state(folder).lock)


def test_keys_and_ports_are_kept(tmp_path: Path) -> None:
    first = open_state(tmp_path / "s")
    ports = Ports(gateways=(4100, 4101), control=4102, nats=4103, console=4104)
    assert first.kept_ports(SITES) is None
    first.keep_ports(SITES, ports)
    admin = first.admin_key
    os.close(first.lock)
    second = open_state(tmp_path / "s")
    assert second.admin_key == admin
    assert second.kept_ports(SITES) == ports
    assert second.kept_ports(("tokyo", "osaka")) is None
    assert second.api_key is None
    os.close(second.lock)
    secret = tmp_path / "s" / "secrets" / "control.key"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    assert f"pid {os.getpid()}" in _refusal(tmp_path)
    os.close(state.lock)


def test_damage_is_told_and_nothing_is_replaced(tmp_path: Path) -> None:
    _close(tmp_path)
    for name, content in {
        "secrets/control.key": "not hex",
        "secrets/admin.key": "",
        "secrets/nats.json": "{",
        "secrets/control.nats.json": "[]",
        "state.json": '{"version": "x"}',
    }.items():
        path = tmp_path / name
        good = path.read_text()
        path.write_text(content)
        line = _refusal(tmp_path)
        assert "is damaged" in line
        assert name in line
        assert path.read_text() == content
        path.write_text(good)
    (tmp_path / "secrets" / "control.key").unlink()
    assert "secrets/control.key: it is missing" in _refusal(tmp_path)


def test_folders_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    assert "is a file" in _refusal(file)
    assert "cannot be used" in _refusal(file / "below")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    assert "holds other files (thesis.txt)" in _refusal(other)
    assert [entry.name for entry in other.iterdir()] == ["thesis.txt"]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert "not writable" in _refusal(closed)


def test_a_named_port_in_use_is_refused() -> None:
    with socket.socket() as busy:
        busy.bind((HOST, 0))
        busy.listen(1)
        port = busy.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"port {port} on {HOST} is in use"):
            choose_ports(2, wanted=port, kept=None, claims=Claims())
    with pytest.raises(InvalidInput, match="needs 3 ports"):
        choose_ports(2, wanted=65534, kept=None, claims=Claims())


def test_two_clouds_choose_different_ports_before_either_listens() -> None:
    one, other = Claims(), Claims()
    first = choose_ports(3, wanted=None, kept=None, claims=one)
    second = choose_ports(3, wanted=None, kept=first, claims=other)
    assert not set(first.all) & set(second.all)
    one.release()
    other.release()
    again = Claims()
    assert choose_ports(3, wanted=None, kept=first, claims=again) == first
    again.release()
