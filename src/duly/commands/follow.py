"""A log as it grows, over connections that break: what was shown is not shown again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal

from duly.adapters.system_clock import SystemClock
from duly.commands.terminal import note
from duly.core.contract import LogPiece
from duly.core.errors import Overloaded, Unavailable
from duly.core.instants import SECOND

if TYPE_CHECKING:
    from duly.faces.client import Client

TRIES: Final = 40  # without a byte: some five minutes
LAST_PAUSE: Final = 8 * SECOND


def followed(
    client: Client,
    run_id: str,
    *,
    stream: Literal["stdout", "stderr", "all"],
    attempt: int | None,
    first_pause: int = SECOND // 4,
) -> Iterator[LogPiece]:
    """The pieces of one attempt's log until it ends. Connects again, to any server named, as long as one may answer.

    Raises Unavailable when none has answered for some minutes, NotFound for no such run.
    """
    clock = SystemClock()
    seen: dict[str, int] = {"stdout": 0, "stderr": 0}
    tries, pause = 0, first_pause
    while True:
        behind = dict(seen)
        try:
            for piece in client.follow_log(run_id, stream=stream, attempt=attempt):
                tries, pause = 0, first_pause
                if attempt is None:  # after a break, the same attempt: a retry would begin another log
                    attempt = client.get_run(run_id).attempt
                known = min(behind[piece.stream], len(piece.data))
                behind[piece.stream] -= known
                if known < len(piece.data):
                    seen[piece.stream] += len(piece.data) - known
                    yield LogPiece(stream=piece.stream, data=piece.data[known:])
            return
        except (Unavailable, Overloaded) as error:
            tries += 1
            if tries > TRIES:
                raise
            if tries == 1:
                note(f"{error.detail}; connecting again (Ctrl-C ends this)")
        client.thread.wait(clock.sleep(pause))
        pause = min(2 * pause, LAST_PAUSE)
