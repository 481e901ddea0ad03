"""What a terminal shows, and what a pipe gets."""

from __future__ import annotations

import sys

import pytest

from duly.commands import exits, terminal
from duly.commands.shown import ColouredText
from duly.core.errors import DulyError, NotFound, Unauthenticated

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


def test_a_narrow_terminal_gets_blocks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where whole columns would not fit: a line for each cell, nothing cut; control characters are only marked."""
    for name, value in (("COLUMNS", "40"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.table(("ID", "STATE", "WHY"), [(IDS[0], "failed", "x\x1b]0;title\x07"), (IDS[1], "lost", None)])
    assert capsys.readouterr().out.splitlines() == [
        f"id     {IDS[0]}",
        "state  failed",
        "why    x\ufffd]0;title\ufffd",
        "",
        f"id     {IDS[1]}",
        "state  lost",
    ]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"plain\ttext\r\n", b"plain\ttext\r\n"),
        (b"\x1b[1;31mred\x1b[0m", b"\x1b[1;31mred\x1b[0m"),
        (b"\x1b[31mred", b"\x1b[31mred\x1b[0m"),
        (b"a\x1b[2Jb\x1b[10;10Hc\x1b[?1049hd", b"abcd"),
        (b"a\x1b]0;owned\x07b\x1b]52;c;cm0gLXJm\x1b\\c", b"abc"),
        (b"a\x1bPq#0\x1b\\b\x1bcc", b"abc"),
        (b"a\x07\x08\x00b\xc2\x9bJc", b"abJc"),
        ("né\U0001f40d".encode(), "né\U0001f40d".encode()),
        (b"\xff\xfe", "\ufffd\ufffd".encode()),
        (b"a\x1b[" + b"1;" * 100 + b"mb", b"ab"),
        (b"a\x1b[31\nb", b"a\nb"),
    ],
)
def test_a_log_cannot_command_the_terminal(written: bytes, shown: bytes) -> None:
    """Text and colours pass, however the bytes are cut; all else is left out."""
    whole = ColouredText()
    assert whole.feed(written) + whole.end() == shown
    each = ColouredText()
    assert b"".join(each.feed(bytes([byte])) for byte in written) + each.end() == shown


def test_every_error_says_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    """But for those that name what is wrong with the request itself."""

    def below(kind: type[DulyError]) -> set[type[DulyError]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__() if each.__module__ == "duly.core.errors"))

    plain = {"invalid_input", "malformed", "conflict"}
    for kind in below(DulyError):
        assert kind.code in plain or exits.advice_for(kind("something")), kind
        code = exits.guarded(lambda kind=kind: _raise(kind("something")))
        assert code in (1, 2, 3, 4, 124)
        assert "something" in capsys.readouterr().err
    assert exits.advice_for(NotFound("there is no job 'x'; see: duly job list")) is None
    assert "token list" in str(exits.advice_for(Unauthenticated("this token was revoked or has expired")))


def _raise(error: DulyError) -> None:
    raise error
