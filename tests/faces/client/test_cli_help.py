"""`duly --help` is quick because it imports no command; every command explains itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from duly.cli import app, run

HEAVY = ("httpx2", "starlette", "apsw", "structlog", "uvicorn", "obstore", "prometheus_client", "msgspec", "asyncio")
COMMANDS = [
    *("up", "migrate", "create", "top", "doctor", "bench", "completion", "config show", "crontab import"),
    *(f"job {verb}" for verb in ("list", "show", "update", "delete", "pause", "resume", "trigger", "next")),
    *(f"run {verb}" for verb in ("list", "show", "cancel", "retry", "log", "output", "explain")),
    *("webhook list", "webhook secret", "webhook test"),
    *("schedule preview", "token create", "token list", "token revoke"),
]


def test_help_imports_nothing_heavy() -> None:
    """No server, no client, not even the core's shapes."""
    command = [sys.executable, "-X", "importtime", "-m", "duly.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert not imported.intersection(HEAVY)
    light = {"duly.cli", "duly.commands", "duly.commands.exits", "duly.core", "duly.core.errors", "duly.version"}
    assert {name for name in imported if name.startswith("duly.")} <= light
    assert "Create a job" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its help names it, and every one of its flags has a sentence."""
    assert run([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"duly {command}" in out


def test_no_command_is_a_stub() -> None:
    """What is listed can be loaded."""
    for name in app:
        if not name.startswith("-"):
            assert app[name] is not None


def test_usage_errors_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, with stdout left empty."""
    for words in (["frob"], ["job", "frob"], ["job", "show"], ["create", "x"], ["job", "list", "--state", "odd"]):
        with pytest.raises(SystemExit) as caught:
            run(words)
        assert caught.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that knows the commands."""
    assert run(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "trigger" in out
    assert "preview" in out
