"""Names, labels, logs, errors, results and files from somebody who means harm: always text, in a real browser."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from faces.pages.visitor import Visitor

pytestmark = pytest.mark.timeout(300)  # a browser on a busy machine takes its time

CORPUS = (
    "<script>window.harmed=1</script>",
    "<img src=x onerror=window.harmed=1>",
    '"><svg onload=window.harmed=1>',
    "'><iframe srcdoc='<script>parent.harmed=1</script>'>",
    "</pre></textarea><script>window.harmed=1</script>",
    '<hx-partial hx-target="body" hx-swap="innerHTML"><b id=harm>taken over</b></hx-partial>',
    '<template hx type="partial" hx-target="body"><b id=harm>taken over</b></template>',
    "<b id=harm hx-get=/jobs hx-trigger=load hx-on:load=window.harmed=1>x</b>",
    "{{ 7*7 }}{% raw %}${7*7}#{7*7}",
    "javascript:window.harmed=1//",
    "\u202egnp.exe\u2066",
)
NESTED = "data: <script>window.harmed=1</script>\n\nevent: gone\ndata: x"


def hostile_job(visitor: Visitor, text: str) -> tuple[str, str]:
    """A job with the text wherever a client may put any, and its run."""
    quoted = text.replace("'", "'\\''").replace("\n", " ")
    name = quoted.replace("/", "∕")
    program = (
        f"printf '%s\\n' '{quoted}'; printf '\\033]0;%s\\007\\033[31m%s\\n' '{quoted}' '{quoted}' >&2; "
        f"printf '%s' '{quoted}' > output/'{name}.html'; "
        f"printf '%s' '<svg xmlns=\"http://www.w3.org/2000/svg\" onload=\"window.harmed=1\"/>' > output/a.svg; "
        f"printf 'a,b\\n%s,1\\n' '{quoted}' > output/t.csv; exit 3"
    )
    made = visitor.context.request.post(
        f"{visitor.url}/v1/jobs",
        data={
            "task": {"kind": "command", "argv": ["sh", "-c", program, text], "env": {"X": text}, "stdin": text},
            "schedule": "@yearly",
            "name": text[:200],
            "labels": {text[:63]: text[:255]},
            "retry": {"max_attempts": 1},
        },
    )
    assert made.status == 201, made.text()
    identity: str = made.json()["id"]
    other = {"labels": {text[:63]: f"{text[:200]}2"}, "task": {"stdin": None, "env": {"X": f"2{text}"}}}
    assert visitor.context.request.patch(f"{visitor.url}/v1/jobs/{identity}", data=other).status == 200
    run = visitor.context.request.post(f"{visitor.url}/v1/jobs/{identity}/trigger", headers={"Prefer": "wait=20"})
    assert run.json()["state"] == "failed", run.text()
    return identity, run.json()["id"]


def unharmed(visitor: Visitor, where: str) -> None:
    page = visitor.page
    assert page.evaluate("window.harmed === undefined"), where
    assert page.locator("#harm, img[src=x], iframe, main script, main template, svg[onload]").count() == 0, where
    assert page.locator("a[href^='javascript:' i]").count() == 0, where


def test_what_clients_write_is_text_everywhere(visitor: Visitor) -> None:
    """On every screen, in the event stream's updates, in previews, forms and searches."""
    made = [(text, *hostile_job(visitor, text)) for text in CORPUS]
    visitor.expected = {422}
    page = visitor.page
    for path in ("/", "/jobs", "/runs?state=failed", "/failures", "/timeline?minutes=5", "/lateness"):
        visitor.go(path)
        visitor.live()
        unharmed(visitor, path)
    for text, identity, run in made:
        for path in (
            f"/jobs?q={quote(text)}",
            f"/jobs/schedule?schedule={quote(text)}",
            f"/jobs/{identity}",
            f"/jobs/{identity}/edit",
            f"/jobs/{identity}/versions",
            f"/runs/{run}?find={quote(text[:40])}",
            f"/runs/{run}",
        ):
            visitor.go(path)
            unharmed(visitor, path)
        if "\u202e" not in text:  # what turns the direction of text is written out, and no file may be named so
            expect(page.locator("#log pre")).to_contain_text(text)
            expect(page.locator("h1")).to_contain_text(text)
            expect(page.locator("#files details")).to_have_count(3)


@pytest.mark.parametrize("text", [CORPUS[5], CORPUS[7]])
def test_what_clients_write_is_text_in_updates_and_previews(visitor: Visitor, text: str) -> None:
    """What would be taken for an instruction by htmx comes by the stream, and comes back from a form."""
    identity, _ = hostile_job(visitor, text)
    page = visitor.go(f"/jobs/{identity}")
    visitor.live()
    visitor.context.request.post(f"{visitor.url}/v1/jobs/{identity}/trigger", headers={"Prefer": "wait=20"})
    expect(page.locator("#job_runs tbody tr")).to_have_count(3)
    expect(page.locator("#job_runs")).not_to_contain_text("running")
    unharmed(visitor, "after an update by the stream")
    visitor.go(f"/jobs/{identity}/edit")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#preview")).to_be_visible()
    unharmed(visitor, "the preview")


def test_the_stream_cannot_be_broken_into(visitor: Visitor) -> None:
    """Line ends and field names in a log stay within their event."""
    made = visitor.context.request.post(
        f"{visitor.url}/v1/jobs",
        data={"task": {"kind": "command", "argv": ["printf", "%s\\n\\r\\n%s", NESTED, NESTED]}, "schedule": "@yearly"},
    )
    identity = made.json()["id"]
    page = visitor.go(f"/jobs/{identity}")
    visitor.live()
    run = visitor.context.request.post(f"{visitor.url}/v1/jobs/{identity}/trigger", headers={"Prefer": "wait=20"})
    expect(page.locator("#job_runs")).to_contain_text("succeeded")
    visitor.go(f"/runs/{run.json()['id']}")
    visitor.live()
    expect(page.locator("#log pre")).to_contain_text("event: gone")
    unharmed(visitor, "the log")


def test_files_are_handed_out_as_files(visitor: Visitor) -> None:
    """HTML and SVG that a run left are attachments with nosniff; only raster images are shown as images."""
    _, run = hostile_job(visitor, CORPUS[0])
    for name in ("a.svg", "t.csv"):
        answer = visitor.context.request.get(f"{visitor.url}/runs/{run}/files/{name}")
        assert answer.status == 200
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"].startswith("nosniff")
        assert "sandbox" in answer.headers["content-security-policy"]
    assert visitor.context.request.get(f"{visitor.url}/runs/{run}/image/a.svg").status == 404
