"""A call that gets no recommendations, and what it is told."""

from __future__ import annotations

from starlette.responses import JSONResponse


class Refused(Exception):  # noqa: N818 (an answer, not a fault of the server)
    """A call is refused.

    Args:
        status: Of the HTTP response.
        message: What was found, what was expected, what to do.
        field: The field of the body that it is about, if it is about one.
        retry_after: Seconds after which to try again, if that may help.
    """

    def __init__(self, status: int, message: str, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.retry_after = retry_after

    def response(self) -> JSONResponse:
        """The response: ``{"error": {"field": …, "message": …}}``."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status in (408, 413):  # the rest of the body is not wanted
            headers["Connection"] = "close"
        content = {"error": {"field": self.field, "message": self.message}}
        return JSONResponse(content, status_code=self.status, headers=headers)


class Vanished(Exception):  # noqa: N818
    """The client has gone before its answer was there."""


def quoted(value: object, length: int = 80) -> str:
    """What a caller sent, cut to a length that an error message can bear."""
    text = repr(value[: length + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= length else f"{text[:length]}…"
