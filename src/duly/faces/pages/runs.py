"""The list of runs, and one run: attempts, times, why, its log as it grows, its files with previews."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from typing import Any, Final

from markupsafe import Markup, escape

from duly.core.contract import OutputView, RunStateName, RunView
from duly.core.errors import NotFound
from duly.core.instants import SECOND, parse_instant
from duly.core.model import JobId, RunState, WorkerId
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer, Streamed
from duly.faces.http.conditions import attachment
from duly.faces.pages.ansi import ansi_html
from duly.faces.pages.site import SAFE_HEADERS, Page
from duly.faces.pages.visit import SeeOther, Visit
from duly.ports import RunQuery

PAGE: Final = 60
STATES: Final[tuple[RunStateName, ...]] = (
    "running", "waiting", "dispatched", "succeeded", "failed", "cancelled", "skipped", "missed", "lost", "quarantined",
)  # fmt: skip
LOG_SHOWN: Final = 16 * 1024  # of each stream: its end; the whole is a download, as a page has at most 150 KB
HTML_SHOWN: Final = 20 * 1024  # of a log with its colours; past it, it is shown without
FOUND: Final = 100  # lines of a search
SEARCHED: Final = 20 * 1024 * 1024
PREVIEWED: Final = 12 * 1024  # of all files of a run, and of none more than half of it
ROWS: Final = 30
FILES: Final = 20  # with previews
IMAGES: Final = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
LARGEST_IMAGE: Final = 10 * 1024 * 1024


async def run_list(visit: Visit) -> Page:
    """Runs that the filters find, newest scheduled first."""
    query = visit.query
    states = [value for name, value in visit.pairs if name == "state" and value in STATES]
    late = {"true": True, "false": False}.get(query.get("late", ""))
    found = await visit.servicer.named_runs(
        RunQuery(
            namespace=visit.namespace,
            job_id=JobId(query["job_id"]) if query.get("job_id") else None,
            states=tuple(RunState[state.upper()] for state in states),
            since=_instant(query.get("since"), "/query/since"),
            until=_instant(query.get("until"), "/query/until"),
            late=late,
            worker=WorkerId(query["worker"]) if query.get("worker") else None,
            cursor=query.get("cursor") or None,
            limit=PAGE,
        )
    )
    return Page("runs.html", "Runs", {"runs": found}, {"states": STATES, "chosen": states, "q": query}, parts=("runs",))


async def run_page(visit: Visit) -> Page:
    """One run."""
    run_id = visit.call.path["run_id"]
    servicer, namespace = visit.servicer, visit.namespace
    run = await servicer.get_run(run_id, namespace=namespace)
    job = await servicer.get_job(run.job_id, namespace=namespace)
    explained = await servicer.explain_run(run_id, namespace=namespace)
    attempt = visit.number("attempt", run.attempt, 1, 1_000_000) if run.attempt else None
    find = visit.query.get("find", "")[:200]
    log = Log(run, attempt, find)
    await log.read(visit)
    previews, left = [], PREVIEWED
    for output in run.outputs[:FILES]:
        previews.append(await _preview(visit, run, output, min(left, PREVIEWED // 2)))
        left -= min(output.size, left, PREVIEWED // 2)
    data: dict[str, Any] = {"run": run, "job": job, "explained": explained}
    return Page(
        "run.html",
        f"{job.name or job.id} · {run.scheduled_at[:19]}",
        data,
        {"log": log, "previews": previews, "find": find, "attempt": attempt},
        parts=("state", "why", "attempts", "log", "files"),
        jobs=frozenset({run.job_id}),
        every=SECOND // 2 if run.state == "running" else 5 * SECOND,
    )


class Log:
    """What an attempt wrote, as HTML: the end of each stream, or the lines that a search found."""

    def __init__(self, run: RunView, attempt: int | None, find: str) -> None:
        self._run = run
        self._attempt = attempt
        self._find = find
        self.html = Markup()
        self.cut = False
        self.bytes = 0
        self.found = 0

    async def read(self, visit: Visit) -> None:
        """Read both streams; of a running attempt what it wrote so far."""
        if self._attempt is None:
            return
        pieces = []
        for stream in ("stdout", "stderr"):
            chunks = await visit.servicer.read_log(
                self._run.id, namespace=visit.namespace, stream=stream, attempt=self._attempt
            )
            data = await (self._search(chunks) if self._find else self._tail(chunks))
            if data:
                html = ansi_html(data)
                pieces.append(html if stream == "stdout" else Markup('<span class="err">{}</span>').format(html))
        self.html = Markup().join(pieces)
        if len(self.html) > HTML_SHOWN:
            self.html, self.cut = Markup().join(_plain(piece) for piece in pieces), True
        if self._find:
            mark = Markup("<mark>{}</mark>").format(self._find)
            plain = Markup("{}").format(self._find)
            self.html = Markup(str(self.html).replace(str(plain), str(mark)))  # noqa: S704 - both sides are escaped

    async def _tail(self, chunks: AsyncIterator[bytes]) -> bytes:
        kept = bytearray()
        async for chunk in chunks:
            self.bytes += len(chunk)
            kept += chunk
            if len(kept) > 2 * LOG_SHOWN:
                del kept[:-LOG_SHOWN]
                self.cut = True
        if len(kept) > LOG_SHOWN:
            del kept[:-LOG_SHOWN]
            self.cut = True
        return bytes(kept.partition(b"\n")[2] if self.cut else kept)

    async def _search(self, chunks: AsyncIterator[bytes]) -> bytes:
        wanted, lines, rest, read = self._find.encode(), [], b"", 0
        async for chunk in chunks:
            read += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            lines += [line[:200] for line in whole if wanted in line]
            if len(lines) >= FOUND or read > SEARCHED:
                self.cut = True
                break
        if wanted in rest:
            lines.append(rest[:200])
        self.bytes += read
        self.found += len(lines)
        return b"\n".join(lines[:FOUND]) + (b"\n" if lines else b"")


def _plain(html: Markup) -> Markup:
    """The end of a log that has more mark-up than fits a page: its text alone."""
    return escape(html.striptags()[-HTML_SHOWN // 3 :])


async def _preview(visit: Visit, run: RunView, output: OutputView, limit: int) -> dict[str, Any]:
    """A file as something to look at: `image`, `table`, `text`, or none of these. `limit` is in bytes."""
    looked_at = min(output.size, max(limit, 16))
    chunks = visit.servicer.open_blob(output.digest, start=0, end=looked_at) if output.size else None
    head = b"" if chunks is None else b"".join([chunk async for chunk in chunks])
    shown: dict[str, Any] = {"file": output, "kind": "none", "cut": output.size > limit}
    if any(head.startswith(magic) for magic in IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return {**shown, "kind": "image" if output.size <= LARGEST_IMAGE else "none", "cut": False}
    if limit < 16 < output.size:
        return {**shown, "cut": False}
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if not (shown["cut"] and error.start > len(head) - 4):
            return shown
        text = head[: error.start].decode("utf-8")
    if "\0" in text:
        return shown
    if output.path.endswith((".csv", ".tsv")) and text:
        reader = csv.reader(io.StringIO(text), delimiter="\t" if output.path.endswith(".tsv") else ",")
        try:
            rows = [row[:20] for _, row in zip(range(ROWS + 1), reader, strict=False)]
        except csv.Error:
            rows = []
        if rows:
            return {**shown, "kind": "table", "rows": rows, "cut": shown["cut"] or text.count("\n") > ROWS}
    return {**shown, "kind": "text", "text": text}


async def act(visit: Visit) -> Answer:
    """Cancel a run, or run it again."""
    run_id, action = visit.call.path["run_id"], visit.call.path["action"]
    if action == "cancel":
        await visit.form(Scope.OPERATE)
        await visit.servicer.cancel_run(run_id, namespace=visit.namespace)
        raise SeeOther(visit.url(f"/runs/{run_id}", done="cancelled"))
    if action == "retry":
        await visit.form(Scope.OPERATE)
        run = await visit.servicer.retry_run(run_id, namespace=visit.namespace)
        raise SeeOther(visit.url(f"/runs/{run.id}", done="retried"))
    raise NotFound("there is nothing at this path")


async def download_log(visit: Visit) -> Answer:
    """The whole log, as a file."""
    run = await visit.servicer.get_run(visit.call.path["run_id"], namespace=visit.namespace)
    stream = visit.choice("stream", ("all", "stdout", "stderr"))
    attempt = visit.number("attempt", run.attempt, 1, 1_000_000) if run.attempt else None
    chunks = await visit.servicer.read_log(run.id, namespace=visit.namespace, stream=stream, attempt=attempt)
    return _file(chunks, f"{run.id}-{stream}.log", b"application/octet-stream")


async def download_file(visit: Visit) -> Answer:
    """A file that the run left."""
    output, chunks = await visit.servicer.open_output(
        visit.call.path["run_id"], visit.call.path["path"], namespace=visit.namespace
    )
    return _file(chunks, output.path.rpartition("/")[2], b"application/octet-stream", output.size)


async def image(visit: Visit) -> Answer:
    """A file for an <img>: only raster images, told by their first bytes, never by their name."""
    output, chunks = await visit.servicer.open_output(
        visit.call.path["run_id"], visit.call.path["path"], namespace=visit.namespace
    )
    if output.size > LARGEST_IMAGE:
        raise NotFound("too large to be shown")
    first = await anext(chunks, b"")
    media = next((kind for magic, kind in IMAGES.items() if first.startswith(magic)), None)
    if media is None and first[:4] == b"RIFF" and first[8:12] == b"WEBP":
        media = "image/webp"
    if media is None:
        raise NotFound("no image")

    async def whole() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return _file(whole(), output.path.rpartition("/")[2], media.encode(), output.size)


def _file(chunks: AsyncIterator[bytes], name: str, media: bytes, size: int | None = None) -> Answer:
    headers = [header for header in SAFE_HEADERS if header[0] != b"content-security-policy"]
    headers += [
        (b"content-type", media),
        (b"content-disposition", attachment(name)),
        (b"content-security-policy", b"sandbox; default-src 'none'"),
    ]
    if size is not None:
        headers.append((b"content-length", str(size).encode()))
    return Streamed(chunks, headers=headers)


def _instant(text: str | None, pointer: str) -> int | None:
    """An instant of the query; what a date field of a browser sends is taken as UTC."""
    if not text:
        return None
    if len(text) == 16 and text[10] == "T":
        text += ":00Z"
    return parse_instant(text, pointer=pointer)
