"""The app behind uvicorn, with the limits that are a connection's."""

from __future__ import annotations

import math

import uvicorn
from starlette.applications import Starlette

from .settings import Settings


def make_server(app: Starlette, settings: Settings, host: str, port: int) -> uvicorn.Server:
    """A server that has not started yet; on SIGTERM it takes no more calls and answers those it has."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="error",  # warnings are about malformed calls: strangers could fill the log with them
        access_log=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_seconds),
        h11_max_incomplete_event_size=16 * 1024,
    )
    return uvicorn.Server(config)
