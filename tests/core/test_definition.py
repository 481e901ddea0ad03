"""From what a client wrote to a job: defaults, complaints with pointers, merge patches; and the ids of jobs."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duly.core import views
from duly.core.contract import JobSpec
from duly.core.definition import MAX_JOB_BYTES, decode, define_job, merge, patch_job, path_problem
from duly.core.errors import DulyError, FieldError, InvalidInput, Malformed, TooLarge
from duly.core.instants import HOUR, SECOND
from duly.core.job_ids import is_job_id, keyed_job_id, mint_job_id
from duly.core.model import Job, JobId

NOW = 1_800_000_000 * SECOND
ID = JobId("0197a000-0000-7000-8000-000000000001")
FUNCTION = {"kind": "function", "name": "m:f"}


def job_of(**fields: object) -> Job:
    """The job of a JSON body."""
    body = msgspec.json.encode({"task": FUNCTION, "schedule": "0 2 * * *", **fields})
    return define_job(decode(body, JobSpec), job_id=ID, now=NOW)


def complaints(**fields: object) -> dict[str, str]:
    """Pointer → detail of a refused body."""
    with pytest.raises(InvalidInput) as caught:
        job_of(**fields)
    return {error.pointer: error.detail for error in caught.value.errors}


def test_only_task_and_schedule_are_required() -> None:
    """The defaults are those of the contract."""
    job = job_of()
    assert (job.priority, job.max_lateness, job.timeout, job.misfire) == (5, SECOND, HOUR, "run_latest")
    assert (job.retry.max_attempts, job.overlap, job.delivery) == (3, "skip", "at_least_once")
    assert list(complaints(task=FUNCTION, schedule=None)) == ["/schedule"]


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"priority": 10}, "/priority"),
        ({"priority": "5"}, "/priority"),
        ({"prioriti": 5}, "/prioriti"),
        ({"timeout": "5"}, "/timeout"),
        ({"timeout": "-5s"}, "/timeout"),
        ({"timezone": "Europe/Berln"}, "/timezone"),
        ({"schedule": "0 0 31 2 *"}, "/schedule"),
        ({"schedule": "* * *"}, "/schedule"),
        ({"start": "2026-12-01T00:00:00"}, "/start"),
        ({"start": "2026-12-02T00:00:00Z", "end": "2026-12-01T00:00:00Z"}, "/end"),
        ({"retry": {"base": "x"}}, "/retry/base"),
        ({"retry": {"max_attempts": 0}}, "/retry/max_attempts"),
        ({"keep": {"for": "ever"}}, "/keep/for"),
        ({"labels": {"": "x"}}, "/labels"),
        ({"task": {"kind": "nope"}}, "/task/kind"),
        ({"task": {"kind": "command"}}, "/task/argv"),
        ({"task": {"kind": "command", "argv": ["a", 5]}}, "/task/argv/1"),
        ({"task": {"kind": "command", "argv": ["a\0b"]}}, "/task/argv/0"),
        ({"task": {"kind": "command", "argv": ["a"], "inputs": {"../x": "sha256:" + "0" * 64}}}, "/task/inputs/..~1x"),
        ({"task": {"kind": "command", "argv": ["a"], "code": "sha256:zz"}}, "/task/code"),
        ({"task": {"kind": "http", "url": "ftp://x"}}, "/task/url"),
        ({"task": {"kind": "http", "url": "http://x", "headers": {"X": "a\r\nb"}}}, "/task/headers/X"),
    ],
)
def test_a_complaint_names_its_field(fields: dict[str, object], pointer: str) -> None:
    """Each with its JSON pointer."""
    assert pointer in complaints(**fields)


def test_a_wrong_word_is_told_the_right_ones() -> None:
    """A choice that does not exist is answered with those that do."""
    assert "cron, shift, skip or both" in complaints(dst="maybe")["/dst"]
    assert "function, command or http" in complaints(task={"kind": "nope"})["/task/kind"]


def test_all_complaints_come_at_once() -> None:
    """A body with three faults is refused once, with three pointers."""
    found = complaints(timeout="x", jitter="y", schedule="nonsense words here now please")
    assert set(found) == {"/timeout", "/jitter", "/schedule"}


def test_what_is_no_json_is_malformed() -> None:
    """Never a traceback: nesting, invalid UTF-8, NaN, truncation."""
    for body in (b"{", b'{"a": NaN}', b"\xff\xfe", b'{"task": ' + b"[" * 100_000, b""):
        with pytest.raises((Malformed, InvalidInput)):
            decode(body, JobSpec)
    with pytest.raises(TooLarge):
        decode(b" " * (MAX_JOB_BYTES + 1), JobSpec)


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
names = st.sampled_from(["task", "schedule", "kind", "name", "retry", "for", "x"])
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_any_json_is_a_job_or_a_clear_refusal(value: object) -> None:
    """No other exception comes out, whatever goes in, and it is never the server's fault."""
    refused: DulyError | None = None
    try:
        define_job(decode(msgspec.json.encode(value), JobSpec), job_id=ID, now=NOW)
    except DulyError as error:
        refused = error
    assert refused is None or 400 <= refused.status < 500


def test_a_patch_keeps_what_it_does_not_name() -> None:
    """RFC 7396, by example: members merge, null puts back the default, version rises by one."""
    job = job_of(labels={"team": "ops", "env": "prod"}, priority=7)
    patched = patch_job(job, {"labels": {"env": None}, "priority": None, "timeout": "5m"}, now=NOW + 1)
    assert (patched.labels, patched.priority, patched.version) == ({"team": "ops"}, 5, 2)
    assert patched.anchored_at == job.anchored_at
    assert patch_job(job, {"schedule": "every 5m"}, now=NOW + 1).anchored_at == NOW + 1
    assert patch_job(job, {"task": {"kind": "http", "url": "http://x"}}, now=NOW).task.__class__.__name__ == "HttpTask"


