"""Settings: flag > environment (`DULY_*`) > `duly.toml` > default, and where each one came from.

    duly up --port 8000        DULY_PORT=8000        port = 8000        (duly.toml)

Durations are text such as `500ms` outside and microseconds in `Settings`. Lists in the environment are separated by
commas, mappings written `key=value,…`; where they are addresses, by white space. `DULY_TOKEN_FILE` names a file that
holds the token; any text setting, list or mapping can be given so.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from duly.core.errors import InvalidInput
from duly.core.instants import MICROSECOND, MILLISECOND, MINUTE, SECOND, format_duration, parse_duration
from duly.core.webhook import WebhookRule, check_rules

FILE_NAME: Final = "duly.toml"
PREFIX: Final = "DULY_"

_MASK: Final = "********"
_DURATION: Final = {"duration": True}
_SECRET: Final = {"secret": True}
_TABLES: Final = {"tables": True}  # in the environment as JSON
_SECRET_WORDS: Final = {"secret": True, "words": True}  # in the environment parted by white space: URLs have commas


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of servers and clients. Durations are microseconds."""

    dir: Annotated[str, Meta(description="directory of the store, blobs and tokens")] = "duly-data"
    host: Annotated[str, Meta(description="address to listen on; any but loopback needs tokens")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 7350
    slots: Annotated[int, Meta(ge=0, le=10_000, description="runs in processes at once; 0: the number of CPUs")] = 0
    async_slots: Annotated[int, Meta(ge=1, le=100_000, description="async functions and requests at once")] = 1_000
    shards: Annotated[int, Meta(ge=1, le=64, description="stores side by side; fixed when the directory is made")] = 1
    app: Annotated[list[str], Meta(description="modules that register functions: MODULE:NAME of a Duly")] = []
    functions: Annotated[
        Literal["registered", "any"], Meta(description="run registered functions only, or any that can be imported")
    ] = "registered"
    functions_in: Annotated[
        Literal["processes", "threads"], Meta(description="where functions run; threads only inside a program")
    ] = "processes"
    labels: Annotated[dict[str, str], Meta(description="labels of this worker, for the `requires` of jobs")] = {}
    lead: Annotated[int, Meta(ge=0, description="how early runs go to workers", extra=_DURATION)] = 500 * MILLISECOND
    look_ahead: Annotated[
        int, Meta(ge=SECOND, description="how far ahead runs are read from the store", extra=_DURATION)
    ] = 5 * SECOND
    lease: Annotated[int, Meta(ge=SECOND, description="how long a silent worker keeps its runs", extra=_DURATION)] = (
        5 * SECOND
    )
    spin: Annotated[
        int, Meta(ge=0, description="how long a worker waits busily before an instant", extra=_DURATION)
    ] = 300 * MICROSECOND
    grace: Annotated[
        int, Meta(ge=0, description="between SIGTERM and SIGKILL for a run, and for ending cleanly", extra=_DURATION)
    ] = 10 * SECOND
    max_blob_bytes: Annotated[int, Meta(ge=0, description="largest upload")] = 1 << 30
    allow_private_addresses: Annotated[bool, Meta(description="let HTTP jobs reach loopback and private networks")] = (
        False
    )
    allowed_hosts: Annotated[list[str], Meta(description="Host headers accepted besides the address itself")] = []
    retention_interval: Annotated[
        int, Meta(ge=SECOND, description="how often old history and unused blobs are removed", extra=_DURATION)
    ] = MINUTE
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="least level logged")] = "info"
    log_format: Annotated[Literal["auto", "json", "text"], Meta(description="auto: text on a terminal, else JSON")] = (
        "auto"
    )
    server: Annotated[str, Meta(description="servicers that a client asks, separated by commas")] = (
        "http://127.0.0.1:7350"
    )
    token: Annotated[str | None, Meta(description="token that a client, or a worker, sends", extra=_SECRET)] = None
    name: Annotated[str, Meta(description="name of this process in a cluster; made of host and chance if empty")] = ""
    stores: Annotated[
        dict[str, str], Meta(description="PostgreSQL of each shard: NAME=URL, separated by spaces", extra=_SECRET_WORDS)
    ] = {}
    weights: Annotated[dict[str, float], Meta(description="share of the jobs that a shard takes, 1 unless given")] = {}
    nats: Annotated[
        list[str], Meta(description="NATS servers, nats://[TOKEN@]HOST:PORT, separated by spaces", extra=_SECRET_WORDS)
    ] = []
    nats_credentials: Annotated[str, Meta(description="NATS credentials file, instead of a login in the address")] = ""
    nats_ca: Annotated[
        str, Meta(description="certificates that NATS servers are checked by; the system's if empty")
    ] = ""
    cluster_key: Annotated[
        list[str],
        Meta(description="signs messages between roles; the first signs, all are believed", extra=_SECRET_WORDS),
    ] = []
    blobs: Annotated[str, Meta(description="where files are: a directory or s3://BUCKET/PREFIX; in `dir` if empty")] = (
        ""
    )
    s3_endpoint: Annotated[str, Meta(description="address of an S3-like store; Amazon's if empty")] = ""
    s3_region: Annotated[str, Meta(description="region of the bucket")] = "us-east-1"
    s3_access_key: Annotated[str, Meta(description="access key; that of the environment or the machine if empty")] = ""
    s3_secret_key: Annotated[str, Meta(description="secret key of the access key", extra=_SECRET)] = ""
    blob_cache: Annotated[int, Meta(ge=0, description="bytes that a worker keeps of files fetched from S3")] = 1 << 30
    webhook: Annotated[
        list[WebhookRule], Meta(description="where events of runs are sent, see docs/webhooks.md", extra=_TABLES)
    ] = []
    probe_host: Annotated[str, Meta(description="address at which schedulers and workers tell their health")] = (
        "127.0.0.1"
    )
    probe_port: Annotated[int, Meta(ge=-1, le=65535, description="port for that; 0 takes a free one, -1 none")] = -1


