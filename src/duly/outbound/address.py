"""Which addresses requests may go to that people name: none of this network's own, unless it is allowed.

A name is resolved once, every address that it has is checked, and the connection goes to one that was checked, so
that a second answer of the name server's (rebinding) cannot lead elsewhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Final

Resolve = Callable[[str, int], Awaitable[list[str]]]

# Beyond what `ipaddress` calls not global: ranges that carry another address inside them.
_EMBEDDING: Final = (
    ipaddress.ip_network("64:ff9b::/96"),  # NAT64: the last 32 bits are an IPv4 address
    ipaddress.ip_network("2002::/16"),  # 6to4
    ipaddress.ip_network("2001::/32"),  # Teredo
)


class AddressRefused(Exception):
    """The host is, or resolves to, an address that requests may not go to."""


async def resolve_by_system(host: str, port: int) -> list[str]:
    """All addresses of a name, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """True for an address of the public internet that cannot stand for one that is not."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if any(found in network for network in _EMBEDDING):
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


async def checked_address(host: str, port: int, *, allow_private: bool, resolve: Resolve) -> str:
    """An address of the host to connect to. AddressRefused when any address of it is not public; OSError when
    there is none."""
    addresses = await resolve(host, port)
    if not addresses:
        raise OSError(f"{host} has no address")
    if not allow_private:
        for address in addresses:
            if not is_public(address):
                raise AddressRefused(f"{host} is {address}, which is not on the public internet")
    return addresses[0]