@pytest.mark.parametrize("patch", [[], 5, None, {"id": "x"}, {"state": "paused"}, {"task": None}, {"nope": 1}])
def test_a_patch_that_makes_no_job_is_refused(patch: object) -> None:
    """Read-only, unknown and required fields."""
    with pytest.raises(InvalidInput):
        patch_job(job_of(), patch, now=NOW)


def test_what_a_client_wrote_comes_back() -> None:
    """Job → spec → job is the same job."""
    job = job_of(
        labels={"a": "b"},
        task={"kind": "command", "argv": ["x"], "env": {"A": "1"}, "limits": {"cpu": "10s", "memory": 1 << 30}},
        jitter="5s",
        calendar=["SAT", "12-25"],
        start="2026-12-01T00:00:00Z",
        retry={"max_attempts": 9, "backoff": "linear", "base": "250ms", "cap": "1h30m"},
    )
    assert define_job(views.job_spec(job), job_id=ID, now=NOW) == job


def test_ids() -> None:
    """UUIDv7 sorts by time; the same key gives the same id; both have the form of ids."""
    early, late = mint_job_id(NOW, b"\xff" * 10), mint_job_id(NOW + 1000, b"\0" * 10)
    assert early < late
    assert is_job_id(early)
    assert early[14] == "7"
    assert keyed_job_id("a", "k") == keyed_job_id("a", "k") != keyed_job_id("b", "k")
    assert is_job_id(keyed_job_id("a", "k"))
    assert not is_job_id("x" * 36)


@pytest.mark.parametrize("path", ["a", "a/b.csv", "Ünicode/ok", "...", "a b"])
def test_paths_that_are_taken(path: str) -> None:
    """Relative, with plain parts."""
    assert path_problem(path) is None


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "../x", "a/../../b", ".", "a\0b", "a\nb", "a\\b", "x" * 1025])
def test_paths_that_are_refused(path: str) -> None:
    """Never a way out of the directory."""
    assert path_problem(path)


def test_merge_patch_examples_of_the_rfc() -> None:
    """From RFC 7396, appendix A."""
    assert merge({"a": "b"}, {"a": "c"}) == {"a": "c"}
    assert merge({"a": "b"}, {"a": None}) == {}
    assert merge({"a": ["b"]}, {"a": "c"}) == {"a": "c"}
    assert merge({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}) == {"a": {"b": "d"}}
    assert merge({"e": None}, {"a": 1}) == {"e": None, "a": 1}
    assert merge({}, {"a": {"bb": {"ccc": None}}}) == {"a": {"bb": {}}}


def test_every_wrong_field_is_told_at_once() -> None:
    """Wrong shapes do not hide one another, nor what is wrong with the meaning of other fields."""
    task = {"kind": "command", "argv": [1, "a", None], "env": {"A": 1, "B": 2, "": "c"}, "code": "sha256:x", "cod": 1}
    told = complaints(
        task=task,
        schedule="0 0 31 2 *",
        timezone="Europe/Berln",
        priority=10,
        dst="other",
        labels={"a": 1},
        retry={"max_attempts": "x", "bas": 1},
        timeout="5",
        start=5,
        end=None,
        **{"a/b": 1},
    )
    assert set(told) == {
        "/task/argv/0", "/task/argv/2", "/task/env/A", "/task/env/B", "/task/env", "/task/code",
        "/task/cod",
        "/timezone", "/priority", "/dst", "/labels/a", "/a~1b", "/retry/max_attempts", "/retry/bas", "/timeout",
        "/start",
    }  # fmt: skip
    assert "cron, shift, skip or both" in told["/dst"]
    assert "Europe/Berlin" in told["/timezone"]
    assert set(complaints(priority=10, schedule="0 0 31 2 *")) == {"/priority", "/schedule"}
    assert set(complaints(priority=10, task=None, keep={"runs": -1, "for": "x"})) == {
        "/priority", "/task", "/keep/runs", "/keep/for"
    }  # fmt: skip
    assert set(complaints(task={"kind": "command", "argv": ["a\0"], "env": {"A": 1, "B": "\0"}})) == {
        "/task/argv/0", "/task/env/A", "/task/env/B"
    }  # fmt: skip


def test_a_body_of_wrong_fields_lists_the_first_of_them() -> None:
    """All are counted; what is listed has a bound. Within a batch, pointers name the job."""
    body = msgspec.json.encode({"task": FUNCTION, "schedule": "now", **{f"x{n}": 1 for n in range(1000)}})
    with pytest.raises(InvalidInput, match="and 999 more") as caught:
        decode(body, JobSpec, prefix="/jobs/7")
    assert len(caught.value.errors) == 50
    with pytest.raises(InvalidInput) as caught:
        decode(b'{"schedule":"x","priority":-1}', JobSpec, prefix="/jobs/7")
    assert {each.pointer for each in caught.value.errors} == {"/jobs/7/task", "/jobs/7/schedule", "/jobs/7/priority"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*JobSpec.__struct_fields__, "x", "a/b"]), JSON | st.just(FUNCTION), max_size=6))
def test_whatever_is_refused_names_its_fields(value: dict[str, object]) -> None:
    """Each complaint points into the body, at something that is there or is missing."""
    errors: tuple[FieldError, ...] = ()
    try:
        decode(msgspec.json.encode(value), JobSpec)
    except InvalidInput as error:
        errors = error.errors or (FieldError("/nothing", ""),)
    names = {*JobSpec.__struct_fields__, "x", "a~1b"}
    assert all(each.pointer.split("/")[1] in names and each.detail for each in errors)
    assert len({each.pointer for each in errors}) == len(errors), "each once"
