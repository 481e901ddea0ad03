"""Pictures of every screen, light and dark, from a real duly: `python tests/faces/pages/screenshots.py`.

They are kept in docs/screenshots. Options: another directory to write to; a part of the names to make those alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path

import httpx2
from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from faces.pages.furnished import furnish_apart, running
from faces.pages.visitor import CHROMIUM, FLAGS

DOCS = Path(__file__).resolve().parents[3] / "docs" / "screenshots"
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


def main() -> None:
    """Seed, start, look, stop."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--to", type=Path, default=DOCS)
    asked.add_argument("--only", default="")
    asked.add_argument("--settle", type=float, default=40, help="seconds that the server runs before the first picture")
    given = asked.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        furnish_apart(data)
        with running(data) as url, sync_playwright() as playwright:
            threading.Event().wait(given.settle)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            for name, path in screens(url).items():
                if given.only in name:
                    for scheme in ("light", "dark"):
                        picture(browser, url + path, scheme, given.to / f"{name}-{scheme}.png", phone="phone" in name)
            browser.close()


def screens(url: str) -> dict[str, str]:
    """Name → path."""
    with httpx2.Client(base_url=url, timeout=30) as client:

        def job(name: str) -> str:
            identity: str = client.get("/v1/jobs", params={"name": name}).json()["items"][0]["id"]
            return identity

        report, broken, slow = job("order-report"), job("customer-export"), job("thumbnail-batch")
        done = client.post(f"/v1/jobs/{report}/trigger", headers={"Prefer": "wait=20"}).json()["id"]
        failed = client.get("/v1/runs", params={"job_id": broken, "state": "failed"}).json()["items"][0]["id"]
        for each in (slow, job("search-index"), job("stock-sync")):
            client.post(f"/v1/jobs/{each}/trigger")
        backup = job("nightly-backup")
        client.patch(f"/v1/jobs/{backup}", json={"timeout": "2h", "retry": {"max_attempts": 5}})
        client.patch(f"/v1/jobs/{backup}", json={"schedule": "30 1 * * *", "labels": {"owner": "storage"}})
        return {
            "home": "/",
            "home-phone": "/",
            "jobs": "/jobs",
            "job": f"/jobs/{report}",
            "versions": f"/jobs/{backup}/versions",
            "run": f"/runs/{done}",
            "run-failed": f"/runs/{failed}",
            "runs": "/runs",
            "new-job": f"/jobs/new?like={backup}",
            "lateness": "/lateness",
            "failures": "/failures",
            "timeline": "/timeline?minutes=5",
            "forecast": "/forecast",
            "cluster": "/cluster",
        }


def picture(browser: Browser, url: str, scheme: str, path: Path, *, phone: bool) -> None:
    """One screen, once it is connected and drawn."""
    context = browser.new_context(viewport=PHONE if phone else WIDE, color_scheme=scheme)  # type: ignore[arg-type]  # "light" or "dark"
    page = context.new_page()
    page.goto(url)
    if page.locator("[data-live]").count():
        page.wait_for_selector("[data-live=on]")
    page.wait_for_timeout(600)
    page.screenshot(path=path)
    context.close()
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
