"""Commands against a running server: what stdout carries, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from duly.cli import run as run_words
from duly.commands.exits import run_exit

EXAMPLES = Path(__file__).parents[3] / "examples" / "crontab"
Duly = Callable[..., Any]


@pytest.fixture
def duly(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Duly:
    """Runs a command line against the server; gives code, out, err, and the JSON if it asked for that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DULY_SERVER", server)

    def call(*words: str | Path) -> Any:
        try:
            code = run_words([str(word) for word in words])
        except SystemExit as ended:
            code = int(str(ended.code))
        out, err = capsys.readouterr()
        document = json.loads(out) if "--json" in words and out.count("\n") == 1 else None
        return SimpleNamespace(code=code, out=out, err=err, json=document)

    return call


def test_create_and_wait(duly: Duly, report: Path, tmp_path: Path) -> None:
    """The run's own outcome is the exit code; logs and files come back."""
    (tmp_path / "x.csv").write_text("a,b\n")
    words = ("create", report, "--schedule", "now", "--input", tmp_path / "x.csv", "--env", "WHO=me", "--name", "rep")
    made = duly(*words, "--wait", "--", "there")
    assert (made.code, made.err) == (0, "")
    job_id = made.out.strip()
    assert duly("job", "show", job_id, "--json").json["name"] == "rep"
    assert duly("run", "log", "rep").out == "hello there me\ncareful\n"
    assert duly("run", "log", "rep", "--stream", "stderr").out == "careful\n"
    followed = duly("run", "log", "-f", job_id)
    assert (followed.out, followed.err) == ("hello there me\n", "careful\n")
    assert [json.loads(line) for line in duly("run", "log", "rep", "--json").out.splitlines()] == [
        {"stream": "stdout", "text": "hello there me\n"},
        {"stream": "stderr", "text": "careful\n"},
    ]
    assert duly("run", "output", "rep").out.startswith("copy.csv\t4\tsha256:")
    assert duly("run", "output", "rep", "copy.csv").out == "a,b\n"
    fetched = duly("run", "output", "rep", "-o", tmp_path / "out", "--json").json["items"][0]
    assert Path(fetched["file"]).read_text() == "a,b\n"
    assert duly("run", "output", "rep", "nothing.csv", "--json").code == 2
    assert duly("run", "explain", "rep").out.startswith("It succeeded")
    assert duly("run", "show", "rep", "--json").json["exit_code"] == 0


def test_a_failing_run_decides_the_exit_code(duly: Duly, report: Path) -> None:
    """3 for exit 3; with --json, stdout has the run and nothing else."""
    failed = duly("create", report, "--schedule", "now", "--retry", "1", "--wait", "--", "there", "3")
    assert failed.code == 3
    assert "exited with 3" in failed.err
    failed = duly("create", report, "--schedule", "now", "--retry", "1", "--wait", "--json", "--", "there", "4")
    assert (failed.code, failed.json["state"], failed.err) == (4, "failed", "")


def test_versions_are_listed_compared_and_restored(duly: Duly) -> None:
    """The last change, unless versions are named; what is restored is a version of its own."""
    job = duly("create", "--url", "http://127.0.0.1:1/", "--schedule", "@yearly", "--name", "versioned").out.strip()
    assert duly("job", "diff", "versioned").out == ""
    assert duly("job", "update", job, "--priority", "9", "--schedule", "@daily").code == 0
    assert duly("job", "pause", job).code == 0
    assert duly("job", "update", job, "--priority", "1").code == 0
    rows = [line.split("\t") for line in duly("job", "versions", "versioned").out.splitlines()]
    assert [(row[0], row[3], row[4]) for row in rows] == [
        ("4", "now", "priority"),
        ("2", "", "priority, schedule"),
        ("1", "", ""),
    ]
    listed = duly("job", "versions", job, "--limit", "1", "--json").json
    assert (listed["items"][0]["definition"]["priority"], listed["items"][0]["changed"]) == (1, ["priority"])
    rest = duly("job", "versions", job, "--cursor", listed["next"], "--json").json
    assert ([each["version"] for each in rest["items"]], rest["next"]) == ([2, 1], None)
    lines = duly("job", "diff", job).out.splitlines()
    assert [line.split("\t")[0] for line in lines[:2]] == ["--- version 2", "+++ version 4"]
    assert lines[2].startswith("@@ -")
    assert {line for line in lines[3:] if line[0] in "+-"} == {'-  "priority": 9,', '+  "priority": 1,'}
    since = duly("job", "diff", job, "1", "--json").json
    assert (since["from"]["version"], since["to"]["version"]) == (1, 4)
    assert since["changed"] == ["priority", "schedule"]
    assert '+  "schedule": "@daily",' in since["diff"]
    assert duly("job", "diff", job, "1", "3", "--json").json["to"]["version"] == 2  # in force while it was paused
    assert duly("job", "diff", job, "1", "9").code == 3
    assert duly("job", "restore", job, "1", "--if-version", "2").code == 4
    restored = duly("job", "restore", job, "1", "--json").json
    assert (restored["version"], restored["schedule"], restored["priority"]) == (5, "@yearly", 5)
    assert restored["paused"] is True
    assert duly("job", "restore", job, "99").code == 3


