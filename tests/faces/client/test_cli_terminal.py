"""What a terminal shows, and what a pipe gets."""

from __future__ import annotations

import sys

import pytest

from duly.commands import terminal

IDS = ("0197aaaa-0000-7000-8000-000000000000", "0197bbbb-0000-7000-8000-000000000000")


def test_a_pipe_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Cells separated by tabs, without headings; no note on stderr."""
    terminal.table(("ID", "NAME", "COUNT"), [(IDS[0], "nightly\treport", None), (IDS[1], "", 3)])
    terminal.note("only for people")
    terminal.table(("ID",), [], empty="nothing")
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{IDS[0]}\tnightly report\t", f"{IDS[1]}\t\t3"]
    assert err == ""


def test_a_terminal_gets_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Headings; ids stay whole when it is narrow; markup in names is only text; NO_COLOR is heeded."""
    for name, value in (("COLUMNS", "60"), ("NO_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    terminal.table(("ID", "NAME", "COUNT"), [(IDS[0], "[red]a long name of a job that goes on[/red]", 1)])
    terminal.table(("ID",), [], empty="nothing")
    out, err = capsys.readouterr()
    assert IDS[0] in out
    assert "[red]a" in out
    assert "\x1b[3" not in out
    assert err == "nothing\n"


def test_fields_leave_out_what_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    """Names and values, a line each."""
    terminal.fields([("id", "x"), ("labels", {"a": "b"}), ("none", None), ("empty", []), ("files", ["a", "b"])])
    assert capsys.readouterr().out == "id\tx\nlabels\ta=b\nfiles\ta, b\n"
