"""The cache of mask states is bounded, keyed by adapter and text, and counted."""

from serve.cache import Known, StateCache

from cramer_peft.recsys.recommender import RequestRecommender


def test_the_least_recently_used_go_first(recommender: RequestRecommender) -> None:
    state = Known(recommender.masks.mask_state(["a"]))
    cache = StateCache(2)
    for text in "ab":
        assert cache.get(("x", text)) is None
        cache.put(("x", text), state)
    assert cache.get(("x", "a")) is state
    assert cache.get(("y", "a")) is None
    cache.put(("x", "c"), state)
    assert (len(cache), cache.hits, cache.misses) == (2, 1, 3)
    assert cache.get(("x", "b")) is None
    assert cache.get(("x", "a")) is cache.get(("x", "c")) is state
    cache.clear()
    assert len(cache) == 0


def test_hits_misses_and_the_bound(run, serving, recommender: RequestRecommender) -> None:
    async def work() -> None:
        async with serving(recommender, cache_entries=3) as client:

            async def counts() -> list[float]:
                names = ('cramer_cache_lookups_total{result="hit"}', 'cramer_cache_lookups_total{result="miss"}')
                return [await client.metric(name) for name in (*names, "cramer_cache_entries")]

            for text in ("a", "b", "a", "c", None, "", "d", "b"):
                assert (await client.post({"history": ["i1"], "request": text})).status == 200
            assert await counts() == [1, 5, 3]
            assert len(recommender.masks.encoder()._vectors) <= 3  # the encoder keeps no more than that either

    run(work())
