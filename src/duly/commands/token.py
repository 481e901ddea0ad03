"""`duly token …`: works on the directory of the server, not through it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from duly.commands.connection import Output
from duly.commands.terminal import put, put_json, short_time, table
from duly.core.instants import format_instant, parse_duration

if TYPE_CHECKING:
    from duly.core.tokens import TokenRecord

_PLAIN = Output()

Directory = Annotated[Path | None, Parameter(name="--dir", help="Directory of the server.")]


def create_token(
    *,
    scope: Annotated[
        Literal["read", "submit", "operate", "admin", "worker"],
        Parameter(help="Each includes those before it; worker is for workers, and for nothing else."),
    ] = "submit",
    namespace: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(), help="Namespaces it is good for, `*` for all; repeatable. `default`, or all for a worker."
        ),
    ] = (),
    expires: Annotated[str | None, Parameter(help="After this time it ends, as 30d; never by default.")] = None,
    note: Annotated[str, Parameter(help="What it is for.")] = "",
    dir_: Directory = None,
    output: Output = _PLAIN,
) -> None:
    """Make a token; it is shown once."""
    from duly.adapters.system_clock import SystemClock
    from duly.core.tokens import KEY_ID_BYTES, SECRET_BYTES, Scope
    from duly.faces import tokens

    now = SystemClock().wall()
    text, record = tokens.create_token(
        _file(dir_),
        entropy=secrets.token_bytes(KEY_ID_BYTES + SECRET_BYTES),
        scope=Scope.named(scope),
        namespaces=namespace or (("*",) if scope == "worker" else ("default",)),
        now=now,
        expires_at=None if expires is None else now + parse_duration(expires),
        note=note,
    )
    if output.json:
        put_json({"token": text, **_document(record)})
    else:
        put(text)


def list_tokens(*, dir_: Directory = None, output: Output = _PLAIN) -> None:
    """List tokens, without their secrets."""
    from duly.faces import tokens

    records = tokens.list_tokens(_file(dir_))
    if output.json:
        put_json({"items": [_document(record) for record in records]})
        return
    rows = [
        (
            record.id,
            record.scope,
            ",".join(record.namespaces),
            _state(record),
            short_time(format_instant(record.created_at)),
            record.note,
        )
        for record in records
    ]
    table(("ID", "SCOPE", "NAMESPACES", "STATE", "CREATED", "NOTE"), rows, empty="no tokens: loopback is open")


def revoke_token(
    key: Annotated[str, Parameter(name="ID", help="The token's id, from `duly token list`.")],
    *,
    dir_: Directory = None,
    output: Output = _PLAIN,
) -> None:
    """End a token; servers notice within a second."""
    from duly.adapters.system_clock import SystemClock
    from duly.faces import tokens

    record = tokens.revoke_token(_file(dir_), key, now=SystemClock().wall())
    if output.json:
        put_json(_document(record))
    else:
        put(f"{record.id}\trevoked")


def _file(directory: Path | None) -> Path:
    from duly.faces.tokens import FILE_NAME
    from duly.settings import load

    settings = load({"dir": None if directory is None else str(directory)}).settings
    return Path(settings.dir) / FILE_NAME


def _state(record: TokenRecord) -> str:
    from duly.adapters.system_clock import SystemClock

    if record.revoked_at is not None:
        return "revoked"
    return "active" if record.usable(SystemClock().wall()) else "expired"


def _document(record: TokenRecord) -> dict[str, Any]:
    def text(value: int | None) -> str | None:
        return None if value is None else format_instant(value)

    return {
        "id": record.id,
        "scope": record.scope,
        "namespaces": list(record.namespaces),
        "state": _state(record),
        "note": record.note,
        "created_at": text(record.created_at),
        "expires_at": text(record.expires_at),
        "revoked_at": text(record.revoked_at),
    }
