"""Crontabs of real servers, read as cron reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from duly.core.contract import JobSpec
from duly.core.crontab import Crontab, Entry, parse_crontab
from duly.core.definition import convert, define_job
from duly.core.model import CommandTask, JobId

EXAMPLES = Path(__file__).parents[2] / "examples" / "crontab"


def read(text: str, *, system: bool = False, identity: str = "host:/etc/crontab") -> Crontab:
    return parse_crontab(text, identity=identity, system=system, timezone="Europe/Berlin")


def only(text: str, *, system: bool = False) -> Entry:
    crontab = read(text, system=system)
    assert not crontab.problems
    assert len(crontab.entries) == 1
    return crontab.entries[0]


def test_the_crontab_of_a_debian_server() -> None:
    """Stock /etc/crontab and cron.d files: each line is a job, except the one at boot, which is told."""
    crontab = read((EXAMPLES / "system").read_text(), system=True)
    assert [(entry.line, entry.schedule, entry.user) for entry in crontab.entries] == [
        (19, "17 * * * *", "root"),
        (20, "25 6 * * *", "root"),
        (21, "47 6 * * 7", "root"),
        (22, "52 6 1 * *", "root"),
        (28, "0 */12 * * *", "root"),
        (31, "09,39 * * * *", "root"),
        (34, "5-55/10 * * * *", "root"),
        (35, "59 23 * * *", "root"),
        (38, "57 0 * * 0", "root"),
    ]
    assert crontab.entries[0].name == "cd / && run-parts --report /etc/cron.hourly"
    assert crontab.entries[0].env == {"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
    assert crontab.entries[8].name == "Scrub RAID arrays on the first Sunday of each month"
    assert "$(date +%d) -le 7" in crontab.entries[8].command
    assert [(problem.line, problem.text.split(":")[0]) for problem in crontab.problems] == [
        (41, "@reboot is not supported")
    ]
    assert [note.text for note in crontab.notes] == ["runs as the worker's user, not as root"]


def test_a_users_crontab() -> None:
    """Backups, rotation, a mail with its text after %, and a time zone in the middle of the file."""
    crontab = read((EXAMPLES / "user").read_text())
    assert not crontab.problems
    assert [entry.timezone for entry in crontab.entries] == ["Europe/Berlin"] * 4 + ["America/New_York"] * 3
    mail = crontab.entries[4]
    assert mail.command == 'mail -s "Market report" desk@example.org'
    assert mail.stdin == "Good morning,\n\nthe report is attached: 100% complete.\n"
    assert crontab.entries[0].env["PGPASSFILE"] == "/home/backup/.pgpass"
    assert "MAILTO" not in crontab.entries[0].env
    assert [note.text for note in crontab.notes] == ["output is kept with each run and not mailed to ops@example.org"]


@pytest.mark.parametrize(("name", "system"), [("system", True), ("user", False)])
def test_every_entry_is_a_job_that_the_server_takes(name: str, system: bool) -> None:
    """What an entry gives passes the checks of the API."""
    for entry in read((EXAMPLES / name).read_text(), system=system).entries:
        job = define_job(convert(entry.job(), JobSpec), job_id=JobId("j"), now=0)
        assert isinstance(job.task, CommandTask)
        assert job.task.argv == ("/bin/sh", "-c", entry.command)
        assert (job.misfire, job.overlap, job.retry.max_attempts) == ("skip", "allow", 1)


def test_importing_again_makes_nothing_new() -> None:
    """Keys depend on the file and the entry, not on where in the file it stands."""
    first = read("0 2 * * * dump\n0 3 * * * copy\n").entries
    moved = read("# a comment\n\n0 3 * * * copy\n0 2 * * * dump\n").entries
    named = {entry.command: entry.key for entry in first}
    assert len(set(named.values())) == 2
    assert moved[1].key == named["dump"]
    assert read("0 2 * * * dump\n", identity="other:/etc/crontab").entries[0].key != named["dump"]
    assert read("5 2 * * * dump\n").entries[0].key != named["dump"]


def test_the_same_line_twice_is_two_jobs() -> None:
    """Cron runs it twice, too."""
    entries = read("0 2 * * * dump\n0 2 * * * dump\n").entries
    assert len({entry.key for entry in entries}) == 2


@pytest.mark.parametrize(
    ("line", "command", "stdin"),
    [
        ("* * * * * cat", "cat", None),
        ("* * * * * cat%a", "cat", "a\n"),
        ("* * * * * cat%a%", "cat", "a\n"),
        ("* * * * * cat%", "cat", "\n"),
        ("* * * * * cat %one%two", "cat", "one\ntwo\n"),
        (r"* * * * * date +\%F", "date +%F", None),
        (r"* * * * * date +\%F%in\%put", "date +%F", "in%put\n"),
        (r"* * * * * printf 'a\\n'", r"printf 'a\\n'", None),
    ],
)
def test_percent_signs(line: str, command: str, stdin: str | None) -> None:
    """The first bare % begins the input, further ones are line ends, an escaped one is itself."""
    entry = only(line)
    assert (entry.command, entry.stdin) == (command, stdin)


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("A=b", "A", "b"),
        ("A = b c ", "A", "b c"),
        ('A="b c "', "A", "b c "),
        ("'A'=b", "A", "b"),
        ("A=", "A", ""),
        ("  LANG=C.UTF-8", "LANG", "C.UTF-8"),
    ],
)
def test_settings_become_the_environment(setting: str, name: str, value: str) -> None:
    """NAME=value in cron's forms, for the entries below it."""
    assert only(f"{setting}\n0 2 * * * dump").env[name] == value


