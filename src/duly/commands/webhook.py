"""`duly webhook …`: secrets, how the server's webhooks are, and a first event by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from duly.commands.connection import Connection, Output
from duly.commands.exits import FAILED
from duly.commands.terminal import note, put, put_json, table

_PLAIN = Output()
_HERE = Connection()


def secret(*, output: Output = _PLAIN) -> None:
    """Make a secret, for `secret` or a line of `secret_file` in a [[webhook]] and for the receiver."""
    import secrets

    from duly.core.webhook import secret_text

    text = secret_text(secrets.token_bytes(32))
    if output.json:
        put_json({"secret": text})
    else:
        put(text)


def list_webhooks(*, connection: Connection = _HERE) -> None:
    """Show the webhooks of the server, and whether they are delivered."""
    with connection.client() as client:
        views = client.webhooks()
    if connection.json:
        put_json({"items": views})
        return
    rows = [
        (view.name, view.state, view.endpoint, view.delivered, view.waiting, sum(view.dropped.values()), view.problem)
        for view in views
    ]
    heads = ("NAME", "STATE", "ENDPOINT", "DELIVERED", "WAITING", "DROPPED", "PROBLEM")
    table(heads, rows, empty="no webhooks; they are [[webhook]] in duly.toml, see docs/webhooks.md")


def trial(
    *names: Annotated[str, Parameter(help="Which ones; all of the settings file by default.")],
    config: Annotated[Path | None, Parameter(help="Settings file instead of ./duly.toml.")] = None,
    output: Output = _PLAIN,
) -> int:
    """Send an event `duly.test` from here to the webhooks of the settings file; 1 if one did not take it."""
    from duly.boot.webhooks import send_test
    from duly.settings import load

    outcomes = send_test(load(path=config).settings, names)
    if output.json:
        put_json({"items": [{"name": name, "status": posted.status, "problem": posted.problem or None}
                            for name, posted in outcomes]})  # fmt: skip
    else:
        rows = [(name, "ok" if not posted.problem else "failed", posted.problem) for name, posted in outcomes]
        table(("NAME", "STATE", "PROBLEM"), rows, empty="the settings have no [[webhook]]")
        if not outcomes:
            note("see docs/webhooks.md")
    return FAILED if any(posted.problem for _, posted in outcomes) else 0
