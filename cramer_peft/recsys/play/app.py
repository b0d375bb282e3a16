"""The ASGI app of the page: its files, and JSON routes for one person on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cramer_peft.errors import CramerError
from cramer_peft.recsys.play.answers import MAX_REQUESTS, Player
from cramer_peft.recsys.play.people import Person, made_up_people, surprise
from cramer_peft.recsys.reading import printable
from cramer_peft.recsys.recommender import RequestRecommender

_PAGE = Path(__file__).parent / "page"
_FILES = {"index.html": "text/html", "play.css": "text/css", "play.js": "text/javascript", "icon.svg": "image/svg+xml"}
_HOSTS = ["127.0.0.1", "localhost"]  # another name may be a stranger's that points here: DNS rebinding
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_BODY_BYTES = 64 * 1024


def make_app(
    recommender: RequestRecommender, name: str, people: Sequence[Person] = (), examples: Sequence[str] = ()
) -> Starlette:
    """Return the app around one recommender.

    Args:
        recommender: Backbone, adapter and catalogue.
        name: The name of the recommender on the page.
        people: The people to pick from; without any they are made up from the catalogue.
        examples: Requests to offer.
    """
    player, lock = Player(recommender), Lock()
    content = {
        "name": name,
        "items": len(player.catalogue),
        "kind": "Users of the data" if people else "Made up from the catalogue",
        "people": [player.person(person) for person in people or made_up_people(player.catalogue)],
        "examples": list(examples),
        "requests": MAX_REQUESTS,
    }

    async def answered(work: Callable[[Any], Any], argument: Any) -> Response:
        def locked() -> Any:
            with lock:  # the model answers one call at a time
                return work(argument)

        try:
            return _json(await run_in_threadpool(locked))
        except CramerError as error:
            return _json({"error": printable(str(error.args[0]))}, 422)

    async def titles(request: Request) -> Response:
        return await answered(player.suggest, request.query_params.get("text", ""))

    async def recommend(request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":  # as the forms of other sites cannot send it
            return _json({"error": "the call is not JSON. Reload the page."}, 415)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _BODY_BYTES:
                return _json({"error": f"the call is larger than {_BODY_BYTES} bytes. Shorten a request."}, 413)
        return await answered(player.answer, bytes(body))

    routes = [Route("/" if name == "index.html" else f"/{name}", _file(name, kind)) for name, kind in _FILES.items()]
    routes += [
        Route("/api/start", lambda _: _json(content)),
        Route("/api/titles", titles),
        Route("/api/surprise", lambda _: _json(player.person(surprise(player.catalogue)))),
        Route("/api/recommend", recommend, methods=["POST"]),
    ]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS, www_redirect=False)
    return Starlette(routes=routes, middleware=[guard])


def _json(content: Any, status: int = 200) -> Response:
    return JSONResponse(content, status, _HEADERS)


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    """Return a route that sends one file of the page."""
    content = (_PAGE / name).read_bytes()
    return lambda _: Response(content, 200, _HEADERS, kind)
