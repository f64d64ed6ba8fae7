"""Pages in a real Chromium: what they show, what they complain of and what they ask the network for."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Page, expect, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)

_SECONDS = 120_000
"""Most that a page may take for anything, in milliseconds: tests run beside others."""
expect.set_options(timeout=_SECONDS)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A page that is open.

    Attributes:
        page: as Playwright has it.
        errors: of the console, and exceptions that no script caught.
        requests: the URL of everything that the page has asked for, itself included.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextlib.contextmanager
def opened(url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Opened]:
    """Open ``url`` in a Chromium of its own, and wait until it has loaded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--enable-unsafe-swiftshader"])
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
            page.set_default_timeout(_SECONDS)
            found = Opened(page=page)
            page.on("console", lambda message: found.errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: found.errors.append(str(error)))
            page.on("request", lambda request: found.requests.append(request.url))
            page.goto(url)
            yield found
        finally:
            browser.close()