@pytest.mark.parametrize(
    ("state", "exit_code", "kind", "expected"),
    [
        ("succeeded", 0, None, 0),
        ("failed", 7, "exit", 7),
        ("failed", -9, "signal", 137),
        ("failed", None, "exception", 1),
        ("failed", None, "timeout", 124),
        ("cancelled", None, None, 1),
        ("skipped", None, None, 1),
    ],
)
def test_exit_codes_of_runs(state: str, exit_code: int | None, kind: str | None, expected: int) -> None:
    """As a shell would tell them."""
    error = None if kind is None else SimpleNamespace(kind=kind)
    assert run_exit(SimpleNamespace(state=state, exit_code=exit_code, error=error)) == expected  # type: ignore[arg-type]  # a run in three fields


def test_functions_requests_and_programs(duly: Duly, server: str) -> None:
    """The three other kinds of task."""
    made = duly("create", "--function", "office:add", "--schedule", "now", "--wait", "--json", "--", "2", "3")
    assert (made.code, made.json["result"]) == (0, 5)
    made = duly("create", "--url", f"{server}/healthz", "--method", "GET", "--schedule", "now", "--wait")
    assert made.code == 0
    made = duly("create", "--program", "echo", "--schedule", "in 1h", "--json", "--", "-n", "--x")
    assert made.json["task"]["argv"] == ["echo", "-n", "--x"]


def test_waiting_ends(duly: Duly) -> None:
    """124, as `timeout` has it."""
    late = duly("create", "--program", "true", "--schedule", "in 1h", "--wait-timeout", "50ms")
    assert late.code == 124
    assert "waiting after 50ms" in late.err


def test_the_life_of_a_job(duly: Duly) -> None:
    """Named by name; each verb tells what became of it."""
    words = ("create", "--program", "true", "--schedule", "every 1h", "--name", "tick", "--label", "a=b")
    job_id = duly(*words, "--key", "tick").out.strip()
    assert duly(*words, "--key", "tick").out.strip() == job_id
    assert duly(*words, "--key", "tick", "--priority", "9").code == 4
    changed = duly("job", "update", "tick", "--priority", "9", "--schedule", "every 30m", "--json").json
    assert (changed["priority"], changed["schedule"], changed["version"]) == (9, "every 30m", 2)
    assert duly("job", "update", "tick", "--priority", "1", "--if-version", "1").code == 4
    assert duly("job", "update", "tick", "--task", '{"argv": ["false"]}', "--json").json["task"]["argv"] == ["false"]
    assert len(duly("job", "next", "tick", "--count", "3", "--json").json["items"]) == 3
    assert duly("job", "pause", "tick").out == f"{job_id}\tpaused\n"
    assert duly("job", "next", "tick", "--json").json["items"] == []
    assert duly("job", "resume", "tick", "--json").json["items"][0]["state"] == "active"
    assert [job["id"] for job in duly("job", "list", "--label", "a:b", "--json").json["items"]] == [job_id]
    assert duly("job", "update", "tick", "--task", '{"argv": ["true"]}', "--retry", "1").code == 0
    triggered = duly("job", "trigger", "tick", "--wait", "--json")
    assert (triggered.code, triggered.json["items"][0]["state"]) == (0, "succeeded")
    runs = duly("run", "list", "--job", "tick", "--since", "1h", "--state", "succeeded", "--json").json["items"]
    assert [one["id"] for one in runs] == [triggered.json["items"][0]["id"]]
    assert duly("run", "retry", "tick", "--wait").code == 0
    assert duly("job", "delete", "tick").out == f"{job_id}\tdeleted\n"
    assert duly(*words, "--key", "tock").code == 0
    assert duly("job", "show", "tick", "--json").json["id"] != job_id


def test_what_is_not_there(duly: Duly) -> None:
    """3, and what to do; in JSON, too, on stderr."""
    missing = duly("job", "show", "nobody")
    assert (missing.code, missing.out) == (3, "")
    assert "duly job list" in missing.err
    missing = duly("run", "show", "01970000-0000-7000-8000-000000000000@20260101T000000.000000Z", "--json")
    assert (missing.code, missing.out, json.loads(missing.err)["code"]) == (3, "", "not_found")


