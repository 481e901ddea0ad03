"""A connection to an address that was checked, under the name that was asked for."""

from __future__ import annotations

from typing import Final

import httpx2

from duly.outbound.address import AddressRefused, Resolve, checked_address, resolve_by_system

_PORTS: Final = {"http": 80, "https": 443}


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Resolves once, checks every address, connects to one of them; Host and the certificate's name stay the URL's."""

    def __init__(self, *, allow_private: bool, mend: str, resolve: Resolve = resolve_by_system) -> None:
        """`mend` says what would let requests go to private addresses."""
        self._allow_private = allow_private
        self._mend = mend
        self._resolve = resolve
        # Connections are pooled by address: keeping none open keeps one host's from serving another's request.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._inner = httpx2.AsyncHTTPTransport(trust_env=False, limits=limits)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises AddressRefused, ConnectError and what the transport raises."""
        url = request.url
        if url.scheme not in _PORTS:
            raise AddressRefused(f"{url.scheme or 'no scheme'} is not http or https")
        host = url.host
        try:
            address = await checked_address(
                host, url.port or _PORTS[url.scheme], allow_private=self._allow_private, resolve=self._resolve
            )
        except AddressRefused as error:
            raise AddressRefused(f"{error}; {self._mend}") from None
        except OSError as error:
            raise httpx2.ConnectError(f"{host} cannot be resolved: {error}") from error
        checked = httpx2.Request(
            request.method,
            url.copy_with(host=address),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": host},
        )
        return await self._inner.handle_async_request(checked)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()
