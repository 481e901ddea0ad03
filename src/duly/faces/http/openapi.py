"""The OpenAPI 3.1 document, made from the table of operations and the shapes of the contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, get_args

import msgspec

from duly.core import contract
from duly.core.contract import BatchSpec, JobSpec, JobView, Problem
from duly.core.messages import Beat
from duly.core.tokens import Scope
from duly.core.worker_wire import WorkerBeat
from duly.faces.http.operation import Operation, Returns, Schema
from duly.faces.http.query import Query
from duly.version import __version__

_REFERENCE: Final = "#/components/schemas/{name}"
_TEXT: Final[Schema] = {"type": "string"}
_EVENT: Final[Schema] = {
    "description": "Each event of the stream",
    "type": "object",
    "properties": {"id": _TEXT, "event": _TEXT, "data": _TEXT},
}
_TAG_PATTERN: Final = r'^(\*|\s*(W/)?"[!#-~]*"\s*(,\s*(W/)?"[!#-~]*"\s*)*)$'
_FORMATS: Final = {
    get_args(contract.Duration)[1].description: "duly-duration",
    get_args(contract.Instant)[1].description: "date-time",
}
_EVERYWHERE: Final = (400, 408, 421, 500, 503, 504, 507)  # what may come of any request
_GUARDED: Final = (401, 403, 429)  # and of those that need a scope

REQUEST_HEADERS: Final[Mapping[str, tuple[str, Schema, str]]] = {
    "Idempotency-Key": (
        "Makes the call safe to repeat: the same key and body find the first job",
        {"type": "string", "pattern": "^[!-~]{1,255}$", "minLength": 1, "maxLength": 255},
        "nightly-report-2026-12-01",
    ),
    "If-Match": ("Only if the job still has this ETag", {"type": "string", "pattern": _TAG_PATTERN}, '"3"'),
    "If-None-Match": ("Only if it has another ETag", {"type": "string", "pattern": _TAG_PATTERN}, '"3"'),
    "Prefer": ("Wait up to that many seconds for the run's end", _TEXT, "wait=10"),
    "Range": ("One range", _TEXT, "bytes=0-1023"),
    "If-Range": ("The range only if the ETag is this one, else everything", _TEXT, f'"sha256:{"0" * 64}"'),
    "Content-Digest": (
        "Is checked, if it holds a sha-256",
        _TEXT,
        "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
    ),
    "Last-Event-ID": (
        "The stream goes on after this event",
        {"type": "string", "pattern": "^[A-Za-z0-9]{1,32}-[0-9]{1,18}$"},
        "7c58b3b4-1",
    ),
}
ANSWER_HEADERS: Final[Mapping[str, tuple[str, Schema]]] = {
    "X-Request-Id": ("Names this request in logs", _TEXT),
    "ETag": ("The version, in double quotes", {"type": "string", "pattern": '^"[^"]+"$'}),
    "Location": ("Where it is", _TEXT),
    "Link": ('The next page, rel="next"', _TEXT),
    "Preference-Applied": ("The wait that was granted", {"type": "string", "pattern": "^wait=[0-9]+$"}),
    "Retry-After": ("Seconds", {"type": "integer", "minimum": 1}),
    "Content-Disposition": ("Always an attachment", _TEXT),
    "Content-Range": ("The range and the whole size", _TEXT),
    "Accept-Ranges": ("Ranges of bytes are served", _TEXT),
    "Cache-Control": ("How long it may be kept", _TEXT),
    "WWW-Authenticate": ("How to authenticate", _TEXT),
}
_PROBLEM_HEADERS: Final = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
_ALWAYS: Final = frozenset({"ETag", "Location", "Content-Disposition", "Accept-Ranges", "Content-Range"})
_PATHS: Final[Mapping[str, tuple[str, str]]] = {
    "job_id": ("A job's id", "019712ab-3c4d-7e5f-8a9b-0c1d2e3f4a5b"),
    "version": ("A version of the job", "1"),
    "run_id": ("A run's id", "019712ab-3c4d-7e5f-8a9b-0c1d2e3f4a5b@20261201T010000.000000Z"),
    "worker_id": ("A worker's id", "w-3f2a11bc"),
    "digest": ("A file's digest", f"sha256:{'0' * 64}"),
    "path": ("The file's path; slashes may stand as they are", "report.pdf"),
}


def document(operations: Sequence[Operation]) -> Schema:
    """The whole document."""
    shapes = _shapes(operations)
    schemas, components = msgspec.json.schema_components(shapes, ref_template=_REFERENCE)
    known: dict[int, Schema] = {id(shape): schema for shape, schema in zip(shapes, schemas, strict=True)}
    _amend(components)
    paths: dict[str, Schema] = {}
    for operation in operations:
        if operation.document:
            paths.setdefault(operation.document_path, {})[operation.method.lower()] = _operation(operation, known)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "duly",
            "version": __version__,
            "description": (
                "Jobs that run at their time, and a scheduler that says how late each run was. Errors are "
                "application/problem+json (RFC 9457); `code` is stable. Instants are RFC 3339, durations 1h30m."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name} for name in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": _problem_responses(),
            "headers": {name: _header(name) for name in ANSWER_HEADERS},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "duly_<key id>_<secret>; not needed on loopback while no token exists",
                }
            },
        },
    }


def _shapes(operations: Iterable[Operation]) -> list[Any]:
    """Every type that stands in a body, each once."""
    found: dict[int, Any] = {id(Problem): Problem, id(JobSpec): JobSpec}
    for operation in operations:
        bodies = [] if operation.body is None else list(operation.body.media.values())
        for shape in [*bodies, *(returns.shape for returns in operation.returns.values())]:
            if shape is not None and not isinstance(shape, dict):
                found[id(shape)] = shape
    return list(found.values())


def _amend(components: dict[str, Schema]) -> None:
    """What types cannot say."""
    _add_formats(components)
    for name, schema in components.items():
        for field, default in list(schema.get("properties", {}).items()):
            if name.endswith(("View", "List", "LastRun", "Job", "Problem", "BatchItem")):
                default.pop("default", None)  # a default of an answer means nothing to its reader
            if field == "type" and name == "Problem":
                default["format"] = "uri-reference"
    jobs = components[BatchSpec.__name__]["properties"]["jobs"]
    jobs["items"] = {
        "anyOf": [{"$ref": _REFERENCE.format(name=JobSpec.__name__)}, {}],
        "description": "Jobs, checked one by one: what is wrong with one is told in its result",
    }
    schedule = components[JobSpec.__name__]["properties"]["schedule"]
    schedule["format"] = "duly-schedule"
    schedule["description"] = "now, in 5m, an RFC 3339 time, every 15m, after 15m, 0 2 * * *, @daily, RRULE:…"
    schedule["examples"] = ["every 15m", "0 2 * * *", "2026-12-01T09:00:00Z"]
    components[WorkerBeat.__name__]["examples"] = [
        {"shard": "s0", "beat": {"worker": {"id": _PATHS["worker_id"][1], "slots": 4}, "capacity": {"process": 4}}}
    ]
    components[Beat.__name__]["required"].remove("type")  # it can be nothing else there
    components["JobPatch"] = _patch_of(components[JobSpec.__name__])
    components[JobView.__name__]["properties"]["id"]["examples"] = [_PATHS["job_id"][1]]


def _patch_of(spec: Schema) -> Schema:
    """An RFC 7396 merge patch on a shape: every field may be left out, or be null."""
    fields: Schema = {}
    for name, field in spec["properties"].items():
        if name == "task":
            fields[name] = {"type": "object", "description": "merged into the task; another kind replaces it"}
            continue
        field = {key: value for key, value in field.items() if key != "default"}
        fields[name] = field if "anyOf" in field else {"anyOf": [field, {"type": "null"}]}
    return {
        "title": "JobPatch",
        "description": "An RFC 7396 merge patch on a job; null puts a field back to its default.",
        "type": "object",
        "properties": fields,
        "additionalProperties": False,
    }


def _add_formats(node: Any) -> None:
    """Tell durations and instants from other strings, wherever they stand."""
    if isinstance(node, list):
        for item in node:
            _add_formats(item)
    elif isinstance(node, dict):
        name = _FORMATS.get(node["description"]) if isinstance(node.get("description"), str) else None
        if name is not None and node.get("type") == "string":
            node["format"] = name
        for item in node.values():
            _add_formats(item)


def _operation(operation: Operation, known: Mapping[int, Schema]) -> Schema:
    guarded = isinstance(operation.scope, Scope)
    statuses = {*_EVERYWHERE, *(_GUARDED if guarded else ()), *operation.problems}
    if operation.query is not Query or operation.namespace != "none":
        statuses.add(422)
    statuses.add(422)  # an unknown query parameter
    answers = {str(status): _returns(returns, known) for status, returns in sorted(operation.returns.items())}
    answers |= {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in sorted(statuses)}
    result: Schema = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": _parameters(operation),
        "responses": answers,
        "security": [{"token": []}, {}] if guarded else [],
    }
    if operation.description:
        result["description"] = operation.description
    if isinstance(operation.scope, Scope):
        result["x-duly-scope"] = operation.scope.word
    if operation.body is not None:
        content = {media: {"schema": _schema(shape, known)} for media, shape in operation.body.media.items()}
        result["requestBody"] = {"required": True, "content": content}
    return result


def _returns(returns: Returns, known: Mapping[int, Schema]) -> Schema:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *returns.headers)}
    result: Schema = {"description": returns.description, "headers": headers}
    if returns.shape is not None:
        schema = _schema(returns.shape, known)
        result["content"] = {
            media: {"schema": _EVENT if media == "text/event-stream" else schema} for media in returns.media
        }
    return result


def _schema(shape: Any, known: Mapping[int, Schema]) -> Schema:
    return shape if isinstance(shape, dict) else known[id(shape)]


def _parameters(operation: Operation) -> list[Schema]:
    found: list[Schema] = []
    for part in operation.path.split("/"):
        if part.startswith("{"):
            name = part.strip("{}").removesuffix(":path")
            description, example = _PATHS[name]
            found.append(
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "description": description,
                    "schema": {"type": "string", "minLength": 1},
                    "example": example,
                }
            )
    if operation.namespace != "none":
        words = "The namespace to make it in" if operation.namespace == "one" else "Only this namespace"
        found.append(
            {
                "name": "namespace",
                "in": "query",
                "description": f"{words}; the header Duly-Namespace says the same",
                "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_.-]{0,62}$"},
            }
        )
    found.extend(_query_parameters(operation.query))
    for name in operation.headers:
        description, schema, example = REQUEST_HEADERS[name]
        found.append({"name": name, "in": "header", "description": description, "schema": schema, "example": example})
    return found


def _query_parameters(shape: type[Query]) -> list[Schema]:
    schema = next(iter(msgspec.json.schema(shape)["$defs"].values()))
    found: list[Schema] = []
    for name, given in schema["properties"].items():
        field = _without_null(dict(given))
        _add_formats(field)
        description = field.pop("description", None)
        if field.get("default", 0) in (None, []):
            field.pop("default")
        parameter: Schema = {"name": name, "in": "query", "schema": field}
        if description is not None:
            parameter["description"] = description
        found.append(parameter)
    return found


def _without_null(field: Schema) -> Schema:
    """A parameter that may be left out is not one that may be null."""
    choices = field.pop("anyOf", None)
    if choices is None:
        if isinstance(field.get("enum"), list):
            field["enum"] = [value for value in field["enum"] if value is not None]
        return field
    rest = [choice for choice in choices if choice.get("type") != "null"]
    return field | rest[0] if len(rest) == 1 else field | {"anyOf": rest}


def _header(name: str) -> Schema:
    description, schema = ANSWER_HEADERS[name]
    required = name in _ALWAYS or name == "X-Request-Id"
    return {"description": description, "schema": schema, **({"required": True} if required else {})}


def _problem_responses() -> dict[str, Schema]:
    found: dict[str, Schema] = {}
    for status in (400, 401, 403, 404, 408, 409, 412, 413, 415, 416, 421, 422, 429, 500, 503, 504, 507):
        names = ("X-Request-Id", *_PROBLEM_HEADERS.get(status, ()))
        found[f"Problem{status}"] = {
            "description": HTTPStatus(status).phrase,
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
            "content": {"application/problem+json": {"schema": {"$ref": _REFERENCE.format(name=Problem.__name__)}}},
        }
    return found
