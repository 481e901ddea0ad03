"""Webhook requests over httpx2. A connection serves one request, so that a dead receiver holds nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from duly.core.instants import SECOND
from duly.outbound.address import AddressRefused, Resolve, resolve_by_system
from duly.ports import Clock, Posted
from duly.version import __version__

if TYPE_CHECKING:
    import httpx2

MEND: Final = "set allow_private = true in its [[webhook]] if it is meant"


class HttpxSender:
    """Posts, with one client for public addresses and one for rules that may reach private ones."""

    def __init__(self, clock: Clock, resolve: Resolve = resolve_by_system) -> None:
        self._clock = clock
        self._resolve = resolve
        self._clients: dict[bool, httpx2.AsyncClient] = {}

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, *, timeout: int, allow_private: bool
    ) -> Posted:
        """As the port says."""
        try:
            async with asyncio.timeout(timeout / SECOND):
                return await self._exchange(url, headers, body, allow_private)
        except TimeoutError:
            return Posted(0, f"no answer within {timeout / SECOND:g} s")
        except AddressRefused as error:
            return Posted(0, str(error), hopeless=True)
        except Exception as error:  # noqa: BLE001 - every way in which a network can fail
            return Posted(0, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    async def close(self) -> None:
        """Close both clients."""
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    async def _exchange(self, url: str, headers: Mapping[str, str], body: bytes, allow_private: bool) -> Posted:
        client = self._client(allow_private)
        sent = {"user-agent": f"duly/{__version__}", **headers}
        response = await client.send(client.build_request("POST", url, headers=sent, content=body), stream=True)
        await response.aclose()
        status: int = response.status_code
        if 200 <= status < 300:
            return Posted(status)
        problem = f"answered {status} {response.reason_phrase}".rstrip()
        if 300 <= status < 400:
            problem += "; redirects are not followed: name the address that it leads to"
        return Posted(status, problem, self._retry_after(response.headers.get("retry-after")))

    def _client(self, allow_private: bool) -> httpx2.AsyncClient:
        client = self._clients.get(allow_private)
        if client is None:
            import httpx2

            from duly.outbound.transport import CheckedTransport

            transport = CheckedTransport(allow_private=allow_private, mend=MEND, resolve=self._resolve)
            client = self._clients[allow_private] = httpx2.AsyncClient(
                transport=transport, timeout=httpx2.Timeout(None), follow_redirects=False, trust_env=False
            )
        return client

    def _retry_after(self, header: str | None) -> int | None:
        """µs, of seconds or a date; None for what is neither."""
        if header is None:
            return None
        if header.isascii() and header.isdigit() and len(header) < 10:
            return int(header) * SECOND
        try:
            at = parsedate_to_datetime(header).timestamp()
        except (ValueError, OverflowError):
            return None
        return max(0, int(at * SECOND) - self._clock.wall())
