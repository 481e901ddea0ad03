"""The small HTTP face of a process that serves no API: /healthz, /readyz and /metrics, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from duly.telemetry import Telemetry

Missing = Callable[[], list[str]]
_JSON = b"application/json"


def create_probes(missing: Missing, telemetry: Telemetry) -> ASGIApp:
    """The ASGI app. `missing` says in words what is wanting to be ready."""

    async def probes(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        found: dict[str, Callable[[], tuple[int, bytes, bytes]]] = {
            "/healthz": lambda: (200, b'{"status":"ok"}', _JSON),
            "/readyz": lambda: _readiness(missing()),
            "/metrics": lambda: _metrics(telemetry),
        }
        tell = found.get(scope["path"])
        if tell is None:
            status, body, media = 404, b'{"status":"unknown"}', _JSON
        elif scope["method"] not in ("GET", "HEAD"):
            status, body, media = 405, b'{"status":"GET only"}', _JSON
        else:
            status, body, media = tell()
        headers = [(b"content-type", media), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return probes


def _readiness(missing: list[str]) -> tuple[int, bytes, bytes]:
    if not missing:
        return 200, b'{"status":"ok"}', _JSON
    return 503, msgspec.json.encode({"status": "not ready", "missing": missing}), _JSON


def _metrics(telemetry: Telemetry) -> tuple[int, bytes, bytes]:
    body, media = telemetry.render()
    return 200, body, media.encode()
