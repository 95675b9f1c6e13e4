"""The machine's Chromium, driven through the console: what a person does, and all that it complains
of."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    Error,
    Page,
    Request,
    Response,
    sync_playwright,
)

# The first has no window at all: in the others each new profile draws one that nobody sees, with
# its tool bar, which takes a third of their CPU.
PROGRAMS = (
    "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable",
    "google-chrome",
)
ARTEFACTS = Path(__file__).parents[2] / "artefacts" / "console"
PATIENCE_MS = 20_000
FOLLOWED_MS = 7_000  # by a link
NAME = "each => each?.getAttribute('aria-label') ?? each?.innerText"

Theme = Literal["light", "dark"]
Size = Literal["laptop", "phone"]
SIZES: dict[Size, tuple[int, int]] = {"laptop": (1440, 900), "phone": (390, 844)}


def program() -> str | None:
    """Where Chromium is, None on a machine without."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    path = program()
    assert path is not None, "skip the test before"
    with sync_playwright() as playwright:
        # Root has no sandbox of its own in a container; only our own pages are opened. A frame that
        # may do nothing gets its own process, as in the browser that people have: else axe-core's
        # asking into it is told as an error.
        opened = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--site-per-process"]
        )
        try:
            yield opened
        finally:
            opened.close()


@dataclass
class Tab:
    """One tab of a fresh profile at one console, and what went wrong in it."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        """Go there, and wait until the page is drawn; or the form to sign in."""
        self.page.goto(self.url + path)
        self.page.wait_for_selector("#page h1, form[action='/sign-in']")

    def sign_in(self, login: str, password: str, path: str = "/") -> None:
        """Sign in on the way to `path`."""
        self.open(path)
        self.page.fill("#login", login)
        self.page.fill("#password", password)
        self.page.click("button[type=submit]")
        self.page.wait_for_selector("#page h1, .problem")

    def text(self) -> str:
        return self.page.inner_text("body")

    def barriers(self, within: str | None = None) -> list[str]:
        """What keeps people out, by the serious rules of axe-core; of the whole page, or of what a
        selector names."""
        context = None if within is None else {"include": [[within]]}
        found = Axe().run(self.page, context=context).response["violations"]
        return [
            f"{each['id']}: {node['html'][:200]}"
            for each in found if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    def dialog_holds_the_keyboard(self) -> None:
        """Of the open dialog: nothing serious by axe-core, Tab goes round within it both ways, and
        Escape closes it and leads back to the button that opened it."""
        page, where = self.page, ".q-dialog[role]"
        page.wait_for_selector(f"{where} .iso-dialog")
        page.wait_for_timeout(350)  # it has come in: half transparent, nothing contrasts
        assert self.barriers(where) == []
        assert page.get_attribute(where, "aria-label")
        controls = page.locator(f"{where} button:visible, {where} input:visible").count()
        for key in ("Tab", "Shift+Tab"):
            seen = set()
            for _ in range(controls + 2):
                page.keyboard.press(key)
                seen.add(page.evaluate("document.activeElement.outerHTML"))
                assert page.evaluate(f"!!document.activeElement.closest('{where}')"), key
            assert len(seen) >= min(controls, 2)
        page.keyboard.press("Escape")
        page.wait_for_selector(f"{where} .iso-dialog", state="detached")
        present = f"({NAME})(document.activeElement.closest('button'))"
        page.wait_for_function(f"{present} === window.asked")

    def ask(self, selector: str) -> None:
        """Click the button, and keep its name: a table may draw it anew."""
        self.page.locator(selector).evaluate(f"each => {{ window.asked = ({NAME})(each); }}")
        self.page.click(selector)

    def follow(self, link: str, address: str) -> None:
        """Click a link until the page is there: a table may draw it anew under the pointer."""
        for _ in range(3):
            self.page.click(link)
            with suppress(Error):
                self.page.wait_for_url(address, timeout=FOLLOWED_MS)
                return
        raise AssertionError(f"{link} does not lead to {address}")

    def picture(self, name: str) -> None:
        """Keep what is seen as artefacts/console/NAME.png."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")


@contextmanager
def tab_beside(first: Tab) -> Iterator[Tab]:
    """Another tab of the same profile."""
    found = Tab(page=first.page.context.new_page(), url=first.url)
    listen(found)
    try:
        yield found
    finally:
        found.page.close()


@contextmanager
def tab(
    browser: Browser, url: str, *, theme: Theme = "light", size: Size = "laptop"
) -> Iterator[Tab]:
    """A tab with no cookies. Refused answers that a test asks for are complaints as well."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion=None
    )
    context.set_default_timeout(PATIENCE_MS)
    found = Tab(page=context.new_page(), url=url)
    listen(found)
    try:
        yield found
    finally:
        context.close()


def listen(found: Tab) -> None:
    """Note from now on all that goes wrong in the tab, and what it asks for elsewhere."""
    own = (found.url, found.url.replace("http", "ws", 1), "data:", "blob:")

    def asked(request: Request) -> None:
        if not request.url.startswith(own):
            found.complaints.append(f"asked elsewhere: {request.url}")

    def answered(response: Response) -> None:
        if response.status >= 400:
            found.complaints.append(f"{response.status} for {response.url}")

    page = found.page
    page.on("request", asked)
    page.on("response", answered)
    page.on("pageerror", lambda error: found.complaints.append(f"script: {error}"))
    page.on(
        "console",
        lambda said: found.complaints.append(f"console: {said.text}")
        if said.type in ("error", "warning") else None,
    )
