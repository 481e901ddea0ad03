"""Which requests are sent where and how often, and what answers mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from duly.core import errors
from duly.core.contract import CommandSpec, JobSpec, RunView
from duly.core.errors import DulyError, NotFound, OutcomeUnknown, Overloaded, ScheduleError, Unavailable
from duly.faces import handles
from duly.faces.http_transport import HttpTransport
from duly.faces.transport import JobFilter, RunFilter
from duly.faces.wire_errors import problem_error

SPEC = JobSpec(task=CommandSpec(argv=["true"]), schedule="now")
VERSION = {"version": "1", "python": "3.11", "tzdata": "1", "sqlite": None}


class Network:
    """Servers by host, each a list of answers to come; what was asked and how long was paused is noted."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.asked: list[httpx2.Request] = []
        self.pauses: list[float] = []

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        answer = self.answers[request.url.host].pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, body, headers = answer if len(answer) == 3 else (*answer, {})
        return httpx2.Response(status, content=json.dumps(body).encode() if body is not None else b"", headers=headers)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def transport(self, *hosts: str, **how: Any) -> HttpTransport:
        return HttpTransport(
            [f"http://{host}" for host in hosts or self.answers],
            connect=lambda: httpx2.MockTransport(self.answer),
            sleep=self.pause,
            dice=lambda: 1.0,
            **how,
        )

    @property
    def hosts(self) -> list[str]:
        return [request.url.host for request in self.asked]

    @property
    def keys(self) -> list[str]:
        return [request.headers["idempotency-key"] for request in self.asked]


def problem(code: str, status: int) -> tuple[int, dict[str, Any]]:
    return status, {"type": "", "title": "", "status": status, "detail": f"it is {code}", "code": code}


RUN: dict[str, Any] = {
    **dict.fromkeys(RunView.__struct_fields__),
    "id": "r",
    "job_id": "j",
    "scheduled_at": "",
    "due_at": "",
    "state": "succeeded",
    "priority": 5,
    "attempt": 1,
    "late": False,
    "outputs": [],
    "attempts": [],
    "manual": False,
    "cancel_requested": False,
}
DOWN = httpx2.ConnectError("refused")
BROKEN = httpx2.ReadError("reset")
SLOW = httpx2.ReadTimeout("slow")


async def test_another_servicer_stands_in() -> None:
    """One that cannot be reached is passed over without a pause, and the next call begins with the one that answers."""
    network = Network(a=[DOWN], b=[(200, VERSION), (200, VERSION)])
    transport = network.transport()
    await transport.version()
    await transport.version()
    assert network.hosts == ["a", "b", "b"]
    assert network.pauses == []


async def test_tries_are_bounded_and_pauses_grow() -> None:
    """Four rounds; pauses double; then the last reason is told."""
    network = Network(a=[DOWN] * 4)
    with pytest.raises(Unavailable, match="no server answers at http://a") as caught:
        await network.transport().version()
    assert type(caught.value) is Unavailable
    assert network.pauses == [0.1, 0.2, 0.4]


async def test_a_server_says_how_long_to_wait() -> None:
    """Retry-After is kept to, within reason."""
    busy = (*problem("overloaded", 429), {"retry-after": "2"})
    network = Network(a=[busy, (*problem("unavailable", 503), {"retry-after": "3600"}), (200, VERSION)])
    await network.transport().version()
    assert network.pauses == [2.0, 5.0]


@pytest.mark.parametrize(
    "broken", [BROKEN, SLOW, httpx2.RemoteProtocolError("closed"), problem("outcome_unknown", 503)]
)
async def test_what_may_be_done_twice_is_repeated(broken: Any) -> None:
    """Creating has a key of its own, which stays the same while nobody knows whether it was done."""
    for call in (
        lambda transport: transport.get_job("j"),
        lambda transport: transport.create_job(SPEC, key=None),
        lambda transport: transport.pause_job("j"),
    ):
        network = Network(a=[broken, problem("not_found", 404)])
        with pytest.raises(NotFound):
            await call(network.transport())
        assert len(network.asked) == 2
        if network.asked[0].url.path == "/v1/jobs":
            assert len(set(network.keys)) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda transport: transport.create_jobs([SPEC]),
        lambda transport: transport.trigger_job("j", wait=0),
        lambda transport: transport.retry_run("r"),
        lambda transport: transport.update_job("j", {}, if_version=3),
    ],
)
async def test_what_may_not_be_done_twice_is_not_repeated(call: Callable[[HttpTransport], Any]) -> None:
    """OutcomeUnknown tells the caller; but where nothing was sent or done, it is tried again."""
    network = Network(a=[BROKEN])
    with pytest.raises(OutcomeUnknown):
        await call(network.transport())
    network = Network(a=[DOWN, problem("overloaded", 429), problem("unavailable", 503), problem("not_found", 404)])
    with pytest.raises(NotFound):
        await call(network.transport())


async def test_a_key_of_our_own_moves_on_when_nothing_was_done() -> None:
    """Its shard may be down; another key has another shard. A key of the caller's stays."""
    network = Network(a=[problem("unavailable", 503), BROKEN, problem("unavailable", 503), problem("not_found", 404)])
    with pytest.raises(NotFound):
        await network.transport().create_job(SPEC, key=None)
    first, *rest = network.keys
    assert first not in rest
    assert len(set(rest)) == 1
    network = Network(a=[problem("unavailable", 503), problem("not_found", 404)])
    with pytest.raises(NotFound):
        await network.transport().create_job(SPEC, key="mine")
    assert network.keys == ["mine", "mine"]


