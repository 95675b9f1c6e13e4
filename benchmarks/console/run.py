"""Measures how soon a page of the console answers input with 1,100 sites. See README.

Run from the project's folder: python -m benchmarks.console.run
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gateway.machine import ROOT, commit, cpu_s, facts, tree
from playwright.sync_api import Browser, Page

from isochrone.console.pages.catalogue import PAGES as LISTED
from isochrone.core.errors import Unavailable
from isochrone.wiring.control_api import ControlApi
from tests.rig.browser import Tab, browser, tab
from tests.rig.waiting import wait_until

HERE = Path(__file__).resolve().parent
RUNS = 7
WATCHED_S = 10.0
TARGET_MS = 2_000.0
PASSWORD = "as long as it takes"
LOOKED_FOR = "site-0999"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def started(
    *command: str, cwd: Path, stdout: int = subprocess.DEVNULL
) -> Iterator["subprocess.Popen[str]"]:
    """A process that ends with the block. One whose output nobody reads would wait at last."""
    process = subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=stdout, text=True,
        cwd=cwd, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def a_console(folder: Path) -> Iterator[tuple[str, int, int]]:
    """The console of a cloud with 1,100 sites: its address, its process and that of control."""
    control, own = free_port(), free_port()
    with started(
        "-m", "benchmarks.console.world", "--port", str(control), cwd=ROOT, stdout=subprocess.PIPE
    ) as world:
        assert world.stdout is not None
        admin = json.loads(world.stdout.readline())["admin"]
        api = ControlApi(f"http://127.0.0.1:{control}", admin)
        wait_until(lambda: answers(lambda: api.get("health")), "control answers")
        api.put("principals/operator/password", {"login": "operator", "password": PASSWORD})
        config = folder / "console.toml"
        config.write_text(
            f'port = {own}\nhost = "127.0.0.1"\ncontrol_url = "http://127.0.0.1:{control}"\n'
            f'public_url = "http://127.0.0.1:{own}"\nstate = "{folder / "state"}"\n'
        )
        with started("-m", "isochrone", "console", "--config", str(config), cwd=ROOT) as console:
            url = f"http://127.0.0.1:{own}"
            wait_until(lambda: listens(own), "the console listens")
            yield url, console.pid, world.pid


def answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except Unavailable:
        return False
    return True


def listens(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


def map_answers(page: Page) -> None:
    """All sites are drawn in the colours of now, and looking for one finds it."""
    page.wait_for_function(
        "window.isochroneMap?.frames > 0 && isochroneMap.drawn > 0"
        " && isochroneMap.sites.length === 1100", polling="raf",
    )
    page.fill("[aria-label='Find a site']", LOOKED_FOR)
    page.wait_for_selector(f".map-found >> text={LOOKED_FOR}")


def table_answers(page: Page) -> None:
    """The first fifty of all sites are there, and looking for one leaves it alone."""
    page.wait_for_selector("text=site-0000")
    page.fill("[aria-label='Search the table'] >> nth=0", LOOKED_FOR)
    page.wait_for_selector(f".iso-table a:text-is('{LOOKED_FOR}')")


def page_answers(page: Page) -> None:
    """What the page is made of stands, and its connection carries what is pressed."""
    page.wait_for_selector("#page h1")
    page.wait_for_function("window.socket?.connected", polling="raf")


ANSWERS = {"/map": map_answers, "/fleet": table_answers}
PAGES: dict[str, tuple[str, Callable[[Page], None]]] = {
    each.title.lower(): (each.path, ANSWERS.get(each.path, page_answers)) for each in LISTED
}


def signed_in(chromium: Browser, url: str) -> list[Any]:
    """The cookies of somebody who has signed in, once: many sign-ins in a row are refused."""
    with tab(chromium, url) as opened:
        opened.sign_in("operator", PASSWORD, "/account")
        return list(opened.page.context.cookies())


def opening_ms(
    chromium: Browser, url: str, cookies: list[Any], path: str, answered: Callable[[Page], None]
) -> float:
    """From the address to the answer to the first input, in a fresh profile that has signed in."""
    with tab(chromium, url) as opened:
        opened.page.context.add_cookies(cookies)
        opened.open("/account")
        opened.page.wait_for_timeout(1_000)  # what that began is over
        began = time.monotonic()
        opened.page.goto(url + path, wait_until="commit")
        answered(opened.page)
        taken_ms = (time.monotonic() - began) * 1000
        assert opened.complaints == [], opened.complaints
        return taken_ms


def watching(opened: Tab, console: int, control: int) -> dict[str, float]:
    """What an open map costs: frames a second that are drawn, and CPU of both processes."""
    opened.open("/map")
    opened.page.wait_for_function("window.isochroneMap?.frames > 2")
    before = {pid: cpu_s(tree(pid)) for pid in (console, control)}
    drawn, began = opened.page.evaluate("isochroneMap.drawn"), time.monotonic()
    opened.page.wait_for_timeout(WATCHED_S * 1000)
    took_s = time.monotonic() - began
    return {
        "frames_a_second": round((opened.page.evaluate("isochroneMap.drawn") - drawn) / took_s, 1),
        "console_cores": round((cpu_s(tree(console)) - before[console]) / took_s, 3),
        "control_cores": round((cpu_s(tree(control)) - before[control]) / took_s, 3),
    }


def measure(runs: int) -> dict[str, Any]:
    """Milliseconds until each page answers, run by run, and what an open map costs."""
    result: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="isochrone-bench-") as folder,
        a_console(Path(folder)) as (url, console, control), browser() as chromium,
    ):
        cookies = signed_in(chromium, url)
        for name, (path, answered) in PAGES.items():
            opening_ms(chromium, url, cookies, path, answered)  # the first visitor after a start
            taken_ms = [opening_ms(chromium, url, cookies, path, answered) for _ in range(runs)]
            result[name] = {
                "median_ms": round(median(taken_ms)), "worst_ms": round(max(taken_ms)),
                "runs_ms": [round(each) for each in taken_ms],
            }
            print(f"{name:<16}", *(f"{key} {value}" for key, value in result[name].items()))
        with tab(chromium, url) as opened:
            opened.sign_in("operator", PASSWORD, "/account")
            result["watching"] = watching(opened, console, control)
            print("map   ", result["watching"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="of each page")
    parser.add_argument("--dry", action="store_true", help="append nothing")
    asked = parser.parse_args()
    result = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), **commit(ROOT), "machine": facts(),
        "command": "python -m benchmarks.console.run", "sites": 1_100, **measure(asked.runs),
    }
    late = [name for name in PAGES if result[name]["median_ms"] >= TARGET_MS]
    if not asked.dry:
        with (HERE / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
    if late:
        raise SystemExit(f"later than {TARGET_MS:g} ms: {', '.join(late)}")


if __name__ == "__main__":
    main()
