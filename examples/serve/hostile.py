"""Clients that mean no good, each over a socket of its own, to the loopback address."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

Address = tuple[str, int]


def _sent(address: Address, data: bytes, listen: bool) -> int | None:
    """The status that comes back; None where nobody listened, or the connection ended without one."""
    with socket.create_connection(address, timeout=10) as connection:
        try:
            connection.sendall(data)
            received = connection.recv(4096) if listen else b""
        except OSError:
            return None
    return int(received[9:12]) if received.startswith(b"HTTP/1.1 ") else None


def _post(body: bytes, length: int | None = None) -> bytes:
    return b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (length or len(body), body)


def leaves_after_asking(address: Address, body: bytes) -> bool:
    """Sends a whole call and is gone before its answer."""
    return _sent(address, _post(body), listen=False) is None


def leaves_while_asking(address: Address, body: bytes) -> bool:
    """Sends a part of a call and is gone."""
    whole = _post(body)
    return _sent(address, whole[: random.randrange(len(whole))], listen=False) is None


def sends_too_much(address: Address, _: bytes) -> bool:
    """Announces a gigabyte and sends a part of it."""
    return _sent(address, _post(b" " * 100_000, 10**9), listen=True) in (413, None)


def sends_too_much_in_chunks(address: Address, _: bytes) -> bool:
    """Sends more than is taken, without saying how much."""
    head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return _sent(address, head + b"8000\r\n%s\r\n" % (b" " * 0x8000) * 4, listen=True) in (413, None)


def sends_no_json(address: Address, body: bytes) -> bool:
    """Sends a body that breaks off."""
    return _sent(address, _post(body[:-3]), listen=True) == 400


def sends_nonsense(address: Address, _: bytes) -> bool:
    """Sends fields of wrong types."""
    return _sent(address, _post(b'{"history": [{}, null, "no such item"], "request": 3}'), listen=True) == 422


def sends_no_http(address: Address, _: bytes) -> bool:
    """Sends what is no HTTP."""
    return _sent(address, b"\x16\x03\x01" * 30 + b"\r\n\r\n", listen=True) in (400, None)


WAYS: tuple[Callable[[Address, bytes], bool], ...] = (
    leaves_after_asking,
    leaves_while_asking,
    sends_too_much,
    sends_too_much_in_chunks,
    sends_no_json,
    sends_nonsense,
    sends_no_http,
)
