"""Badges: words and colours for each outcome, and names that are hostile."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from duly.core.badge import GREEN, GREY, ORANGE, RED, badge
from duly.core.contract import JobView
from duly.core.model import CommandTask, Job, JobId, JobState, Run, RunState
from duly.core.views import job_view

SVG = "{http://www.w3.org/2000/svg}"


def view(name: str = "nightly", run: RunState | None = None, lateness: int | None = None, **more: JobState) -> JobView:
    """A job as clients see it; lateness in µs."""
    job_id = JobId("0197aaaa-0000-7000-8000-000000000000")
    task = CommandTask(argv=("x",))
    job = Job(id=job_id, task=task, schedule="@daily", created_at=0, updated_at=0, anchored_at=0, name=name, **more)
    last = None if run is None else Run(job_id=job_id, scheduled_at=1, due_at=1, state=run, lateness=lateness)
    return job_view(job, next_run_at=1, last_run=last, finished=False)


def drawn(job: JobView) -> tuple[list[str | None], str, list[ET.Element]]:
    """Its texts, its colour, and all of its elements."""
    image = ET.fromstring(badge(job))
    elements = list(image.iter())
    texts = [element.text for element in elements if element.tag == f"{SVG}text"]
    return texts, [element.get("fill", "") for element in elements if element.tag == f"{SVG}rect"][-1], elements


@pytest.mark.parametrize(
    ("job", "words", "colour"),
    [
        (view(), "no run yet", GREY),
        (view(run=RunState.SUCCEEDED, lateness=412), "succeeded, 0.4 ms late", GREEN),
        (view(run=RunState.SUCCEEDED, lateness=2_500_000), "succeeded, 2.5 s late", ORANGE),
        (view(run=RunState.FAILED, lateness=600_000_000), "failed, 10 min late", RED),
        (view(run=RunState.MISSED), "missed", RED),
        (view(run=RunState.SKIPPED), "skipped", GREY),
        (view(run=RunState.SUCCEEDED, lateness=0, state="paused"), "paused, succeeded, 0.0 ms late", GREEN),
    ],
)
def test_outcomes(job: JobView, words: str, colour: str) -> None:
    """In words, and in colour: orange for a run past its margin."""
    texts, found, _ = drawn(job)
    assert (texts, found) == (["nightly", words], colour)


HOSTILE = [
    "</text><script>alert(1)</script>",
    '"><image href=x onerror=alert(1)>',
    "&lt;&#x3c;&amp;]]>",
    "nul\x00 bell\x07 esc\x1b[31m",
    "\ufffe\uffff\ud800",
    "\u202egnp.exe\u2066",
    "x" * 200,
    "名前" * 100,
    "\u202e",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name: str) -> None:
    """The image stays well formed, of the same elements, and of a bounded size."""
    texts, _, elements = drawn(view(name))
    usual = [element.tag for element in drawn(view())[2]]
    assert [element.tag for element in elements] == usual
    assert not any(key.startswith("on") for element in elements for key in element.attrib)
    assert texts[0]
    assert len(texts[0]) <= 48
    assert not set(texts[0]) & set("\u202e\u2066\x00\x1b")
    assert len(badge(view(name)).encode()) < 4_000
