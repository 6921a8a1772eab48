"""The endpoint: budget and pauses."""

import asyncio

import pytest

from data_pipeline.distill import knowledge, prompts
from data_pipeline.distill.endpoint import Teacher, TeacherOptions, retry_after
from data_pipeline.distill.journal import Journal, content_key
from data_pipeline.distill.standin import Standin, serve
from tests.helpers.seed_pairs import PAIRS


@pytest.mark.parametrize("batch", [False, True])
def test_a_budget_stops_cleanly_and_is_kept(tmp_path, monkeypatch, batch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")
    bodies = [prompts.pair_request(t, "m", "sections", 0.5, 500) for t in prompts.plan(knowledge.python_rules(), ("flask",), 40, 0)]

    async def run(budget):
        server = await serve(Standin(PAIRS, 0, 0, None))
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        journal = Journal(tmp_path / "j")
        teacher = Teacher(journal, TeacherOptions(url, price_in=1, price_out=1, budget=budget, batch=batch, poll_s=0.01))
        try:
            return await teacher.ask(bodies, lambda: None), teacher.bill(), journal.answers
        finally:
            await teacher.aclose()
            journal.close()
            server.close()

    failed, bill, answers = asyncio.run(run(0.01))
    assert 0 < len(answers) < 40 and set(failed.values()) == {"budget"} and len(failed) + len(answers) == 40
    assert bill.dollars <= 0.01
    failed, bill, answers = asyncio.run(run(10))
    assert failed == {} and answers.keys() == {content_key(body) for body in bodies}


def test_retry_after_in_each_notation():
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({"retry-after": "2"}) == 2
    assert retry_after({"retry-after": "3600"}) == 60
    assert retry_after({}) == retry_after({"retry-after": "soon"}) == 0
