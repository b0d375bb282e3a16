"""The ASGI app: POST /recommend, GET /health, GET /metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cramer_peft.errors import DataError, EncoderError, RequestError
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.heard import Heard

from .asks import Ask, AskReader
from .batching import Batcher, ClosedError, QueueFullError
from .cache import StateCache
from .limits import read_body
from .metrics import Metrics
from .refused import Refused, Vanished
from .scoring import Listed, Scorer
from .settings import Settings

_log = logging.getLogger(__name__)
_GONE = 499  # what a log shows for a client that did not wait; nobody receives it


def make_app(recommender: RequestRecommender, settings: Settings | None = None) -> Starlette:
    """The app around one recommender; each app has its own queue, cache, thread and counts."""
    service = Service(recommender, settings or Settings())
    routes = [
        Route("/recommend", service.recommend, methods=["POST"]),
        Route("/health", service.health),
        Route("/metrics", service.metrics_text),
    ]
    return Starlette(routes=routes, lifespan=service.lifespan)


class Service:
    """What is behind the routes.

    Args:
        recommender: Backbone, adapter and catalogue.
        settings: The limits.
    """

    def __init__(self, recommender: RequestRecommender, settings: Settings) -> None:
        self._settings = settings
        self._catalogue = recommender.catalogue
        self._adapter = recommender.masks.active_adapters[0]
        self._reader = AskReader(recommender.catalogue, settings)
        self._metrics = Metrics()
        cache = StateCache(settings.cache_entries)
        recommender.masks.encoder().capacity = settings.cache_entries
        # A model's first call is slow: it is made here, for nobody.
        Scorer(recommender, StateCache(1))([Ask((0,), "anything", 1)])
        self._batcher: Batcher[Ask, Listed] = Batcher(
            Scorer(recommender, cache), settings.max_batch, settings.max_wait, settings.max_queue, self._metrics.batch
        )
        self._metrics.watch(cache, self._batcher)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Answer from here on; at the end, first answer the calls that wait."""
        self._batcher.start()
        yield
        await self._batcher.close(self._settings.shutdown_seconds)

    async def health(self, _: Request) -> JSONResponse:
        """200 while calls are taken, else 503."""
        alive = self._batcher.alive
        content = {"status": "ok" if alive else "stopped", "items": len(self._catalogue), "adapter": self._adapter}
        return JSONResponse(content, status_code=200 if alive else 503)

    async def metrics_text(self, _: Request) -> Response:
        """The counts."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def recommend(self, request: Request) -> Response:
        """Recommendations, or why there are none."""
        started = time.perf_counter()
        try:
            response: Response = JSONResponse(self._answer(await self._listed(request)))
        except Refused as refused:
            response = refused.response()
        except Vanished:
            self._metrics.vanished()
            return Response(status_code=_GONE)
        except Exception:
            _log.exception("a call failed")
            response = Refused(500, "the server failed at this call; its log says why.").response()
        self._metrics.responded(response.status_code, time.perf_counter() - started)
        return response

    async def _listed(self, request: Request) -> Listed:
        body = await read_body(request, self._settings.body_bytes, self._settings.body_timeout)
        ask = self._reader.read(body)
        try:
            return await self._unless_gone(request, ask)
        except QueueFullError:
            raise Refused(503, "too many calls wait. Try again.", retry_after=1) from None
        except ClosedError:
            raise Refused(503, "the server is stopping. Try again.", retry_after=1) from None
        except (EncoderError, RequestError) as error:
            raise Refused(422, f"request: {error}", "request") from None
        except DataError as error:
            raise Refused(422, str(error), "before") from None

    async def _unless_gone(self, request: Request, ask: Ask) -> Listed:
        """The answer, unless the client goes away or the time is over; either frees its place in the queue."""
        answer = asyncio.ensure_future(self._batcher.submit(ask))
        gone = asyncio.ensure_future(_until_gone(request))
        try:
            await asyncio.wait({answer, gone}, timeout=self._settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise Vanished
            raise Refused(504, f"no answer within {self._settings.timeout:g} seconds. Try again.", retry_after=1)
        finally:
            answer.cancel()
            gone.cancel()

    def _answer(self, listed: Listed) -> dict[str, object]:
        ids, titles = self._catalogue.item_ids, self._catalogue.titles
        items = [{"item_id": ids[item], "title": titles[item]} for item in listed.items]
        return {"items": items, "heard": _heard(listed.heard)}


def _heard(heard: Heard | None) -> dict[str, object] | None:
    return None if heard is None else {"parts": [asdict(part) for part in heard.parts], "missed": list(heard.missed)}


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