def test_settings_hold_for_what_follows() -> None:
    """An entry above a setting does not have it."""
    first, second = read("0 2 * * * a\nX=1\n0 3 * * * b\n").entries
    assert "X" not in first.env
    assert second.env["X"] == "1"


def test_shell_time_zone_and_random_delay() -> None:
    """SHELL is what runs the command; CRON_TZ beats TZ; RANDOM_DELAY, in minutes, is jitter."""
    entry = only("SHELL=/bin/bash\nTZ=UTC\nCRON_TZ=Asia/Tokyo\nRANDOM_DELAY=30\n0 2 * * * dump")
    assert entry.argv == ["/bin/bash", "-c", "dump"]
    assert entry.timezone == "Asia/Tokyo"
    assert entry.jitter == "30m"
    assert entry.env["TZ"] == "UTC"
    assert "CRON_TZ" not in entry.env


@pytest.mark.parametrize(
    ("line", "schedule"),
    [
        ("@daily x", "@daily"),
        ("@midnight x", "@daily"),
        ("@Annually x", "@yearly"),
        ("0~30 2 * * * x", "H(0-30) 2 * * *"),
        ("~ 2 * * * x", "H(0-59) 2 * * *"),
        ("0 2 * jan-mar mon,wed x", "0 2 * jan-mar mon,wed"),
        ("\t0 2 * * 7 x", "0 2 * * 7"),
    ],
)
def test_times(line: str, schedule: str) -> None:
    """Nicknames, names, and times that are drawn."""
    assert only(line).schedule == schedule


@pytest.mark.parametrize(
    ("line", "system", "reason"),
    [
        ("@reboot x", False, "@reboot is not supported"),
        ("@often x", False, "@often is not a time"),
        ("60 2 * * * x", False, "60"),
        ("0 0 31 2 * x", False, "31"),
        ("0 2 * *", False, "neither a setting"),
        ("0 2 * * *", False, "neither a setting"),
        ("0 2 * * * root", True, "no user"),
        ("CRON_TZ=Mars/Base\n0 2 * * * x", False, "Mars/Base"),
    ],
)
def test_what_cannot_be_imported_says_why(line: str, system: bool, reason: str) -> None:
    """One problem, with the line and the reason; the other lines are read all the same."""
    crontab = read(line + "\nCRON_TZ=UTC\n0 1 * * * root fine\n", system=system)
    assert [entry.schedule for entry in crontab.entries] == ["0 1 * * *"]
    assert len(crontab.problems) == 1
    assert crontab.problems[0].line == line.count("\n") + 1
    assert reason in crontab.problems[0].text


def test_names_come_from_the_comment_above() -> None:
    """The first line of a comment right above; else the command itself."""
    text = "# Dump\n# every night\n0 2 * * * a\n\n# far away\n\n0 3 * * * b\n# off\n# 0 4 * * * c\n0 5 * * * d\n"
    assert [entry.name for entry in read(text).entries] == ["Dump", "b", "d"]
