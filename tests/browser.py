"""A headless Chromium, for tests that look at pages; without one they are skipped."""

import atexit
import functools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; scripts/test.sh installs one as root")

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--no-first-run", "--remote-debugging-port=0"),
)


@dataclass
class Seen:
    """A page, its errors and its requests."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@functools.cache
def chromium() -> str:
    """Start the Chromium that all tests of this worker share; returns its address."""
    profile = tempfile.TemporaryDirectory(prefix="tometune-chromium-", ignore_cleanup_errors=True)
    command = [str(CHROMIUM), *ARGUMENTS, f"--user-data-dir={profile.name}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for end in (profile.cleanup, process.wait, process.kill):  # called in reverse order
        atexit.register(end)
    file = Path(profile.name) / "DevToolsActivePort"  # the port, then the path of the address
    for _ in range(1200):
        if file.exists() and len(lines := file.read_text().splitlines()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.1)
    raise AssertionError(f"{CHROMIUM} did not start")


def _connected(playwright: Any) -> Any:
    """Connect to the browser; on busy cores a connection sometimes gets no answer, and another one does."""
    from playwright.sync_api import TimeoutError

    for _ in range(4):
        try:
            return playwright.chromium.connect_over_cdp(chromium(), timeout=40_000)
        except TimeoutError as error:
            problem = error
    raise problem


@contextmanager
def opened(url: str, scheme: str = "light", width: int = 1100, height: int = 1000) -> Iterator[Seen]:
    """Open a page in a context of its own and record its errors and requests until the body ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = _connected(playwright)
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        seen = Seen(page)
        page.on("console", lambda message: message.type == "error" and seen.errors.append(message.text))
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(url)
        yield seen
        context.close()
