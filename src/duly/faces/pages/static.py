"""The files that pages use: in memory, addressed by their content, so that a browser keeps them for good."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final, NamedTuple

from duly.core.errors import NotFound
from duly.faces.http.answers import Answer, Reply
from duly.faces.http.call import Call

_TYPES: Final = {".js": b"text/javascript; charset=utf-8", ".css": b"text/css; charset=utf-8", ".svg": b"image/svg+xml"}
NAMES: Final = (
    "duly.css",
    "duly.js",
    "charts.js",
    "icon.svg",
    "vendor/uplot.min.js",
    "vendor/uplot.min.css",
)
# One script, because htmx looks at the page as soon as it is loaded: an extension that comes later comes too late.
JOINED: Final = {"htmx.js": ("vendor/htmx.min.js", "vendor/hx-sse.min.js")}


class _File(NamedTuple):
    body: bytes
    media: bytes
    mark: str


class StaticFiles:
    """Reads them once."""

    def __init__(self) -> None:
        root = resources.files("duly.faces.pages") / "static"
        self._files: dict[str, _File] = {}
        for name in (*NAMES, *JOINED):
            body = b"\n;\n".join(root.joinpath(part).read_bytes() for part in JOINED.get(name, (name,)))
            mark = hashlib.sha256(body).hexdigest()[:12]
            self._files[name] = _File(body, _TYPES[name[name.rindex(".") :]], mark)

    def url(self, name: str) -> str:
        """Where a page finds the file."""
        return f"/static/{self._files[name].mark}/{name}"

    def size(self, name: str) -> int:
        """Its bytes, before compression."""
        return len(self._files[name].body)

    def answer(self, call: Call) -> Answer:
        """The file of a path. Raises NotFound."""
        found = self._files.get(call.path["name"])
        if found is None:
            raise NotFound("there is no such file")
        return self.reply(call.path["name"], kept=call.path["mark"] == found.mark)

    def reply(self, name: str, *, kept: bool) -> Answer:
        """A file; `kept` for good if its address names its content."""
        found = self._files[name]
        caching = b"public, max-age=31536000, immutable" if kept else b"no-cache"
        headers = [
            (b"content-type", found.media),
            (b"cache-control", caching),
            (b"content-security-policy", b"default-src 'none'; sandbox"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]
        return Reply(found.body, headers=headers, compressible=True)
