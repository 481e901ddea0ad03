"""Webhooks: which events of runs go where, as what, and signed how. Pure.

    rule of duly.toml ─▶ check_rule ─▶ Filter(rule).wants(event, job)      run ─▶ events_of ─▶ cloud_event ─▶ signature

Events are CloudEvents 1.0 in structured mode; headers and signatures are those of Standard Webhooks
(https://www.standardwebhooks.com): a receiver may use any of its libraries.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from duly.core import views
from duly.core.errors import InvalidInput
from duly.core.instants import SECOND, format_instant
from duly.core.model import Job, Run, RunState

WebhookEvent = Literal[
    "overdue", "late", "retrying", "succeeded", "failed", "missed", "skipped", "cancelled", "lost", "quarantined"
]
Wanted = WebhookEvent | Literal["finished"]
USUAL: Final[tuple[Wanted, ...]] = ("overdue", "late", "failed", "missed", "lost", "quarantined")  # to be looked at
MAX_RULES: Final = 50
MAX_BODY: Final = 64 * 1024  # bytes of one event; beyond, parts of the run are left out, and named
MAX_URL: Final = 2_000
CONTENT_TYPE: Final = "application/cloudevents+json"
KEY_PREFIX: Final = "whsec_"

_LEAVE_OUT: Final = ("run/result", "run/attempts", "run/outputs", "run/error", "job/labels")  # in turn, until it fits
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


class WebhookRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A `[[webhook]]` of duly.toml. `names` and `namespaces` may hold `*` and `?`; what is empty restricts nothing.

    `secret`, or the lines of `secret_file`: of several keys each signs, so that one can be replaced by another.
    """

    url: str
    name: str = ""
    events: list[Wanted] = msgspec.field(default_factory=lambda: list(USUAL))
    names: list[str] = []
    namespaces: list[str] = []
    labels: dict[str, str] = {}
    secret: str | list[str] = []
    secret_file: str = ""
    allow_private: bool = False


def check_rules(rules: Sequence[WebhookRule], pointer: str = "/webhook") -> None:
    """Raises InvalidInput that names the rule and its field."""
    if len(rules) > MAX_RULES:
        raise InvalidInput.at(pointer, f"more than {MAX_RULES} webhooks")
    seen: set[str] = set()
    for index, rule in enumerate(rules):
        place = f"{pointer}/{index}"
        _check_url(rule.url, f"{place}/url")
        if rule.name and not _NAME.match(rule.name):
            raise InvalidInput.at(f"{place}/name", f"{rule.name[:80]!r} is not 1 to 63 letters, digits, dots, - and _")
        if not rule.events:
            raise InvalidInput.at(f"{place}/events", "names no event; leave it out for the usual ones")
        if rule.secret and rule.secret_file:
            raise InvalidInput.at(f"{place}/secret_file", "give secret or secret_file, not both")
        if not rule.secret and not rule.secret_file:
            raise InvalidInput.at(f"{place}/secret", "is needed to sign events; make one with: duly webhook secret")
        for secret in [rule.secret] if isinstance(rule.secret, str) else rule.secret:
            key_of(secret, f"{place}/secret")
        name = name_of(rule, index)
        if name in seen:
            raise InvalidInput.at(f"{place}/name", f"two webhooks are named {name!r}")
        seen.add(name)


