"""The part of `duly doctor` that asks servers: each that is named, its clock and version, the token, and the fleet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from duly.commands.doctor import Finding
from duly.commands.exits import advice_for
from duly.core.errors import DulyError, Forbidden, InvalidInput, Unauthenticated
from duly.core.instants import SECOND, parse_instant
from duly.version import __version__

if TYPE_CHECKING:
    from duly.faces.client import Client
    from duly.settings import Settings

MOST_OFFSET: Final = 2.0  # seconds; the server's Date header tells whole ones
MOST_WORKER_OFFSET: Final = 250.0  # ms: workers correct for it, but what else is wrong on such a machine?
NEW_ONE: Final = "make one on the server: duly token create --scope operate; give it in DULY_TOKEN"


def servers(settings: Settings) -> Iterator[Finding]:
    """Each address of `server`; the fleet is asked of the first that answers."""
    from duly.faces.client import Client

    urls = [url.strip() for url in settings.server.split(",") if url.strip()]
    told = False
    for url in urls:
        name = "server" if len(urls) == 1 else f"server {url}"
        try:
            client = Client.connect(url, token=settings.token)
        except InvalidInput as error:
            yield Finding(name, "failed", error.detail, "write it like http://127.0.0.1:7350")
            continue
        with client:
            answers, findings = _server(client, name, settings)
            yield from findings
            if answers and not told:
                told = True
                yield from _fleet(client)


def _server(client: Client, name: str, settings: Settings) -> tuple[bool, list[Finding]]:
    """Whether it may be asked more, and what was found."""
    try:
        version = client.version().version
    except (Unauthenticated, Forbidden) as error:
        return False, [Finding(name, "ok", "answers"), _refused(error, settings)]
    except DulyError as error:
        advice = _mend(error)
        return False, [Finding(name, "failed", error.detail, advice)]
    same = version == __version__
    advice = "" if same else f"this is version {__version__}; use the same on both sides"
    found = [Finding(name, "ok" if same else "warning", f"answers, version {version}", advice), _clock(client)]
    given = "accepted" if settings.token else "none is given, none is needed"
    found.append(Finding("token", "ok", given))
    return True, found


def _mend(error: DulyError) -> str:
    advice = advice_for(error)
    return "look at the server's log" if advice is None or "duly doctor" in advice else advice


def _refused(error: DulyError, settings: Settings) -> Finding:
    if isinstance(error, Forbidden):
        return Finding("token", "failed", error.detail, advice_for(error) or NEW_ONE)
    if not settings.token:
        return Finding("token", "failed", "the server wants one, and none is given", NEW_ONE)
    if "expired" in error.detail:
        return Finding("token", "failed", error.detail, f"duly token list tells which; {NEW_ONE}")
    return Finding("token", "failed", error.detail, f"is it one of this server's? else {NEW_ONE}")


def _clock(client: Client) -> Finding:
    from duly.adapters.system_clock import SystemClock

    before = SystemClock().wall() / 1_000_000
    try:
        theirs = _server_time(client)
    except DulyError as error:
        return Finding("clock", "warning", error.detail, "try again; look at the server's log")
    after = SystemClock().wall() / 1_000_000
    if theirs is None:
        return Finding("clock", "warning", "the server does not tell its time", "let the proxy before it send Date")
    offset = max(theirs - after, before - theirs - 1, 0.0)  # their second may have begun up to one second ago
    if offset > MOST_OFFSET:
        side = "ahead of" if theirs > after else "behind"
        detail = f"the server's is {offset:,.0f} s {side} this machine's"
        return Finding("clock", "warning", detail, "let chrony or ntpd set both clocks; see: timedatectl")
    return Finding("clock", "ok", "agrees with the server's to the second")


def _server_time(client: Client) -> float | None:
    from duly.faces.http_transport import HttpTransport

    transport = client.aio.transport
    assert isinstance(transport, HttpTransport)
    return client.thread.wait(transport.server_time())


def _holds(expires_at: str, now: float | None) -> bool:
    """A term that ended a few seconds ago is nobody's; the server's time is known to the second."""
    return now is None or parse_instant(expires_at) / SECOND > now - 2


def _fleet(client: Client) -> Iterator[Finding]:
    try:
        yield from _workers(client)
        now = _server_time(client)
        for shard in client.shards():
            up = shard.state == "up"
            held = up and shard.term is not None and _holds(shard.term.expires_at, now)
            advice = "start a scheduler for it: duly scheduler" if up else "bring its database back; the rest goes on"
            yield Finding(
                f"shard {shard.name}",
                "ok" if held else "failed",
                f"{shard.state}, {shard.jobs:,} jobs" + (f", scheduled by {shard.term.owner}" if shard.term else "")
                if up
                else "does not answer: its jobs wait",
                "" if held else advice,
            )
        for webhook in client.webhooks():
            yield _webhook(
                webhook.name, webhook.state, webhook.problem, webhook.dropped, webhook.waiting, webhook.delivered
            )
    except DulyError as error:
        yield Finding("fleet", "failed", error.detail, _mend(error))


def _workers(client: Client) -> Iterator[Finding]:
    workers = client.workers()
    ready = [worker for worker in workers if worker.state == "ready"]
    yield Finding(
        "workers",
        "ok" if ready else "failed",
        f"{len(ready)} ready, {sum(worker.free for worker in ready)} slots free",
        "" if ready else "nothing can run: start one with: duly worker",
    )
    for worker in ready:
        if abs(worker.clock_offset_ms) > MOST_WORKER_OFFSET:
            detail = f"its clock is {worker.clock_offset_ms:+,.0f} ms from the shard's"
            yield Finding(f"worker {worker.id}", "warning", detail, "let chrony or ntpd set its machine's clock")


def _webhook(
    name: str, state: str, problem: str | None, dropped: dict[str, int], waiting: int, delivered: int
) -> Finding:
    check = f"webhook {name}"
    lost = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
    told = f"{delivered:,} delivered, {waiting:,} waiting" + (f"; dropped: {lost}" if lost else "")
    if state == "gone":
        return Finding(check, "warning", f"{problem}; {told}", "its receiver wants no more (410): take the rule out")
    if state == "failing":
        return Finding(check, "warning", f"{problem}; {told}", "mend the receiver or the rule; try: duly webhook test")
    if lost:
        return Finding(check, "warning", told, "its receiver was away or slow; the runs can be read: duly run list")
    return Finding(check, "ok", told)
