"""Operations: what can be asked for, declared once for routing, access, parameters and the OpenAPI document.

path, method ─▶ Operation ─▶ access ─▶ query, namespace ─▶ handler(call) ─▶ answer.deliver(call)
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from duly.core.errors import NotFound
from duly.core.tokens import Scope
from duly.faces.http.access import namespace_of
from duly.faces.http.answers import Answer
from duly.faces.http.call import Call
from duly.faces.http.problems import MethodNotAllowed
from duly.faces.http.query import Query, parse_query, read_query
from duly.faces.http.settings import Context

Handler = Callable[[Call], Awaitable[Answer]]
Schema = dict[str, Any]
EVERYONE: Final = "everyone"

_FIELD = re.compile(r"\{([a-z_]+)(:path)?\}")
_NO_QUERY: Final = Query()


@dataclass(frozen=True, slots=True)
class Returns:
    """An answer as the document describes it: `shape` is a type or a JSON schema, None for no content."""

    description: str
    shape: type | Schema | None = None
    media: tuple[str, ...] = ("application/json",)
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Takes:
    """A body as the document describes it: media type → a type or a JSON schema."""

    media: Mapping[str, type | Schema]
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation. There is no default for `scope`: what everyone may do says so.

    `namespace`: "one" for what makes something in a namespace, "any" for what finds things in the caller's,
    "none" for what has no namespace.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    id: str
    summary: str
    tag: str
    scope: Scope | Literal["everyone"]
    namespace: Literal["one", "any", "none"]
    returns: Mapping[int, Returns]
    handler: Handler
    description: str = ""
    query: type[Query] = Query
    headers: tuple[str, ...] = ()
    body: Takes | None = None
    problems: tuple[int, ...] = ()
    document: bool = True

    def __post_init__(self) -> None:
        assert isinstance(self.scope, Scope) or self.scope == EVERYONE

    async def run(self, context: Context, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Check access, read the parameters, do it, deliver the answer. Raises DulyError before anything is sent."""
        headers: dict[bytes, bytes] = scope["duly.headers"]
        principal = None
        if isinstance(self.scope, Scope):
            authorization = headers.get(b"authorization")
            client = scope.get("client")
            principal = context.access.admit(
                None if authorization is None else authorization.decode("latin-1"),
                None if client is None else client[0],
                self.scope,
            )
        raw: bytes = scope["query_string"]
        pairs = parse_query(raw) if raw else []
        namespace = None
        if self.namespace != "none":
            assert principal is not None
            asked = [value for name, value in pairs if name == "namespace"]
            pairs = [pair for pair in pairs if pair[0] != "namespace"]
            if not asked and b"duly-namespace" in headers:
                asked = [headers[b"duly-namespace"].decode("latin-1")]
            namespace = namespace_of(principal, asked[-1] if asked else None, single=self.namespace == "one")
        query = read_query(pairs, self.query) if pairs else self._empty_query()
        call = Call(scope, receive, send, context=context, principal=principal, namespace=namespace, query=query)
        answer = await self.handler(call)
        await answer.deliver(call)

    def _empty_query(self) -> Query:
        return _NO_QUERY if self.query is Query else read_query([], self.query)

    @property
    def document_path(self) -> str:
        """The path as OpenAPI writes it."""
        return _FIELD.sub(r"{\1}", self.path)


@dataclass(slots=True)
class _Place:
    """A path and the operations at it, by method."""

    pattern: re.Pattern[str]
    operations: dict[str, Operation] = field(default_factory=dict)


class OperationTable(BaseRoute):
    """All operations as one route: fixed paths by lookup, others in the order of the table."""

    def __init__(self, operations: Sequence[Operation], context: Context) -> None:
        self._context = context
        self._fixed: dict[str, _Place] = {}
        self._open: list[_Place] = []
        by_path: dict[str, _Place] = {}
        for operation in operations:
            place = by_path.get(operation.path)
            if place is None:
                place = by_path[operation.path] = _Place(_pattern(operation.path))
                if "{" in operation.path:
                    self._open.append(place)
                else:
                    self._fixed[operation.path] = place
            assert operation.method not in place.operations, operation.id
            place.operations[operation.method] = operation

    def matches(self, scope: AsgiScope) -> tuple[Match, AsgiScope]:
        """FULL for every path of the table: a wrong method is answered by `handle`."""
        if scope["type"] != "http":
            return Match.NONE, {}
        path: str = scope["path"]
        root: str = scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :]
        place = self._fixed.get(path)
        if place is not None:
            return Match.FULL, {"endpoint": place, "path_params": {}}
        for place in self._open:
            match = place.pattern.fullmatch(path)
            if match is not None:
                return Match.FULL, {"endpoint": place, "path_params": match.groupdict()}
        return Match.NONE, {}

    async def handle(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the operation for the method. Raises MethodNotAllowed, and whatever the operation raises."""
        place: _Place = scope["endpoint"]
        method: str = scope["method"]
        operation = place.operations.get("GET" if method == "HEAD" else method)
        if operation is None:
            allowed = set(place.operations) | ({"HEAD"} if "GET" in place.operations else set())
            raise MethodNotAllowed(tuple(sorted(allowed)))
        scope["duly.operation"] = operation.id
        for value in scope["path_params"].values():
            if any(ord(letter) < 32 or 0xD800 <= ord(letter) <= 0xDFFF for letter in value):
                raise NotFound("no name has control characters")
        await operation.run(self._context, scope, receive, send)


def _pattern(path: str) -> re.Pattern[str]:
    expression, position = "", 0
    for match in _FIELD.finditer(path):
        expression += re.escape(path[position : match.start()])
        expression += f"(?P<{match.group(1)}>{'.+' if match.group(2) else '[^/]+'})"
        position = match.end()
    return re.compile(expression + re.escape(path[position:]), re.DOTALL)
