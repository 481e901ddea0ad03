"""The webhooks of a process that commits changes of runs, from its settings."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - chance comes in here, as in embedded.py
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from duly.adapters.httpx_sender import HttpxSender
from duly.adapters.system_clock import SystemClock
from duly.core.errors import InvalidInput
from duly.core.webhook import WebhookRule, key_of, name_of, signed_headers, trial_event
from duly.ports import Clock, Posted, Store
from duly.roles.overdue import OverdueWatch
from duly.roles.scheduler import Scheduler
from duly.roles.webhooks import Endpoint, Limits, Webhooks
from duly.settings import Settings
from duly.telemetry import Telemetry

MAX_SECRETS: Final = 16 * 1024  # bytes of a secret_file


def make_webhooks(settings: Settings, clock: Clock, telemetry: Telemetry) -> Webhooks | None:
    """None if there are no rules. Raises InvalidInput for a secret_file that cannot be read or holds no key."""
    if not settings.webhook:
        return None
    endpoints = [
        Endpoint(name_of(rule, index), rule, _keys(rule, f"/webhook/{index}"))
        for index, rule in enumerate(settings.webhook)
    ]
    return Webhooks(endpoints, sender=HttpxSender(clock), clock=clock, telemetry=telemetry, dice=random.random)


def watch_overdue(
    webhooks: Webhooks | None, schedulers: Sequence[Scheduler], store: Store, clock: Clock
) -> list[OverdueWatch]:
    """One for each shard's scheduler, if a rule asks for `overdue`."""
    if webhooks is None or not webhooks.wants("overdue"):
        return []
    return [
        OverdueWatch(
            shard=scheduler.shard,
            store=store,
            clock=clock,
            leading=lambda scheduler=scheduler: scheduler.leading,  # type: ignore[misc]  # a default, not an argument
            committed=webhooks.committed,
        )
        for scheduler in schedulers
    ]


def _keys(rule: WebhookRule, pointer: str) -> list[bytes]:
    if not rule.secret_file:
        texts = [rule.secret] if isinstance(rule.secret, str) else rule.secret
        return [key_of(secret, f"{pointer}/secret") for secret in texts]
    pointer = f"{pointer}/secret_file"
    try:
        with Path(rule.secret_file).open() as file:
            lines = file.read(MAX_SECRETS).split()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise InvalidInput.at(pointer, f"{rule.secret_file}: {reason}") from None
    if not lines:
        raise InvalidInput.at(pointer, f"{rule.secret_file} is empty; put a secret in: duly webhook secret")
    return [key_of(line, pointer) for line in lines]


def send_test(settings: Settings, names: Sequence[str]) -> list[tuple[str, Posted]]:
    """One `duly.test` event to each webhook, or to those named. Raises InvalidInput for a name that none has."""
    clock = SystemClock()
    rules = {name_of(rule, index): (index, rule) for index, rule in enumerate(settings.webhook)}
    for name in names:
        if name not in rules:
            raise InvalidInput(f"no webhook is named {name!r}; there are: {', '.join(rules) or 'none'}")

    async def send() -> list[tuple[str, Posted]]:
        sender = HttpxSender(clock)
        posted = []
        for name in names or rules:
            index, rule = rules[name]
            identity = f"evt_{secrets.token_hex(16)}"
            body = trial_event(identity, clock.wall())
            headers = signed_headers(identity, clock.wall(), body, _keys(rule, f"/webhook/{index}"))
            timeout = Limits().timeout
            answer = await sender.post(rule.url, headers, body, timeout=timeout, allow_private=rule.allow_private)
            posted.append((name, answer))
        await sender.close()
        return posted

    return asyncio.run(send())