async def test_waiting_outlives_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that are away for a while do not end the wait for a run; when they stay away, Unavailable does."""
    monkeypatch.setattr(handles, "PAUSE", 0.0)
    network = Network(a=[(200, RUN | {"state": "running"}), DOWN, BROKEN, (200, RUN)])
    assert (await handles.ended_run(network.transport(tries=1), "r")).state == "succeeded"
    monkeypatch.setattr(handles, "OUTAGE", 0.0)
    with pytest.raises(Unavailable):
        await handles.ended_run(Network(a=[DOWN, DOWN]).transport(tries=1), "r")


async def test_a_deletion_that_was_done_after_all() -> None:
    """Not found after a broken connection means done; not found at once does not."""
    await Network(a=[BROKEN, problem("not_found", 404)]).transport().delete_job("j")
    with pytest.raises(NotFound):
        await Network(a=[DOWN, problem("not_found", 404)]).transport().delete_job("j")


async def test_uploads_start_over() -> None:
    """Each try sends all bytes."""
    network = Network(a=[BROKEN, (201, {"digest": "sha256:" + "0" * 64, "size": 3})])

    async def pieces() -> Any:
        yield b"a"
        yield b"bc"

    assert (await network.transport().put_blob(pieces)).size == 3
    assert len(network.asked) == 2


async def test_what_is_sent() -> None:
    """Tokens, preconditions, preferences, filters and escaped paths."""
    job = {"items": [], "next": None}
    network = Network(a=[(200, job), (200, job), *[problem("not_found", 404)] * 3])
    transport = network.transport(token="secret")
    await transport.list_jobs(JobFilter(label=["a:b", "c:d"], limit=2, name="x y"))
    await transport.list_runs(RunFilter(state=["failed", "lost"], late=True))
    for call in (
        transport.update_job("a/b", {}, if_version=7),
        transport.wait_run("j@20260101T000000.000000Z", timeout=1_400_000),
        transport.trigger_job("j", wait=60_000_000),
    ):
        with pytest.raises(NotFound):
            await call
    jobs, runs, update, wait, trigger = network.asked
    assert jobs.headers["authorization"] == "Bearer secret"
    assert jobs.url.params.get_list("label") == ["a:b", "c:d"]
    assert runs.url.params.multi_items() == [("state", "failed"), ("state", "lost"), ("late", "true")]
    assert update.url.raw_path == b"/v1/jobs/a%2Fb"
    assert (update.headers["if-match"], update.headers["content-type"]) == ('"7"', "application/merge-patch+json")
    assert wait.headers["prefer"] == "wait=1"
    assert wait.url.path == "/v1/runs/j@20260101T000000.000000Z"
    assert trigger.headers["prefer"] == "wait=25"


async def test_large_batches_are_several_requests() -> None:
    """None is larger than 8 MiB; the results come together in order."""
    big = JobSpec(task=CommandSpec(argv=["x" * 3_000_000]), schedule="now")

    def created(*ids: str) -> tuple[int, dict[str, Any]]:
        return 200, {"results": [{"status": 201, "id": one} for one in ids], "created": len(ids), "failed": 0}

    network = Network(a=[created("1", "2"), created("3")])
    view = await network.transport().create_jobs([big] * 3)
    assert [item.id for item in view.results] == ["1", "2", "3"]
    assert (view.created, view.failed) == (3, 0)


def classes(root: type[DulyError]) -> list[type[DulyError]]:
    return [root] + [kind for child in root.__subclasses__() for kind in classes(child)]


@pytest.mark.parametrize(
    "kind", [kind for kind in classes(DulyError) if kind.__module__ == errors.__name__ and kind is not DulyError]
)
def test_every_error_comes_back_as_itself(kind: type[DulyError]) -> None:
    """With its detail and its fields."""
    body = {"type": "", "title": kind.title, "status": kind.status, "detail": "why", "code": kind.code}
    fields = [{"pointer": "/schedule", "detail": "bad"}]
    error = problem_error(kind.status, json.dumps({**body, "errors": fields}).encode(), None)
    assert type(error) is kind
    assert error.detail == "why"
    assert [(field.pointer, field.detail) for field in error.errors] == [("/schedule", "bad")]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFound), (502, OutcomeUnknown), (503, Unavailable), (429, Overloaded), (418, DulyError)],
)
def test_answers_of_proxies_are_understood(status: int, kind: type[DulyError]) -> None:
    """By their status, for they do not write problem+json."""
    error = problem_error(status, b"<html>no</html>", "7")
    assert type(error) is kind
    assert error.retry_after == 7.0


def test_schedule_errors_keep_their_sentence() -> None:
    """The position is in the sentence and is not told twice."""
    error = problem_error(422, json.dumps(problem("invalid_schedule", 422)[1]).encode(), None)
    assert isinstance(error, ScheduleError)
    assert str(error) == "it is invalid_schedule"


async def test_answers_that_make_no_sense() -> None:
    """Unavailable, rather than a crash of the decoder."""
    with pytest.raises(Unavailable, match="does not know"):
        await Network(a=[(200, {"no": "version"})]).transport().version()


def test_addresses_are_checked() -> None:
    """Where they are given."""
    assert HttpTransport("http://a/, https://b:7").urls == ("http://a", "https://b:7")
    for wrong in ("a:7350", "", "ftp://a"):
        with pytest.raises(errors.InvalidInput, match=r"http://127\.0\.0\.1:7350"):
            HttpTransport(wrong)