class Setting(msgspec.Struct, frozen=True):
    """A setting with what decided it: `flag`, a variable's name, a file's path, or `default`."""

    name: str
    value: Any  # as written in a file: durations are text
    origin: str
    description: str
    secret: bool = False


class Loaded(msgspec.Struct, frozen=True):
    """Settings, and where each came from."""

    settings: Settings
    origins: dict[str, str]

    def __iter__(self) -> Iterator[Setting]:
        for name, meta in _metas().items():
            value = getattr(self.settings, name)
            if _is(meta, "duration"):
                value = format_duration(value)
            if _is(meta, "tables"):
                value = [_masked_table(rule) for rule in value]
            secret = _is(meta, "secret")
            yield Setting(
                name,
                _masked(value) if secret else value,
                self.origins.get(name, "default"),
                meta.description or "",
                secret,
            )


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Loaded:
    """All settings. A flag that is None was not given.

    `path` names the file, else `DULY_CONFIG` does; else it is `duly.toml` here, if there is one. Raises InvalidInput
    that names the setting and where it was written.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, Any] = {}
    origins: dict[str, str] = {}
    named = path or environ.get(f"{PREFIX}CONFIG")
    file = Path(named or FILE_NAME)
    if named or file.is_file():
        for name, value in _read(file).items():
            _take(given, origins, name, value, str(file))
    for name in Settings.__struct_fields__:
        for variable, value in _from_environment(environ, name):
            _take(given, origins, name, value, variable)
    for name, value in (flags or {}).items():
        if value is not None and value != ():
            _take(given, origins, name, value, "flag")
    return Loaded(_decode(given, origins), origins)


def _masked(value: Any) -> Any:
    """How much of a secret is shown: that there is one, and the names of several."""
    if isinstance(value, dict):
        return dict.fromkeys(value, _MASK)
    if isinstance(value, list):
        return [_MASK] * len(value)
    return _MASK if value else value


def _masked_table(rule: WebhookRule) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(rule)
    return {name: _masked(value) if name == "secret" else value for name, value in shown.items()}


def _take(given: dict[str, Any], origins: dict[str, str], name: str, value: Any, origin: str) -> None:
    meta = _metas().get(name)
    if meta is None:
        raise InvalidInput.at(f"/{name}", f"{origin} has a setting {name!r} that duly does not know")
    if _is(meta, "duration") and isinstance(value, str):
        try:
            value = parse_duration(value)
        except InvalidInput as error:
            raise InvalidInput.at(f"/{name}", f"{error.detail} (from {origin})") from None
    elif _is(meta, "duration") and not isinstance(value, str):
        raise InvalidInput.at(f"/{name}", f"{value!r} does not say its unit; write it like 500ms (from {origin})")
    given[name], origins[name] = value, origin


def _from_environment(environ: Mapping[str, str], name: str) -> Iterator[tuple[str, Any]]:
    variable = f"{PREFIX}{name.upper()}"
    file = environ.get(f"{variable}_FILE")
    if file:
        try:
            yield f"{variable}_FILE", _value(name, Path(file).read_text().strip())
        except OSError as error:
            raise InvalidInput.at(f"/{name}", f"{variable}_FILE: {file!r} {error.strerror}") from None
    value = environ.get(variable)
    if value is not None and value != "":
        yield variable, _value(name, value)


def _value(name: str, text: str) -> Any:
    """The text as a list or mapping where the setting is one."""
    if _is(_metas()[name], "tables"):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise InvalidInput.at(f"/{name}", f"is not JSON: {error} (from {PREFIX}{name.upper()})") from None
    kind = get_origin(_hint(name))
    if kind not in (list, dict):
        return text
    parts = text.split() if _is(_metas()[name], "words") else [part.strip() for part in text.split(",")]
    if kind is list:
        return [part for part in parts if part]
    return dict(part.partition("=")[::2] for part in parts if part)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not TOML: {error}") from None


def _decode(given: dict[str, Any], origins: dict[str, str]) -> Settings:
    try:
        settings = msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$.")
        name, _, rest = where.rstrip("`").partition("[")
        origin = origins.get(name)
        within = "/" + rest.replace("]", "").replace("[", "/").replace(".", "/") if name == "webhook" and rest else ""
        raise InvalidInput.at(
            f"/{name}{within}", text[:1].lower() + text[1:] + (f" (from {origin})" if origin else "")
        ) from None
    try:
        check_rules(settings.webhook)
    except InvalidInput as error:
        found = error.errors[0]
        raise InvalidInput.at(found.pointer, f"{found.detail} (from {origins.get('webhook', 'default')})") from None
    return settings


def _is(meta: Meta, mark: str) -> bool:
    return bool((meta.extra or {}).get(mark))


def _hint(name: str) -> Any:
    return get_type_hints(Settings)[name]


def _metas() -> dict[str, Meta]:
    hints = get_type_hints(Settings, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in Settings.__struct_fields__}


def durations() -> frozenset[str]:
    """The settings that are durations."""
    return frozenset(name for name, meta in _metas().items() if _is(meta, "duration"))
