"""Fetches pictures that clients name by URL: from the hosts that the operator has named, and from nowhere else.

A URL of a client's is a way to make this server send requests (SSRF), so: only http and https, only hosts in
`server.picture_hosts`; the address that was looked at is the one connected to; an address that is not public is refused
unless the configuration names that very address; a redirect is a new URL, checked as the first one; size, type and time
are bounded.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenworks.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    import httpx

MOST_REDIRECTS = 3
TIME_LIMIT_S = 15.0
"""For one picture, redirects included."""


class Fetcher:
    """GETs pictures from `hosts`; "*" is every public one."""

    def __init__(self, hosts: Sequence[str], most_bytes: int) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._most_bytes = most_bytes

    async def get(self, url: str, param: str) -> bytes:
        """The bytes at `url`. Raises InvalidRequest naming `param`."""
        if not self._hosts:
            raise InvalidRequest(
                "this server fetches no pictures: send a data: URL (its operator can allow hosts with "
                "server.picture_hosts)",
                param=param,
            )
        import httpx  # here, as it takes a fifth of a second

        try:
            async with asyncio.timeout(TIME_LIMIT_S), httpx.AsyncClient(trust_env=False) as client:
                for _ in range(1 + MOST_REDIRECTS):
                    found = await self._one(client, url, param)
                    if isinstance(found, bytes):
                        return found
                    url = found
        except TimeoutError:
            raise InvalidRequest(f"the picture did not come within {TIME_LIMIT_S:.0f} s", param=param) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise InvalidRequest(f"the picture could not be fetched: {type(error).__name__}", param=param) from None
        raise InvalidRequest(f"the picture's URL redirects more than {MOST_REDIRECTS} times", param=param)

    async def _one(self, client: "httpx.AsyncClient", text: str, param: str) -> bytes | str:
        """The picture, or the URL that it is said to be at."""
        import httpx

        url = httpx.URL(text)
        address = await self._address(url, param)
        headers = {"Host": url.netloc.decode("ascii"), "Accept": "image/*"}
        at = url.copy_with(host=address)
        async with client.stream("GET", at, headers=headers, extensions={"sni_hostname": url.host}) as response:
            if response.is_redirect:
                return str(url.join(response.headers["location"]))
            if response.status_code != 200:
                raise InvalidRequest(f"the picture's URL answers with status {response.status_code}", param=param)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if not kind.startswith("image/"):
                raise InvalidRequest(f"the picture's URL gives {kind[:50] or 'no type'}, not an image", param=param)
            data = bytearray()
            async for piece in response.aiter_bytes():
                data += piece
                if len(data) > self._most_bytes:
                    raise InvalidRequest(f"the picture is larger than {self._most_bytes} bytes", param=param)
            return bytes(data)

    async def _address(self, url: "httpx.URL", param: str) -> str:
        """The address to connect to, if the URL may be fetched at all."""
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise InvalidRequest("a picture's URL must be data:, http: or https:, without a password", param=param)
        host = url.host.lower()
        if "*" not in self._hosts and host not in self._hosts:
            raise InvalidRequest("this server fetches no pictures from that host (server.picture_hosts)", param=param)
        port = url.port or (443 if url.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(each[4][0]) for each in found]
        if not addresses or not all(_public(address) or address in self._hosts for address in addresses):
            raise InvalidRequest("that host is not on the public network", param=param)
        return addresses[0]


def _public(text: str) -> bool:
    """Also of the address of the fourth version that one of the sixth may stand for."""
    if "%" in text:
        return False
    address = ipaddress.ip_address(text)
    inner: list[ipaddress.IPv4Address | None] = []
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in ipaddress.ip_network("64:ff9b::/96"):
            inner.append(ipaddress.IPv4Address(address.packed[-4:]))
    return all(each.is_global and not each.is_multicast for each in (address, *inner) if each is not None)
