"""Debian's Chromium under Playwright, and what it must not say."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
# Nothing but the page is to be fetched.
ARGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
Scheme = Literal["dark", "light"]
WIDE, PHONE = (1280, 900), (390, 844)


def need_chromium() -> None:
    """Leaves the module out that calls it, where there is none: one line says how to get it."""
    if CHROMIUM is None:
        pytest.skip("chromium is missing: apt-get install --no-install-recommends chromium", allow_module_level=True)


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium with an empty profile."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGS))
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(
    browser: Browser,
    url: str,
    size: tuple[int, int] = WIDE,
    scheme: Scheme = "light",
    may_say: tuple[str, ...] = (),
) -> Iterator[Page]:
    """The page at `url`. At its end nothing else may have been said on the console, and no error raised."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    said: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        page.goto(url)
        yield page
        wrong = [each for each in said if not any(word in each for word in may_say)]
        assert not wrong, wrong
    finally:
        context.close()
