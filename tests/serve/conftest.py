"""A tiny recommender behind the server of ``examples/serve``, and a client that speaks ASGI to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.recsys.backbones import SASRec, save_backbone
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.recommender import RequestRecommender

if not all(map(find_spec, ("starlette", "uvicorn", "prometheus_client"))):
    collect_ignore_glob = ["test_*.py"]  # the extra "serve" is not installed

ITEMS = 60


@dataclass
class Reply:
    """A response: status, headers in lower case, body."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def ids(self) -> list[str]:
        """Recommended item ids."""
        assert self.status == 200, self.body
        return [item["item_id"] for item in self.json["items"]]


@dataclass
class Client:
    """Calls an ASGI app without a network; ``gone``, once set, is a client that has left."""

    app: Any

    async def post(
        self,
        body: object,
        gone: asyncio.Event | None = None,
        headers: dict[str, str] | None = None,
        chunks: list[bytes] | None = None,
    ) -> Reply:
        """POST /recommend with JSON, bytes, or bytes in chunks."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.call("POST", "/recommend", chunks or [raw], gone, headers)

    async def get(self, path: str) -> Reply:
        return await self.call("GET", path, [b""])

    async def call(
        self,
        method: str,
        path: str,
        chunks: list[bytes],
        gone: asyncio.Event | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        reply, left = Reply(), list(chunks)

        async def receive() -> dict[str, Any]:
            if left:
                chunk = left.pop(0)
                return {"type": "http.request", "body": chunk, "more_body": bool(left)}
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            reply.body += message.get("body", b"")

        pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        scope = {"type": "http", "method": method, "path": path, "headers": pairs, "query_string": b""}
        await self.app({**scope, "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
        return reply

    async def metric(self, line: str) -> float:
        """The value of one line of /metrics; 0 where it is not there."""
        lines = (await self.get("/metrics")).body.decode().splitlines()
        values = [float(each.rpartition(" ")[2]) for each in lines if each.rpartition(" ")[0] == line]
        return values[0] if values else 0.0


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    titles = [f"Tale {item}" for item in range(ITEMS)]
    titles[7], titles[8] = "Twins", "twins"
    titles[9] = "i4"  # the id of another item
    titles[10] = "  Der  Weg, 2 "
    flags = torch.zeros(ITEMS, 2, dtype=torch.bool)
    flags[::2, 0] = True
    ids = (*(f"i{item}" for item in range(ITEMS - 1)), "99")
    return Catalogue(ids, tuple(titles), ("even", "odd"), flags)


@pytest.fixture(scope="session")
def bundle(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``cramer-peft demo`` writes it, with strong random masks."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundle")
    model = SASRec(SASRec.configure(ITEMS, max_length=8, hidden_size=16)).eval()
    with torch.no_grad():  # an untrained model scores everything nearly the same
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    save_backbone(model, folder)
    config = RequestMaskConfig(
        gate="low_rank", rank=2, encoder="hashing", encoder_options={"dim": 32}, init_weights=False
    )
    RequestRecommender(inject_request_masks(model, config), catalogue).save(folder)
    return folder


@pytest.fixture(scope="session")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> RequestRecommender:
    """A recommender that says what it hears of requests, with random masks."""
    pytest.importorskip("wordllama")
    pytest.importorskip("snowballstemmer")
    from cramer_peft.recsys import request_encoder
    from cramer_peft.recsys.masks import mask_backbone

    torch.manual_seed(0)
    flags = torch.zeros(ITEMS, 2, dtype=torch.bool)
    flags[::2, 0], flags[::3, 1] = True, True
    titles = tuple(f"Tale {item}" if item else "The Quiet Harbour" for item in range(ITEMS))
    years = torch.arange(ITEMS, dtype=torch.float64) + 1950
    catalogue = Catalogue(tuple(f"i{item}" for item in range(ITEMS)), titles, ("Comedy", "Horror"), flags)
    catalogue = replace(catalogue, numbers={"year": years}).with_popularity(range(1, ITEMS + 1))
    model = SASRec(SASRec.configure(ITEMS, max_length=8, hidden_size=16)).eval()
    encoder = request_encoder(None, catalogue, model, {"words": "wordllama"})
    masks = mask_backbone(model, catalogue, RequestMaskConfig(init_weights=False), encoder)
    return RequestRecommender(masks, catalogue)


@pytest.fixture
def recommender(bundle: Path) -> RequestRecommender:
    return RequestRecommender.load(bundle)


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    """Starts an app inside ``async with serving(recommender, **settings) as client`` and stops it at the end."""
    from serve.app import make_app
    from serve.settings import Settings

    @asynccontextmanager
    async def start(recommender: RequestRecommender, **settings: Any) -> AsyncIterator[Client]:
        app = make_app(recommender, Settings(**settings))
        async with app.router.lifespan_context(app):
            yield Client(app)

    return start


@pytest.fixture(scope="session")
def run() -> Callable[[Awaitable[Any]], Any]:
    """Runs a coroutine for at most a minute."""

    def run_(work: Awaitable[Any]) -> Any:
        return asyncio.run(asyncio.wait_for(work, 60))

    return run_
