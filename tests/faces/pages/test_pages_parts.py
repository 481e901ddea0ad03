"""What pages are made of, without a browser: vendored files, filters, log colours, merge patches, drawings, days."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

import jinja2
import msgspec
import pytest

from duly.core.contract import BulkFilter, JobSpec
from duly.core.definition import convert
from duly.core.errors import InvalidInput
from duly.core.instants import parse_instant
from duly.core.overview import fingerprint_text
from duly.core.schedule.changes import change_days
from duly.faces.pages.ansi import ansi_html
from duly.faces.pages.compiled import Compilation, CompiledTemplates
from duly.faces.pages.filters import bulk_filter, job_query, parse_filter
from duly.faces.pages.job_fields import from_form, merge_patch, to_fields
from duly.faces.pages.same import as_cli, as_curl
from duly.faces.pages.static import NAMES, StaticFiles
from duly.faces.pages.visit import Form
from duly.faces.pages.words import FILTERS, clock, duration, size, text

VENDORED = (
    Path(str(resources.files("duly.faces.pages") / "static" / "vendor")),
    Path(__file__).parent / "vendor",
)


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is recorded of a file that others wrote."""

    file: str
    package: str
    version: str
    license: str
    license_file: str
    source: str
    sha256: str
    bytes: int


@pytest.mark.parametrize("directory", VENDORED, ids=["pages", "tests"])
def test_vendored_files_are_what_was_recorded(directory: Path) -> None:
    """Byte for byte, each with its licence; none besides those recorded."""
    entries = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=list[Entry])
    for entry in entries:
        body = (directory / entry.file).read_bytes()
        assert (hashlib.sha256(body).hexdigest(), len(body)) == (entry.sha256, entry.bytes), entry.file
        assert (directory / entry.license_file).read_text().strip()
    recorded = {"manifest.json", *(e.file for e in entries), *(e.license_file for e in entries)}
    assert {path.name for path in directory.iterdir()} == recorded


def test_the_common_files_leave_room_for_a_page() -> None:
    """Under 135 KB in all, so that no page passes 150 KB."""
    files = StaticFiles()
    assert sum(files.size(name) for name in (*NAMES, "htmx.js")) < 135_000
    assert files.url("duly.css").startswith("/static/")


def test_a_filter_is_words_labels_and_keys() -> None:
    """Quotes hold words together; what is unknown is told with what there is."""
    assert parse_filter('team=ops is:paused task:http name:"a b" schedule:"0 2 * * *" nightly report') == {
        "labels": (("team", "ops"),),
        "state": "paused",
        "task": "http",
        "name": "a b",
        "schedule": "0 2 * * *",
        "q": "nightly report",
    }
    assert job_query("", limit=5).limit == 5
    assert parse_filter("a:b =x") == {"q": "a:b =x"}
    assert msgspec.convert(bulk_filter("team=ops x"), BulkFilter).label == ["team:ops"]
    for wrong in ("is:asleep", "task:dance", 'name:"open', "x" * 1001):
        with pytest.raises(InvalidInput) as told:
            parse_filter(wrong)
        assert told.value.errors[0].pointer == "/query/q"


def test_log_colours_become_classes_and_all_else_is_text() -> None:
    """Titles, cursor moves, broken UTF-8 and direction marks included."""
    assert ansi_html(b"\x1b[1;31mno\x1b[0m <b>") == '<span class="b c1">no</span> &lt;b&gt;'
    assert ansi_html("a\x1b[32mbé".encode()) == 'a<span class="c2">bé</span>'
    assert ansi_html(b"\x1b]0;title\x07x\x1b[2Ky\x1b[38;5;196mz") == "xyz"
    assert ansi_html(b"\xff\x00\x07ok\r\n") == "\ufffd\ufffd\ufffdok\n"
    assert "\u202e" not in ansi_html("\u202eevil".encode())
    assert ansi_html(b"\x1b[99999999999m\x1b[;;mx\x1b") == "x"


def test_a_form_makes_the_job_that_its_fields_say() -> None:
    """There and back for each kind of task; what is wrong is named by its pointer."""
    for task in (
        {"kind": "command", "argv": ["./task", "a b"], "env": {"X": "1=2"}, "code": "sha256:" + "0" * 64},
        {"kind": "function", "name": "m:f", "args": [1, "x"], "kwargs": {"k": None}},
        {"kind": "http", "url": "https://x.example/", "headers": {"A": "b=c"}, "body": {"x": [1]}},
    ):
        spec = convert(
            {"task": task, "schedule": "0 2 * * *", "labels": {"team": "ops"}, "calendar": ["SAT"], "max_runs": 3},
            JobSpec,
        )
        form = Form({name: [value] for name, value in to_fields(spec).items()}, {})
        assert convert(from_form(form, None), JobSpec) == spec
    bad = {"kind": ["command"], "priority": ["x"], "labels": ["nothing"], "task.argv": ["'"], "keep.runs": ["-1"]}
    with pytest.raises(InvalidInput) as told:
        from_form(Form(bad, {}), None)
    assert {error.pointer for error in told.value.errors} == {"/priority", "/labels", "/task/argv", "/keep/runs"}


