"""The command line. Commands are imported when they are called: `duly --help` imports none of them.

    exit codes   0 ok · 1 failed · 2 usage · 3 not found · 4 conflict · 124 timed out; --wait: the run's own

stdout carries what was asked for and nothing else; notes, progress and errors go to stderr.
"""

from __future__ import annotations

import sys

from cyclopts import App, Parameter

from duly.version import __version__

app = App(
    name="duly",
    version=__version__,
    help="A distributed job scheduler that says how late each run was.",
    help_epilogue="The server is that of --server, else DULY_SERVER, else duly.toml, else http://127.0.0.1:7350.",
    default_parameter=Parameter(show_default=lambda value: None if value in (None, False, "", ()) else value),
    help_format="plaintext",  # the default, Markdown, costs a third of the time of `duly --help`
)


def _offer(parent: App, place: str, **commands: str) -> None:
    """Commands by name: `function: what it does. | what --json prints`, in a module of duly.commands."""
    for name, offer in commands.items():
        function, _, text = offer.partition(": ")
        text, _, shape = text.partition(" | ")
        told = f"{text}\n\n--json prints {shape}" if shape else text
        parent.command(f"duly.commands.{place}:{function}", name=name, help=told)


def _group(name: str, text: str) -> App:
    group = App(name=name, help=text)
    app.command(group)
    return group


_offer(
    app,
    "server",
    up="up: Run everything here in one process: API, scheduler, worker, one directory. | "
    '{"url": …} once it answers. SIGTERM or Ctrl-C ends it, after what runs has ended or the grace is over.',
    migrate="migrate: Bring stores to this version's schema: the configured shards, else those of a directory. | "
    '{"schema": number}, or {"steps": number} for shards',
)
_offer(
    app,
    "roles",
    servicer='servicer: Serve the API over the shards of a cluster; as many as you like. | {"url": …} once it is up',
    scheduler='scheduler: Schedule for shards, or stand by for those that another leads. | {"name": …} once it is up',
    worker='worker: Run what schedulers hand out. | {"name": …} once it is up',
)
_offer(
    app,
    "cluster",
    cluster="run: Run a whole cluster on this machine: PostgreSQL, NATS, each role a process of its own. | "
    '{"url", "servicers": [their own URLs], "ready_s"} once it is ready',
)
_offer(
    _group(
        "member", "Look at the processes of a running `duly cluster`; stop and kill them, to try what their loss does."
    ),
    "cluster",
    list='list_members: Show what runs in the cluster of a directory. | {"url", "pid", "members": […]}',
    stop="stop: Stop one process, by name, until it is started again. | as list",
    start="start: Start a stopped process again. | as list",
    promote="promote: Let the standby of a shard lead; what led is made its standby. | as list",
    kill="kill: Kill a process, as a crash would; the cluster starts it again. | as list",
)
_offer(
    app,
    "create",
    create="create: Create a job: a command with its files, a function, or an HTTP request. | "
    "the job; with --wait the first run, once it has ended. Without --json, the id of the job.",
)

_offer(
    app,
    "register",
    register="register: Make the jobs of an app's scheduled functions, or bring them up to date, at a deployment. | "
    '{"items": [{"id", "function", "schedule"}]}',
)

