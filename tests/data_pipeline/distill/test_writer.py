"""The writer: a budget."""

import asyncio

import pytest

from data_pipeline.distill import cost, knowledge, prompts
from data_pipeline.distill.journal import Journal, content_key
from data_pipeline.distill.writer import Writer, WriterOptions
from demos.standin import Standin, serve
from tests.helpers.seed_pairs import PAIRS


@pytest.mark.parametrize("batch", [False, True])
def test_a_budget_stops_cleanly_and_is_kept(tmp_path, monkeypatch, batch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")
    bodies = [
        prompts.pair_request(t, prompts.Job("m", 40, max_tokens=500)) for t in prompts.plan(knowledge.python_rules(), ("flask",), 40, 0)
    ]

    async def run(budget):
        server = await serve(Standin(PAIRS, 0, 0, None))
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        journal = Journal(tmp_path / "j")
        prices = cost.Prices(1, 1, budget)
        writer = Writer(journal, WriterOptions(url, prices=prices, batch=batch, poll_s=0.01))
        try:
            return await writer.ask(bodies, lambda: None), cost.bill(journal.answers.values(), prices), journal.answers
        finally:
            await writer.aclose()
            journal.close()
            server.close()

    failed, bill, answers = asyncio.run(run(0.01))
    assert 0 < len(answers) < 40 and set(failed.values()) == {"budget"} and len(failed) + len(answers) == 40
    assert bill.dollars <= 0.01
    failed, bill, answers = asyncio.run(run(10))
    assert failed == {} and answers.keys() == {content_key(body) for body in bodies}