def test_a_merge_patch_says_only_what_differs() -> None:
    """What goes is null; a task of another kind takes the whole place."""
    before = {"a": 1, "b": {"x": 1, "y": 2}, "task": {"kind": "http", "url": "u"}}
    after = {"a": 1, "b": {"x": 3}, "task": {"kind": "command", "argv": []}}
    assert merge_patch(before, after) == {
        "b": {"x": 3, "y": None},
        "task": {"url": None, "kind": "command", "argv": []},
    }
    assert merge_patch(before, before) == {}


def test_the_same_as_a_command_can_be_pasted() -> None:
    """Quoted for a shell, without defaults."""
    spec = convert(
        {"task": {"kind": "command", "code": "sha256:" + "0" * 64, "argv": ["./task", "it's"], "inputs": {}},
         "schedule": "0 2 * * *", "name": "it's"},
        JobSpec,
    )  # fmt: skip
    assert as_cli(spec) == """duly create ./task --schedule '0 2 * * *' --name 'it'"'"'s' -- 'it'"'"'s'"""
    assert "max_lateness" not in as_curl(spec)
    assert as_curl(spec, job_id="x").startswith('curl -X PATCH "$DULY_SERVER/v1/jobs/x"')


def test_days_of_clock_changes_are_compared_in_every_mode() -> None:
    """Berlin's two; none for UTC, nor for a schedule that no change touches; Lord Howe's half hour."""
    now = parse_instant("2026-11-24T12:00:00Z")
    spring, autumn = change_days("30 2 * * *", timezone="Europe/Berlin", after=now)
    assert (spring.day, autumn.day) == ("2027-03-28", "2027-10-31")
    assert [each.local[11:16] for each in spring.modes["shift"]] == ["03:30"]
    assert spring.modes["skip"] == []
    assert len(autumn.modes["both"]) == 2
    assert change_days("30 2 * * *", timezone="UTC", after=now) == []
    assert change_days("0 12 * * *", timezone="Europe/Berlin", after=now) == []
    half = change_days("15 2 * * *", timezone="Australia/Lord_Howe", after=now)
    assert {day.after - day.before for day in half} == {1800, -1800}


def test_errors_that_differ_in_numbers_are_one_kind() -> None:
    """Numbers, addresses, ids and paths do not count; words do."""
    one = fingerprint_text("exception", "KeyError: 4711 at 0x7f3a in /srv/a/b.json")
    assert one == fingerprint_text("exception", "KeyError: 12 at 0xdeadbeef in /home/x/y/c.json")
    assert one != fingerprint_text("exit", "KeyError: 4711 at 0x7f3a in /srv/a/b.json")
    assert one != fingerprint_text("exception", "KeyError: no 4711 at 0x7f3a in /srv/a/b.json")


def test_words_for_people() -> None:
    """Short, and with their unit; what cannot be seen is made visible."""
    told = [duration(each) for each in (None, 0, 0.4, 5.25, 12, 999, 1200, 75_000, 180_000, 7_500_000, 200_000_000)]
    assert told == [
        "–",
        "0 ms",
        "0.4 ms",
        "5.2 ms",
        "12 ms",
        "999 ms",
        "1.2 s",
        "75 s",
        "3 min",
        "2 h 5 min",
        "2 d 7 h",
    ]
    assert [size(each) for each in (0, 999, 1000, 123_456, 5 << 30)] == ["0 B", "999 B", "1.0 KB", "123 KB", "5.4 GB"]
    assert "14:00:00" in clock("2026-11-24T14:00:00.000000Z", now="2026-11-24T15:00:00.000000Z")
    assert text("a\u202e<b>\x07") == "a\\u202e&lt;b&gt;\\u0007"


async def test_templates_are_compiled_once_for_every_app_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the loop, after the first page; the next app finds the code and compiles nothing."""

    def environment() -> jinja2.Environment:
        made = jinja2.Environment(
            loader=jinja2.PackageLoader("duly.faces.pages"), bytecode_cache=CompiledTemplates(), autoescape=True
        )
        made.filters.update(FILTERS)
        return made

    compilation = Compilation(environment())
    compilation.begin()
    assert compilation.under_way is not None
    await compilation.under_way
    second = environment()
    monkeypatch.setattr(second, "compile", None)
    for name in second.list_templates(extensions=["html"]):
        assert second.get_template(name).name == name