_offer(
    _group("job", "Look at jobs, and change them. A job is named by its id, or its name if only one has it."),
    "job",
    list='list_jobs: List jobs. | {"items": [jobs], "next": cursor or null, "partial": …}',
    show="show: Show a job. | the job",
    update="update: Change fields of a job. | the job as it is then",
    versions="versions: List the definitions that a job has had, newest first. | "
    '{"items": [{"version", "at", "by", "current", "changed", "definition"}], "next": cursor or null, "partial": …}',
    diff="diff: Show what differs between two definitions of a job: of the last change, unless versions are named. | "
    '{"from", "to": versions, "changed": [fields], "diff": [lines]}',
    restore="restore: Define a job again as it was at a version; paused or not, it stays so. | the job as it is then",
    delete='delete: Delete jobs; their history stays until its retention ends. | {"items": [{"id", "state"}]}',
    pause='pause: Let no run of these jobs start; what runs goes on. | {"items": [jobs]}',
    resume='resume: Let runs start again; what fell due meanwhile is not made up for. | {"items": [jobs]}',
    trigger='trigger: Run jobs now, besides their schedules. | {"items": [runs]}',
    next='upcoming: Show the next times of a job. | {"schedule", "timezone", "items": [{"at", "local", "note", …}]}',
)
_offer(
    _group("run", "Look at runs, their logs and files. A run is named by its id, or by a job for its newest run."),
    "run",
    list='list_runs: List runs, newest first. | {"items": [runs], "next": cursor or null, "partial": …}',
    show="show: Show a run and its attempts. | the run",
    cancel='cancel: End runs, or ask for the end of those that are out. | {"items": [runs]}',
    retry='retry: Run again what has ended, as new runs of the jobs. | {"items": [the new runs]}',
    log='log: Print what a run has written. | lines of {"stream", "text"}',
    output="output: List the files that a run left; fetch them with -o, print one by its PATH. | "
    '{"items": [{"path", "size", "digest"}]}, with "file" for what was fetched',
    explain='explain: Say why a run is where it is. | {"run_id", "state", "summary", "facts": […]}',
)
_offer(
    _group("schedule", "Try out schedules."),
    "schedule",
    preview="preview_schedule: Show the next times of a schedule; needs no server. | "
    '{"schedule", "timezone", "kind", "description", "items": [{"at", "local", "moved_by_dst", "note"}]}',
)
_offer(
    _group("crontab", "Make jobs of a crontab."),
    "crontab",
    **{
        "import": "import_crontab: Make jobs of the lines of a crontab; again, it makes nothing new. | "
        '{"dry_run", "items": [{"line", "id", "name", …}], "problems": [{"line", "detail"}], "notes": […]}. '
        "Ends with 1 if a line could not be imported. The crontab stays as it is: take the lines out once the jobs run."
    },
)
_offer(
    _group("token", "Make, list and revoke the tokens of the server whose directory is here."),
    "token",
    create='create_token: Make a token; it is shown once. | {"token", "id", "scope", "namespaces", "state", …}',
    list='list_tokens: List tokens, without their secrets. | {"items": [{"id", "scope", "state", …}]}',
    revoke="revoke_token: End a token; servers notice within a second. | what is kept of the token",
)
_offer(
    _group("webhook", "Look at the webhooks of duly.toml, which tell other systems of runs; test them, make secrets."),
    "webhook",
    list='list_webhooks: Show the webhooks of the server that answers. | {"items": [{"name", "state", "dropped", …}]}',
    test="trial: Send a test event from here to the webhooks of the settings file. | "
    '{"items": [{"name", "status", "problem"}]}. Ends with 1 if one was not taken.',
    secret='secret: Make a secret to sign events with. | {"secret"}',  # noqa: S106 - the name of a command
)
_offer(
    _group("config", "Look at the settings, and where each comes from."),
    "config",
    show="show: Show each setting and where it came from. | "
    '{"items": [{"name", "value", "origin", "description"}]}, the origin being flag, a variable, a file or default',
)
_offer(
    app,
    "top",
    top="top: Watch what runs, what is due, what was late, and the workers. | "
    '{"at", "stats", "running": [{"job", "run"}], "due", "overdue", "late", "workers", "shards"}, one look',
)
_offer(
    app,
    "doctor",
    doctor="doctor: Check this installation and the server, and say what to do. | "
    '{"items": [{"check", "status": "ok|warning|failed", "detail", "advice"}]}. Ends with 1 if a check failed.',
)
_offer(app, "bench", bench="bench: Measure lateness and throughput on this machine. | the figures")
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
