"""The directory of a cluster, and what is kept in it over restarts.

DIR/cluster.json  its shards and secrets, readable by its owner only      DIR/lock     held while it runs
DIR/duly.toml     the settings of its roles, written anew at each start   DIR/control  where `duly member stop` asks
DIR/postgres/…  DIR/nats/…  DIR/blobs/…  DIR/logs/…  DIR/tokens.json
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from duly.core.errors import Conflict, InvalidInput
from duly.core.instants import format_duration
from duly.core.tokens import KEY_ID_BYTES, SECRET_BYTES, Scope, token_key_id
from duly.faces.tokens import FILE_NAME as TOKENS
from duly.faces.tokens import create_token, list_tokens
from duly.settings import Settings, durations


class Identity(msgspec.Struct, kw_only=True):
    """What makes a directory this cluster and no other. `leading` and `in_step`: see standby.py."""

    shards: list[str]
    password: str
    nats_password: str
    key: str  # signs messages between roles
    token: str = ""  # of the roles among each other, once there are tokens
    leading: dict[str, str] = {}  # shard → which of its two servers takes writes
    in_step: list[str] = []  # shards whose standby has all that was acknowledged


class Home:
    """A cluster's directory, which is made if it is not there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.logs = self.directory / "logs"
        self.blobs = self.directory / "blobs"
        self.settings_file = self.directory / "duly.toml"
        self.control = self.directory / "control"
        self._identity = self.directory / "cluster.json"

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Nobody else runs a cluster here meanwhile. The kernel lets go of it when this process ends, however."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs.mkdir(exist_ok=True)
        with (self.directory / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(f"a cluster runs in {self.directory} already; `duly member list` tells of it") from None
            yield

    def identity(self, shards: int) -> Identity:
        """Read, or made up the first time. Raises InvalidInput if the directory has another number of shards."""
        try:
            found = msgspec.json.decode(self._identity.read_bytes(), type=Identity)
        except FileNotFoundError:
            found = Identity(
                shards=[f"s{number}" for number in range(shards)],
                password=secrets.token_urlsafe(24),
                nats_password=secrets.token_urlsafe(24),
                key=secrets.token_urlsafe(32),
            )
            self.keep(found)
        if len(found.shards) != shards:
            raise InvalidInput.at("/shards", f"{self.directory} was made with {len(found.shards)} shards, not {shards}")
        return found

    def roles_token(self, identity: Identity, now: int) -> str | None:
        """What roles show to servicers: a token of their own, once anybody needs one here; else None."""
        path = self.directory / TOKENS
        usable = {record.id for record in list_tokens(path) if record.usable(now)}
        if not usable:
            return None
        if not identity.token or token_key_id(identity.token) not in usable:
            entropy = secrets.token_bytes(KEY_ID_BYTES + SECRET_BYTES)
            note = "the roles of duly cluster"
            identity.token, _ = create_token(
                path, entropy=entropy, scope=Scope.ADMIN, namespaces=("*",), now=now, note=note
            )
            self.keep(identity)
        return identity.token

    def keep(self, identity: Identity) -> None:
        """Write it, durably."""
        _write_private(self._identity, msgspec.json.format(msgspec.json.encode(identity)))

    def write_settings(self, settings: Settings) -> None:
        """All that is not the default, as a settings file."""
        lines = [f"{name} = {_toml(value)}" for name, value in _given(settings).items()]
        _write_private(self.settings_file, ("\n".join(lines) + "\n").encode())


def _given(settings: Settings) -> dict[str, Any]:
    defaults, timed = Settings(), durations()
    found = {name: getattr(settings, name) for name in Settings.__struct_fields__}
    return {
        name: format_duration(value) if name in timed else value
        for name, value in found.items()
        if value is not None and value != getattr(defaults, name)
    }


def _toml(value: Any) -> str:
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)


def _write_private(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
