"""Reads a body of bounded size in bounded time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from .refused import Refused, Vanished


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The whole body.

    Args:
        request: Whose body has not been read yet.
        limit: Most bytes; no more than one chunk beyond them is ever held.
        seconds: Time in which it must have arrived.

    Raises:
        Refused: 413 if it is larger, also by its own word; 408 if it is late.
        Vanished: If the client goes away meanwhile.
    """
    said = request.headers.get("content-length", "")
    if said.isdigit() and (len(said) > 15 or int(said) > limit):
        raise _too_large(limit)
    try:
        return await asyncio.wait_for(_collect(request, limit), seconds)
    except asyncio.TimeoutError:
        raise Refused(408, f"the body had not arrived after {seconds:g} seconds.") from None
    except ClientDisconnect:
        raise Vanished from None


async def _collect(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise _too_large(limit)
        body += chunk
    return bytes(body)


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the body is larger than {limit} bytes. Send a shorter history or request.")
