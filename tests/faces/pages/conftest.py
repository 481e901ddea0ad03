"""A real Chromium and a real duly with seeded jobs, one of each for a module of tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from faces.pages.furnished import furnish_apart, running
from faces.pages.visitor import CHROMIUM, FLAGS, Visitor, make_visitor


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, headless. Without one the tests are skipped, but not where DULY_BROWSER=required (CI)."""
    if not Path(CHROMIUM).exists():
        if os.environ.get("DULY_BROWSER") == "required":
            pytest.fail(f"there is no browser at {CHROMIUM}, and DULY_BROWSER=required")
        pytest.skip(f"there is no Chromium at {CHROMIUM}: apt-get install chromium, or set DULY_CHROMIUM")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def duly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a duly with jobs and history."""
    directory = tmp_path_factory.mktemp("pages") / "data"
    furnish_apart(directory)
    with running(directory) as url:
        yield url


@pytest.fixture
def visitor(browser: Browser, duly: str) -> Iterator[Visitor]:
    """A window of desktop size."""
    yield from make_visitor(browser, duly)


@pytest.fixture
def phone(browser: Browser, duly: str) -> Iterator[Visitor]:
    """A window of a phone's size, in the dark."""
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}
    yield from make_visitor(browser, duly, **options)


@pytest.fixture
def plain(browser: Browser, duly: str) -> Iterator[Visitor]:
    """A window without scripts."""
    yield from make_visitor(browser, duly, java_script_enabled=False)