def _check_url(url: str, pointer: str) -> None:
    try:
        parts = urlsplit(url)
        port_is_one = parts.port is None or parts.port > 0
    except ValueError as error:
        raise InvalidInput.at(pointer, f"is not an address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_one:
        raise InvalidInput.at(pointer, f"{url[:80]!r} is not like https://example.com/duly")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput.at(pointer, "holds a user or password; events are signed instead, see secret")
    if parts.fragment or len(url) > MAX_URL or not url.isascii() or re.search(r"[\x00-\x20\x7f]", url):
        raise InvalidInput.at(pointer, f"has a fragment, white space, other than ASCII, or more than {MAX_URL} letters")


def name_of(rule: WebhookRule, index: int) -> str:
    """The name by which metrics and `duly doctor` know it."""
    return rule.name or f"webhook-{index}"


def origin_of(url: str) -> str:
    """Scheme, host and port: what may be shown of an address, for its path is often a secret."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def key_of(secret: str, pointer: str) -> bytes:
    """The key in `whsec_` and 24 to 64 bytes in base64. Raises InvalidInput, which does not tell the secret."""
    try:
        key = base64.b64decode(secret.removeprefix(KEY_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(KEY_PREFIX) or not key:
        raise InvalidInput.at(pointer, f"is not {KEY_PREFIX} followed by base64; make one with: duly webhook secret")
    if not 24 <= len(key) <= 64:
        raise InvalidInput.at(pointer, f"holds {len(key)} bytes, not 24 to 64; make one with: duly webhook secret")
    return key


def secret_text(key: bytes) -> str:
    """How a key is written in settings."""
    return KEY_PREFIX + base64.b64encode(key).decode()


class Filter:
    """What one rule asks for."""

    def __init__(self, rule: WebhookRule) -> None:
        ends: set[str] = {state.word for state in RunState if state.terminal}
        self.events: frozenset[str] = frozenset(rule.events) | (ends if "finished" in rule.events else set())
        self._names = _globs(rule.names)
        self._namespaces = _globs(rule.namespaces)
        self._labels = rule.labels.items()

    def wants(self, event: WebhookEvent, job: Job) -> bool:
        """Whether an event of this job's run goes there."""
        return (
            event in self.events
            and (self._names is None or self._names.match(job.name) is not None)
            and (self._namespaces is None or self._namespaces.match(job.namespace) is not None)
            and self._labels <= job.labels.items()
        )


def _globs(patterns: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(fnmatch.translate, patterns))) if patterns else None


def events_of(kind: str, run: Run) -> Iterator[WebhookEvent]:
    """The events in what a role has just written: `kind` is "run.started", "run.retrying", "run.finished", or
    "run.overdue" for one that still waits past its margin.

    A run is late once: when its first attempt was seen to start late. An attempt that was handed back unstarted is
    followed by another and is no retry.
    """
    if kind == "run.started":
        if run.late:
            yield "late"
    elif kind == "run.retrying":
        if run.attempts and run.attempts[-1].state != "released":
            yield "retrying"
    elif kind == "run.overdue":
        yield "overdue"
    elif kind == "run.finished" and run.state.terminal:
        yield run.state.word  # type: ignore[misc]  # every terminal state is an event


def event_id(event: WebhookEvent, run: Run) -> str:
    """The same for the same event, whoever sends it and however often."""
    text = f"{event}\0{run.id}\0{run.attempt if event in ('retrying', 'overdue') else 0}"
    return "evt_" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def cloud_event(event: WebhookEvent, run: Run, job: Job, at: int) -> bytes:
    """The event as JSON, at most MAX_BODY bytes. `at`: µs, when it was written."""
    shown: dict[str, Any] = msgspec.to_builtins(views.run_view(run))
    about = {"id": job.id, "namespace": job.namespace, "name": job.name, "labels": job.labels}
    data: dict[str, Any] = {"job": about, "run": shown}
    document = {
        "specversion": "1.0",
        "id": event_id(event, run),
        "type": f"duly.run.{event}",
        "source": f"/v1/jobs/{job.id}",
        "subject": run.id,
        "time": format_instant(at),
        "datacontenttype": "application/json",
        "data": data,
    }
    body = msgspec.json.encode(document)
    left_out: list[str] = []
    for field in _LEAVE_OUT:
        if len(body) <= MAX_BODY:
            return body
        part, _, name = field.partition("/")
        data[part].pop(name, None)
        left_out.append(field)
        data["left_out"] = left_out
        body = msgspec.json.encode(document)
    return body


def trial_event(identity: str, at: int) -> bytes:
    """An event that tells of nothing, to try a receiver with."""
    return msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": identity,
            "type": "duly.test",
            "source": "/v1/webhooks",
            "time": format_instant(at),
            "datacontenttype": "application/json",
            "data": {},
        }
    )


def signed_headers(identity: str, at: int, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """The headers that prove where it comes from, and when. `at`: µs, when it is sent."""
    stamp = str(at // SECOND)
    content = f"{identity}.{stamp}.".encode() + body
    marks = (base64.b64encode(hmac.digest(key, content, "sha256")).decode() for key in keys)
    return {
        "content-type": CONTENT_TYPE,
        "webhook-id": identity,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(f"v1,{mark}" for mark in marks),
    }
