"""A driver serves two models of different tokenizers as it serves one: `CrossSampler`'s own texts, in parts that grow, and rows that clients leave."""

import asyncio

import pytest

from lpo_jax.decode.cross_sampler import CrossSampler
from lpo_jax.decode.request import Request, SamplingConfig
from lpo_jax.decode.rules.crosec import CroSec
from lpo_jax.decode.rules.vocab_map import align, vocabulary
from lpo_jax.serve.driver import Driver
from lpo_jax.serve.protocol import Refusal
from tests.helpers.vocabularies import byte_level, loaded, sentencepiece, shape

TEXTS = ("def f(x):", "import os", "a", "return x +", "the quick brown fox")


@pytest.fixture(scope="module")
def driver():
    tokenizers = byte_level(), sentencepiece()
    models = [loaded(shape(tok.size), seed, dtype="float32") for seed, tok in enumerate(tokenizers)]
    alignment = align(*(vocabulary(model, tok) for model, tok in zip(models, tokenizers, strict=True)))
    config = SamplingConfig(max_new_tokens=12)
    made = Driver(CrossSampler(*models, *tokenizers, alignment, config, 2, 64, rule=CroSec(weight=0.4)), max_waiting=8)
    made.warm_up()
    return made


def test_clients_get_what_the_sampler_writes(driver):
    requests = [Request(f"{i}", text, seed=i, n=1 + i % 2) for i, text in enumerate(TEXTS)]
    expected = {(c.id, c.sample): c for c in driver.sampler.generate(requests)}
    programs = driver.sampler.compilations()

    async def client(request):
        ticket, told = driver.admit([request]), {}
        async for news in ticket:
            before = told.get(news.sample)
            assert before is None or (before.done is None and news.text.startswith(before.text))
            told[news.sample] = news
        ticket.close()
        return told

    async def leaver():
        ticket = driver.admit([Request("left", "def g(y):", seed=9)])
        async for _ in ticket:
            break
        ticket.close()

    async def wrong():
        ticket = driver.admit([Request("wrong", [])])
        with pytest.raises(Refusal, match="request wrong: the prompt has no token"):
            await ticket.completions()
        ticket.close()

    async def everybody():
        driver.start()
        *found, _, _ = await asyncio.gather(*map(client, requests), leaver(), wrong())
        return found

    found = asyncio.run(everybody())
    driver.stop()
    assert {(n.done.id, n.done.sample): n.done for told in found for n in told.values()} == expected
    assert len({c.text for c in expected.values()}) > len(TEXTS) - 1
    assert driver.unfinished() == 0 and not driver._session.busy
    assert driver.sampler.compilations() == programs
