"""A browser's window on the pages, for tests: what goes wrong in it is noted, and what leaves the server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

expect.set_options(timeout=30_000)

CHROMIUM = os.environ.get("DULY_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()


class Visitor:
    """A browser's window on the pages. It notes what goes wrong in it, and what leaves the server."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.context = context
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.expected: set[int] = set()
        self.page: Page = context.new_page()
        own = urlsplit(url).netloc
        self.page.on("console", lambda message: self._heard(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on(
            "request",
            lambda request: None if urlsplit(request.url).netloc == own else self.foreign.append(request.url),
        )

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not any(f"status of {status}" in text for status in self.expected):
            self.complaints.append(f"{kind}: {text}")

    def go(self, path: str) -> Page:
        """Open a page and wait for its scripts."""
        self.page.goto(self.url + path)
        self.page.wait_for_function("document.readyState === 'complete'")
        return self.page

    def live(self) -> None:
        """Wait until the page is connected to its stream."""
        try:
            self.page.wait_for_selector("[data-live=on]")
        except PlaywrightTimeout as error:
            raise AssertionError(f"{self.page.url} is not live; {self.complaints}") from error

    def axe(self) -> list[str]:
        """What axe-core finds against WCAG 2.2 AA and good practice."""
        self.page.evaluate(AXE)
        found: Any = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['id']}: " + " | ".join(node["html"][:200] for node in each["nodes"][:3])
            for each in found["violations"]
        ]

    def json(self, path: str) -> Any:
        """A page's data."""
        answer = self.context.request.get(f"{self.url}{path}")
        assert answer.ok, answer.text()
        return json.loads(answer.body())

    def check(self) -> None:
        """Nothing went wrong and nothing left the server."""
        assert not self.complaints, self.complaints
        assert not self.foreign, self.foreign


def make_visitor(browser: Browser, url: str, **options: Any) -> Iterator[Visitor]:
    """A visitor that is checked at the end."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
    context.set_default_timeout(45_000)
    visitor = Visitor(context, url)
    try:
        yield visitor
        visitor.check()
    finally:
        context.close()
