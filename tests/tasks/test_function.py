"""Function tasks through a worker, in threads and in child processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from duly.core.messages import Started, Stopped
from duly.tasks.registry import FunctionRegistry
from workers import functions
from workers.bench import SECOND, Bench, call, working

Where = Literal["processes", "threads"]


@pytest.fixture(params=["processes", "threads"])
def where(request: pytest.FixtureRequest) -> Where:
    return request.param  # type: ignore[no-any-return]  # one of the modes


@pytest.fixture
async def bench(tmp_path: Path, where: Where) -> AsyncIterator[Bench]:
    async with working(tmp_path, functions_in=where) as found:
        yield found


def result(event: Any) -> Any:
    return None if event.result is None else msgspec.json.decode(event.result)


async def test_a_sync_function_gets_its_arguments_and_its_result_is_kept(bench: Bench) -> None:
    run = await bench.give(call("add", 2, b=5))
    assert result(await bench.succeeded(run)) == 7


async def test_a_coroutine_function_gets_its_arguments_and_its_result_is_kept(bench: Bench) -> None:
    run = await bench.give(call("add_async", 2, b=5, mode="async"))
    assert result(await bench.succeeded(run)) == 7


async def test_a_function_that_returns_nothing_has_no_result(bench: Bench) -> None:
    assert result(await bench.succeeded(await bench.give(call("nothing")))) is None


async def test_a_coroutine_function_that_came_as_a_sync_one_still_runs(bench: Bench) -> None:
    assert result(await bench.succeeded(await bench.give(call("add_async", 1)))) == 2


async def test_a_sync_function_that_came_as_a_coroutine_still_runs(bench: Bench) -> None:
    assert result(await bench.succeeded(await bench.give(call("add", 1, mode="async")))) == 2


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_no_run_starts_before_its_instant(bench: Bench, mode: str) -> None:
    name = "nothing" if mode == "sync" else "nothing_async"
    runs = [await bench.give(call(name, mode=mode), due=100_000 + 7_000 * index) for index in range(20)]
    for run in runs:
        event = await bench.succeeded(run)
        assert 0 <= event.started_at - run.due_at < SECOND
        assert event.finished_at >= event.started_at


async def test_the_instant_is_kept_by_the_shards_clock_when_it_differs_from_this_machines(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads", ready=False) as bench:
        bench.skew = 3_600 * SECOND
        await bench.until(lambda: bench.beats)
        offset = bench.worker.attempts.shards["s0"].offset
        await bench.until(lambda: offset.value is not None and abs(offset.value - _now(bench)) < 100_000)
        run = await bench.give(call("instant"), due=50_000)
        event = await bench.succeeded(run)
        assert 0 <= event.started_at - run.due_at < SECOND
        assert offset.value is not None
        assert result(event) + offset.value >= run.due_at - 1_000


def _now(bench: Bench) -> int:
    return bench.now() - bench.clock.monotonic()


async def test_an_exception_is_the_runs_error_with_its_traceback(bench: Bench) -> None:
    event = await bench.failed(await bench.give(call("fail", "bad luck")))
    assert event.error.kind == "exception"
    assert event.error.message == "ValueError: bad luck"
    assert "in fail" in event.error.detail
    assert "executor.py" not in event.error.detail
    assert event.retryable
    assert not event.crashed


async def test_leaving_the_interpreter_ends_the_run_and_not_the_executor(bench: Bench) -> None:
    event = await bench.failed(await bench.give(call("leave")))
    assert event.error.message == "SystemExit: 3"
    await bench.succeeded(await bench.give(call("nothing")))


async def test_a_result_that_is_too_large_is_refused_with_its_size(bench: Bench) -> None:
    event = await bench.failed(await bench.give(call("big", 300_000)))
    assert event.error.kind == "limit"
    assert "300002 bytes" in event.error.message
    assert not event.retryable


async def test_a_result_that_is_not_json_is_refused_with_its_type(bench: Bench) -> None:
    event = await bench.failed(await bench.give(call("not_json")))
    assert event.error.kind == "input"
    assert "returned a object" in event.error.message
    assert not event.retryable


async def test_current_run_tells_the_run(bench: Bench) -> None:
    for name, mode in (("who", "sync"), ("who_async", "async")):
        run = await bench.give(call(name, mode=mode))
        told = result(await bench.succeeded(run))
        assert told["id"] == run.id
        assert told["job"] == run.job_id
        assert told["attempt"] == 1
        assert told["scheduled_at"].endswith("+00:00")
        assert told["lateness"] >= 0


async def test_an_unknown_function_fails_with_what_would_be_right(tmp_path: Path, where: Where) -> None:
    async with working(tmp_path, functions_in=where, functions=FunctionRegistry()) as bench:
        event = await bench.failed(await bench.give(call("reports:nightly")))
        assert event.error.kind == "input"
        assert "--app reports:NAME" in event.error.message
        assert not event.retryable


async def test_a_registered_function_runs_by_its_name(tmp_path: Path, where: Where) -> None:
    registry = FunctionRegistry()
    name = registry.add(functions.add)
    async with working(tmp_path, functions_in=where, functions=registry) as bench:
        assert result(await bench.succeeded(await bench.give(call(name, 1)))) == 2
        assert bench.beats[0].worker.functions == (name,)
        event = await bench.failed(await bench.give(call("nothing")))
        assert event.error.kind == "input"


async def test_functions_of_an_app_are_registered_in_the_children_too(tmp_path: Path, where: Where) -> None:
    settings = {"functions_in": where, "apps": ("workers.app:app",)}
    async with working(tmp_path, functions=FunctionRegistry(), **settings) as bench:
        assert result(await bench.succeeded(await bench.give(call("workers.app:hello", "you")))) == "hello you"


async def test_a_name_that_cannot_be_imported_fails_with_the_reason(bench: Bench) -> None:
    event = await bench.failed(await bench.give(call("no_such_module:f")))
    assert event.error.kind == "input"
    assert "no_such_module" in event.error.message


async def test_a_start_is_told_only_of_runs_that_go_on(bench: Bench, tmp_path: Path) -> None:
    short = await bench.give(call("nothing"))
    await bench.succeeded(short)
    assert not [event for event in bench.events[short.key] if isinstance(event, Started)]
    for name, mode in (("wait_for", "sync"), ("wait_for_async", "async")):
        run = await bench.give(call(name, str(tmp_path / mode), mode=mode))
        await bench.started(run)
        begun = bench.events[run.key][0]
        assert isinstance(begun, Started)
        (tmp_path / mode).touch()
        assert (await bench.succeeded(run)).started_at == begun.started_at


async def test_a_run_queued_behind_a_long_one_moves_to_a_free_place(bench: Bench, tmp_path: Path) -> None:
    assert bench.worker._settings.slots == 2
    tasks = [call("wait_for", str(tmp_path / "go")), *[call("nothing")] * 20]
    runs = [bench.make(task) for task in tasks]
    await bench.assign(*runs)
    for assignment in runs[1:]:
        await bench.succeeded(assignment.run)
    assert bench.ending(runs[0].run) is None
    (tmp_path / "go").touch()
    await bench.succeeded(runs[0].run)


async def test_a_run_for_which_no_slot_gets_free_goes_back(bench: Bench, tmp_path: Path) -> None:
    long = [bench.make(call("wait_for", str(tmp_path / "go"))) for _ in range(2)]
    await bench.assign(*long)
    for assignment in long:
        await bench.started(assignment.run)
    await bench.until(lambda: bench.worker.capacity("s0")["process"] == 2)
    event = await bench.released(await bench.give(call("nothing")))
    assert event.reason == "no_capacity"
    assert not event.started
    (tmp_path / "go").touch()


async def test_cancelling_a_run_before_its_instant_stops_it_unstarted(bench: Bench, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for mode, unless_started in (("sync", False), ("sync", True), ("async", False)):
        run = await bench.give(call("touch", str(mark), mode=mode), due=30 * SECOND)
        await bench.cancel(run, unless_started=unless_started)
        if unless_started:
            assert (await bench.released(run)).reason == "changed"
        else:
            assert (await bench.stopped(run)).started_at is None
    assert not mark.exists()


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_cancelling_a_run_that_goes_on_stops_it(bench: Bench, tmp_path: Path, mode: str) -> None:
    name = "wait_for" if mode == "sync" else "wait_for_async"
    run = await bench.give(call(name, str(tmp_path / "never"), mode=mode))
    await bench.started(run)
    await bench.cancel(run, unless_started=True)  # ignored: it has started
    await bench.cancel(run)
    event = await bench.ended(run)
    assert isinstance(event, Stopped)
    assert event.started_at is not None
    (tmp_path / "never").touch()  # for the thread that was left behind
    await bench.succeeded(await bench.give(call("nothing")))


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_run_past_its_timeout_fails_as_timed_out(bench: Bench, tmp_path: Path, mode: str) -> None:
    name = "wait_for" if mode == "sync" else "wait_for_async"
    run = await bench.give(call(name, str(tmp_path / "never"), mode=mode), timeout=50_000)
    event = await bench.failed(run)
    assert event.error.kind == "timeout"
    assert "50ms" in event.error.message
    assert event.started_at is not None
    assert event.finished_at - event.started_at >= 50_000
    assert not event.crashed
    (tmp_path / "never").touch()
    await bench.succeeded(await bench.give(call("nothing")))


async def test_a_thousand_runs_of_one_instant_all_run_once(bench: Bench) -> None:
    batch = [bench.make(call("nothing"), due=50_000) for _ in range(1_000)]
    await bench.assign(*batch[:500])
    await bench.assign(*batch[500:])
    await bench.until(lambda: len(bench.events) == 1_000)
    assert all(len(events) == 1 for events in bench.events.values())


async def test_progress_is_told_four_times_a_second_at_most_and_the_last_word_comes(
    bench: Bench, tmp_path: Path
) -> None:
    run = await bench.give(call("progress", str(tmp_path / "go")))
    await bench.until(lambda: bench.notices and msgspec.json.decode(bench.notices[-1].data["fraction"]) == 0.99)
    assert len(bench.notices) <= 3
    assert bench.notices[0].kind == "run.progress"
    assert bench.notices[0].key == run.key
    (tmp_path / "go").touch()
    await bench.succeeded(run)


async def test_files_that_a_function_leaves_are_kept(bench: Bench) -> None:
    event = await bench.succeeded(await bench.give(call("leave_files")))
    (output,) = event.outputs
    assert output.path == "deep/report.txt"
    assert await bench.text(output.digest) == b"a report"
    assert not list(bench.scratch.rglob("report.txt"))


async def test_a_link_in_a_functions_output_is_refused(bench: Bench) -> None:
    event = await bench.failed(await bench.give(call("leave_link")))
    assert event.error.kind == "input"
    assert "symbolic link" in event.error.message


async def test_the_runs_own_log_is_kept(bench: Bench) -> None:
    event = await bench.succeeded(await bench.give(call("log_only")))
    assert b"WARNING duly.run: to the run's log" in await bench.text(event.logs["stderr"])
    assert "stdout" not in event.logs


async def test_a_late_start_for_want_of_a_slot_says_so(bench: Bench, tmp_path: Path) -> None:
    long = [bench.make(call("wait_for", str(tmp_path / "go"))) for _ in range(2)]
    await bench.assign(*long)
    for assignment in long:
        await bench.started(assignment.run)
    run = await bench.give(call("nothing"), max_lateness=1_000, due=20_000)
    await bench.until(lambda: bench.now() > run.due_at + 30_000)
    (tmp_path / "go").touch()
    event = await bench.succeeded(run)
    assert event.cause == "no_capacity"