def test_names_must_be_clear(duly: Duly) -> None:
    """Two jobs of one name: 4, with their ids."""
    ids = [duly("create", "--program", "true", "--schedule", "in 1h", "--name", "twin").out.strip() for _ in range(2)]
    unclear = duly("job", "show", "twin")
    assert unclear.code == 4
    assert all(job_id in unclear.err for job_id in ids)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("create", "--program", "true", "--schedule", "61 * * * *"), "61 is not a minute"),
        (("create", "nothing-here", "--schedule", "now"), "there is no file"),
        (("create", "--schedule", "now"), "give CODE"),
        (("create", "--program", "true", "--schedule", "now", "--env", "A"), "NAME=VALUE"),
        (("create", "--url", "http://a", "--schedule", "now", "--", "x"), "takes no CODE"),
        (("job", "update", "x"), "nothing to change"),
        (("job", "pause"), "at least one job"),
        (("schedule", "preview", "every day"), "day"),
        (("schedule", "preview", "@daily", "--timezone", "Mars/Base"), "Mars/Base"),
    ],
)
def test_mistakes_are_usage_errors(duly: Duly, words: tuple[str, ...], says: str) -> None:
    """2, and one sentence about it."""
    wrong = duly(*words)
    assert (wrong.code, wrong.out) == (2, "")
    assert says in wrong.err


def test_no_server(duly: Duly, monkeypatch: pytest.MonkeyPatch) -> None:
    """1, and how to start one."""
    monkeypatch.setenv("DULY_SERVER", "http://127.0.0.1:1")
    gone = duly("job", "list")
    assert (gone.code, gone.out) == (1, "")
    assert "duly up" in gone.err


def test_previews_need_no_server(duly: Duly, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules are values; clock changes are explained."""
    monkeypatch.setenv("DULY_SERVER", "http://127.0.0.1:1")
    words = ("schedule", "preview", "30 2 * * *", "--timezone", "Europe/Berlin", "--from", "2027-03-27T00:00:00Z")
    shown = duly(*words, "--count", "2", "--json").json
    assert [item["local"] for item in shown["items"]] == ["2027-03-27T02:30:00+01:00", "2027-03-28T03:00:00+02:00"]
    assert "clock" in shown["items"][1]["note"]
    assert duly(*words, "--count", "2", "--dst", "skip").out.count("\n") == 2


def test_crontabs(duly: Duly) -> None:
    """A dry run makes nothing; importing twice makes each job once; what cannot be imported is told."""
    dry = duly("crontab", "import", EXAMPLES / "user", "--dry-run", "--timezone", "Europe/Berlin", "--json")
    assert dry.code == 0
    assert all(item["next_run_at"] and "id" not in item for item in dry.json["items"])
    assert "ops@example.org" in dry.json["notes"][0]["detail"]
    assert duly("job", "list", "--label", "from:crontab", "--json").json["items"] == []
    words = ("crontab", "import", EXAMPLES / "system", "--system", "--label", "from=crontab", "--json")
    first, second = duly(*words), duly(*words)
    assert (first.code, second.code) == (1, 1)
    assert "@reboot" in first.json["problems"][0]["detail"]
    assert [item["id"] for item in first.json["items"]] == [item["id"] for item in second.json["items"]]
    jobs = duly("job", "list", "--label", "from:crontab", "--json").json["items"]
    assert len(jobs) == len(first.json["items"]) == 9


def test_doctor(duly: Duly, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is well with the server; without one, it fails and says what to do."""
    well = duly("doctor", "--json")
    assert well.code == 0
    assert {item["check"]: item["status"] for item in well.json["items"]}["clock"] == "ok"
    assert {"server", "token", "workers", "shard s0"} <= {item["check"] for item in well.json["items"]}
    monkeypatch.setenv("DULY_SERVER", "http://127.0.0.1:1")
    ill = duly("doctor", "--json")
    assert ill.code == 1
    assert "duly up" in ill.json["items"][-1]["advice"]


def test_config_show(duly: Duly, server: str) -> None:
    """Each setting with its origin."""
    settings = {item["name"]: item for item in duly("config", "show", "--json").json["items"]}
    assert (settings["server"]["value"], settings["server"]["origin"]) == (server, "DULY_SERVER")
    assert settings["port"]["origin"] == "default"


def test_tokens(duly: Duly, tmp_path: Path) -> None:
    """Made once, listed without their secret, revoked."""
    directory = ("--dir", tmp_path / "data")
    made = duly("token", "create", "--scope", "operate", "--expires", "30d", "--note", "ci", *directory, "--json").json
    assert made["token"].startswith(f"duly_{made['id']}_")
    listed = duly("token", "list", *directory, "--json")
    assert made["token"] not in listed.out
    assert [(one["scope"], one["state"], one["note"]) for one in listed.json["items"]] == [("operate", "active", "ci")]
    assert duly("token", "revoke", made["id"], *directory).code == 0
    assert duly("token", "list", *directory, "--json").json["items"][0]["state"] == "revoked"
    assert duly("token", "revoke", "abc", *directory).code == 3


def test_migrate(duly: Duly, tmp_path: Path) -> None:
    """Makes or updates the stores of a directory, and tells the schema."""
    assert duly("migrate", "--dir", tmp_path / "data", "--json").json["schema"] >= 1
