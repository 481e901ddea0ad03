"""Jobs that come with their files, as multipart/form-data: read once, files streamed to blobs on the way.

    part job            the job as JSON
    part code           the executable        ─▶ blob ─▶ task.code
    part input/<path>   an input              ─▶ blob ─▶ task.inputs[<path>]

Parts may come in any order. Nothing is held in memory but the job and the piece of a file just read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from duly.core.contract import CommandSpec, JobSpec
from duly.core.definition import MAX_ENTRIES, MAX_JOB_BYTES, decode, path_problem
from duly.core.errors import FieldError, InvalidInput, Malformed, TooLarge
from duly.faces.http.call import Call

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_INPUT: Final = "input/"
_MAX_NAME: Final = 1024 + len(_INPUT)


class _Head(NamedTuple):
    name: str
    filename: str | None


class Part:
    """A part of a form: its name, the file name it came with, and its bytes, read before the next part is asked for."""

    def __init__(self, name: str, filename: str | None, form: FormReader) -> None:
        self.name = name
        self.filename = filename
        self._form = form

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they come."""
        while (chunk := await self._form.next_chunk()) is not None:
            yield chunk

    async def whole(self, limit: int) -> bytes:
        """All bytes. Raises TooLarge past `limit`."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > limit:
                raise TooLarge(f"the part {self.name!r} has more than the {limit:,} bytes allowed")
        return bytes(body)


class FormReader:
    """Turns a multipart body into parts, one after the other, with the parser fed only as far as is asked for."""

    def __init__(self, content_type: str, chunks: AsyncIterator[bytes]) -> None:
        """Raises Malformed for a content type without a usable boundary."""
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        self._chunks = chunks
        self._ahead: deque[_Head | bytes | None] = deque()  # a part's head, its bytes, None for its end
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._complete = False
        callbacks: MultipartCallbacks = {
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        try:
            if not boundary:
                raise Malformed("the Content-Type of a form names its boundary")
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise Malformed(f"not a form: {error}") from None

    async def parts(self) -> AsyncIterator[Part]:
        """The parts; what was not read of one is skipped."""
        while True:
            if not self._ahead and not await self._feed():
                return
            item = self._ahead.popleft()
            if isinstance(item, _Head):
                yield Part(item.name, item.filename, self)

    async def next_chunk(self) -> bytes | None:
        """The next bytes of the part in hand, None at its end."""
        while True:
            while not self._ahead:
                if not await self._feed():
                    raise Malformed("the form ends within a part")
            item = self._ahead.popleft()
            if item is None:
                return None
            if isinstance(item, bytes) and item:
                return item

    async def _feed(self) -> bool:
        """Parse on until something is there; False at the end of the body."""
        while not self._ahead:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                if not self._complete:
                    raise Malformed("the form has no end: its closing boundary is missing") from None
                return False
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise Malformed(f"not a form: {error}") from None
        return True

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition.decode("latin-1"))
        self._disposition = b""
        name = options.get(b"name")
        if kind != b"form-data" or name is None or len(name) > _MAX_NAME:
            raise Malformed("a part of the form has no Content-Disposition with a name")
        try:
            filename = options.get(b"filename")
            self._ahead.append(_Head(name.decode(), None if filename is None else filename.decode()))
        except UnicodeDecodeError:
            raise Malformed("the names of a form's parts are UTF-8") from None

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._ahead.append(data[start:end])

    def _on_part_end(self) -> None:
        self._ahead.append(None)

    def _on_end(self) -> None:
        self._complete = True


async def read_job_form(call: Call) -> JobSpec:
    """The job of a form, its files stored and filled in.

    Raises Malformed for what is no form, InvalidInput for unknown, missing or doubled parts, TooLarge.
    """
    limit = call.context.settings.max_blob_bytes
    form = FormReader(call.header(b"content-type") or "", call.chunks(limit))
    body: bytes | None = None
    code: str | None = None
    inputs: dict[str, str] = {}
    async for part in form.parts():
        name = part.name
        if name == "job":
            if body is not None:
                raise InvalidInput.at("/part/job", "given more than once")
            body = await part.whole(MAX_JOB_BYTES)
        elif name == "code":
            if code is not None:
                raise InvalidInput.at("/part/code", "given more than once")
            code = (await call.context.servicer.put_blob(part.chunks(), limit=limit)).digest
        elif name.startswith(_INPUT):
            path = name.removeprefix(_INPUT)
            problem = path_problem(path) or ("given more than once" if path in inputs else None)
            if problem is None and len(inputs) >= MAX_ENTRIES:
                problem = f"more than {MAX_ENTRIES} inputs"
            if problem is not None:
                raise InvalidInput.at(_pointer(name), problem)
            inputs[path] = (await call.context.servicer.put_blob(part.chunks(), limit=limit)).digest
        else:
            raise InvalidInput.at(_pointer(name), "the parts of this form are job, code and input/<path>")
    if body is None:
        raise InvalidInput.at("/part/job", "the part job is required: the job as JSON")
    return _filled_in(decode(body, JobSpec), code, inputs)


def _filled_in(spec: JobSpec, code: str | None, inputs: dict[str, str]) -> JobSpec:
    task = spec.task
    if not isinstance(task, CommandSpec):
        raise InvalidInput.at("/task/kind", "a form brings files, which go with a task of kind command")
    wrong = []
    if code is not None and task.code not in (None, code):
        wrong.append(FieldError("/task/code", "names another file than the part code holds"))
    wrong += [
        FieldError(f"/task/inputs/{path.replace('~', '~0').replace('/', '~1')}", "names another file than its part")
        for path, digest in inputs.items()
        if task.inputs.get(path, digest) != digest
    ]
    if wrong:
        raise InvalidInput(wrong[0].detail, errors=tuple(wrong))
    task = msgspec.structs.replace(task, code=code or task.code, inputs={**task.inputs, **inputs})
    return msgspec.structs.replace(spec, task=task)


def _pointer(name: str) -> str:
    return f"/part/{name[:200].replace('~', '~0').replace('/', '~1')}"
