"""One request to a page: who asks, where they are, and what their form says."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlencode

from duly.core.contract import BlobView
from duly.core.errors import DulyError, Forbidden, InvalidInput, Malformed
from duly.core.tokens import Principal, Scope
from duly.faces.http.access import namespace_of
from duly.faces.http.call import Call
from duly.faces.http.multipart import FormReader
from duly.faces.pages.sessions import Session
from duly.roles.servicer import Servicer

if TYPE_CHECKING:
    from duly.faces.pages.site import Site

FORM_BYTES: Final = 256 * 1024  # of the fields of a form, its files apart
FIELDS: Final = 12_000
FILES: Final = 200


class SeeOther(Exception):
    """Go there instead. `cookie` is a header value to set on the way."""

    def __init__(self, path: str, *, cookies: Sequence[bytes] = ()) -> None:
        super().__init__(path)
        self.path = path
        self.cookies = cookies


class Form:
    """The fields of a form, and the files that came with it, already stored."""

    def __init__(self, fields: Mapping[str, list[str]], files: Mapping[str, list[tuple[str, BlobView]]]) -> None:
        self._fields = fields
        self.files = files

    def text(self, name: str, otherwise: str = "") -> str:
        """A field, or what stands for one that was left out."""
        return self._fields.get(name, [otherwise])[-1].replace("\r\n", "\n")

    def all(self, name: str) -> list[str]:
        """A field that may be given several times."""
        return self._fields.get(name, [])

    def __contains__(self, name: str) -> bool:
        return name in self._fields


class Visit:
    """A request, once it is known who asks."""

    def __init__(
        self,
        site: Site,
        call: Call,
        *,
        session: Session,
        fresh: bool,
        principal: Principal,
        query: Sequence[tuple[str, str]],
    ) -> None:
        self.site = site
        self.call = call
        self.session = session
        self.fresh = fresh  # the browser does not have the cookie yet
        self.principal = principal
        self.pairs = list(query)
        self.query = dict(query)
        self.path: str = call.scope["path"]

    @property
    def servicer(self) -> Servicer:
        """The use-cases."""
        return self.site.context.servicer

    @property
    def namespace(self) -> str | None:
        """The namespace that the page is about; None is any. A token of several starts with its first."""
        asked = self.query.get("namespace") or None
        allowed = self.principal.namespaces
        if asked is None and allowed is not None and len(allowed) > 1:
            asked = allowed[0]
        return namespace_of(self.principal, asked, single=False)

    @property
    def one_namespace(self) -> str:
        """The namespace of something that is made."""
        asked = self.query.get("namespace") or None
        allowed = self.principal.namespaces
        if asked is None and allowed is not None and len(allowed) > 1:
            asked = allowed[0]
        found = namespace_of(self.principal, asked, single=True)
        assert found is not None
        return found

    @property
    def csrf(self) -> str:
        """What this browser's forms carry."""
        return self.site.sessions.csrf(self.session)

    def may(self, scope: Scope) -> bool:
        """True if the caller may do what needs that scope."""
        return self.principal.allows(scope)

    def need(self, scope: Scope) -> None:
        """Raises Forbidden if the caller may not."""
        if not self.principal.allows(scope):
            raise Forbidden(f"this needs the scope {scope.word}; the token has {self.principal.scope.word}")

    def number(self, name: str, otherwise: int, least: int, most: int) -> int:
        """A whole number of the query, kept between two bounds."""
        text = self.query.get(name, "")
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            return otherwise
        return max(least, min(int(text), most))

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of some words of the query; the first, if it is another."""
        value = self.query.get(name, "")
        return value if value in choices else choices[0]

    def url(self, path: str | None = None, **changes: str | int | None) -> str:
        """This page's address, or another's, with the filters that are in force and some changes; None removes."""
        own = path is None
        kept = [
            (name, value)
            for name, value in self.pairs
            if (own or name == "namespace") and name not in changes and name not in ("format", "done", "n", "cursor")
        ]
        pairs = kept + [(name, str(value)) for name, value in changes.items() if value is not None and value != ""]
        return (self.path if own else str(path)) + (f"?{urlencode(pairs)}" if pairs else "")

    # -- forms ----------------------------------------------------------------------------------------------

    async def form(self, scope: Scope) -> Form:
        """The form of a request that changes something. Raises Forbidden without the scope or the CSRF token.

        Files are stored as they come, so the token stands before them in the form.
        """
        self.need(scope)
        if self.call.media_type == "application/x-www-form-urlencoded":
            fields = _urlencoded(await self.call.body(FORM_BYTES))
            self.site.sessions.check(None if self.fresh else self.session, fields.get("csrf", [""])[-1])
            return Form(fields, {})
        if self.call.media_type != "multipart/form-data":
            raise Malformed("send a form")
        return await self._multipart()

    async def _multipart(self) -> Form:
        limit = self.call.context.settings.max_blob_bytes
        reader = FormReader(self.call.header(b"content-type") or "", self.call.chunks(limit))
        fields: dict[str, list[str]] = {}
        files: dict[str, list[tuple[str, BlobView]]] = {}
        checked, left, stored = False, FORM_BYTES, 0
        async for part in reader.parts():
            if part.filename is None:
                data = await part.whole(left)
                left -= len(data)
                fields.setdefault(part.name, []).append(_decoded(data))
                if part.name == "csrf":
                    self.site.sessions.check(None if self.fresh else self.session, fields["csrf"][-1])
                    checked = True
                continue
            if not checked:
                raise Forbidden("the form does not begin with its token")
            if not part.filename:
                continue  # a file field that was left empty
            stored += 1
            if stored > FILES:
                raise InvalidInput(f"at most {FILES} files at once")
            blob = await self.servicer.put_blob(part.chunks(), limit=limit)
            files.setdefault(part.name, []).append((part.filename, blob))
        if not checked:
            raise Forbidden("the form has no token")
        return Form(fields, files)


def read_pairs(raw: bytes) -> list[tuple[str, str]]:
    """The query of a URL. Raises Malformed for control characters or far too many parameters."""
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=200, errors="strict")
    except (ValueError, UnicodeError):
        raise Malformed("the query of this address cannot be read") from None
    if any(ord(letter) < 32 or ord(letter) == 127 for pair in pairs for letter in "".join(pair)):
        raise Malformed("the query of this address has control characters")
    return pairs


def _urlencoded(body: bytes) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    try:
        text = body.decode("ascii")
        for name, value in parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS, errors="strict"):
            fields.setdefault(name, []).append(value)
    except (ValueError, UnicodeError):
        raise Malformed("this form cannot be read") from None
    return fields


def _decoded(data: bytes) -> str:
    try:
        return codecs.decode(data, "utf-8")
    except UnicodeDecodeError:
        raise Malformed("the fields of a form are UTF-8") from None


def complaints(error: DulyError) -> dict[str, str]:
    """What an error says, by field: `/task/argv` → sentence."""
    return {field.pointer: field.detail for field in error.errors}
