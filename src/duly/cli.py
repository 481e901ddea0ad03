"""The command line. Commands are imported when they are called: `duly --help` imports none of them.

    exit codes   0 ok · 1 failed · 2 usage · 3 not found · 4 conflict · 124 timed out; --wait: the run's own

stdout carries what was asked for and nothing else; notes, progress and errors go to stderr.
"""

from __future__ import annotations

import sys

from cyclopts import App

from duly import __version__

app = App(
    name="duly",
    version=__version__,
    help_format="plaintext",  # the default, Markdown, costs a third of the time of `duly --help`
    help="A distributed job scheduler that says how late each run was.",
    help_epilogue="The server is that of --server, else DULY_SERVER, else duly.toml, else http://127.0.0.1:7350.",
)


def _offer(parent: App, place: str, **commands: str) -> None:
    """Commands by name: `function: what it does`, in a module of duly.commands."""
    for name, offer in commands.items():
        function, _, text = offer.partition(": ")
        parent.command(f"duly.commands.{place}:{function}", name=name, help=text)


def _group(name: str, text: str) -> App:
    group = App(name=name, help=text)
    app.command(group)
    return group


_offer(
    app,
    "server",
    up="up: Run everything here in one process: API, scheduler, worker, one directory.",
    migrate="migrate: Bring the stores of a directory to this version's schema.",
)
_offer(app, "create", create="create: Create a job: a command with its files, a function, or an HTTP request.")

_offer(
    _group("job", "Look at jobs, and change them."),
    "job",
    list="list_jobs: List jobs.",
    show="show: Show a job.",
    update="update: Change fields of a job.",
    delete="delete: Delete jobs; their history stays until its retention ends.",
    pause="pause: Let no run of these jobs start.",
    resume="resume: Let runs start again; what fell due meanwhile is not made up for.",
    trigger="trigger: Run jobs now, besides their schedules.",
    next="upcoming: Show the next times of a job.",
)
_offer(
    _group("run", "Look at runs, their logs and their files."),
    "run",
    list="list_runs: List runs, newest first.",
    show="show: Show a run and its attempts.",
    cancel="cancel: End runs, or ask for the end of those that are out.",
    retry="retry: Run again what has ended.",
    log="log: Print what a run has written.",
    output="output: List or fetch the files that a run left.",
    explain="explain: Say why a run is where it is.",
)
_offer(
    _group("schedule", "Try out schedules."),
    "schedule",
    preview="preview_schedule: Show the next times of a schedule; needs no server.",
)
_offer(
    _group("crontab", "Come from cron."),
    "crontab",
    **{"import": "import_crontab: Make jobs of the lines of a crontab; once, however often."},
)
_offer(
    _group("token", "Tokens of the server whose directory is here."),
    "token",
    create="create_token: Make a token; it is shown once.",
    list="list_tokens: List tokens, without their secrets.",
    revoke="revoke_token: End a token; servers notice within a second.",
)
_offer(
    _group("config", "Settings."),
    "config",
    show="show: Show each setting and where it came from.",
)
_offer(app, "doctor", doctor="doctor: Check this installation and the server, and say what to do.")
_offer(app, "bench", bench="bench: Measure lateness and throughput on this machine.")
_offer(app, "completion", completion="completion: Print a completion script for bash, zsh or fish.")


def run(words: list[str]) -> int:
    """Runs a command line and tells its exit code. SystemExit for one that cannot be parsed."""
    from duly.commands.exits import guarded

    return guarded(lambda: app(words, result_action="return_value"), as_json="--json" in words)


def main() -> None:
    """Runs the command line of this process, and ends it with the exit code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
