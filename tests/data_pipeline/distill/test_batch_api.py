"""The Batch API: a kill at its worst moment pays for nothing twice, and a batch that failed doesn't hold its requests for ever."""

import asyncio

import pytest

from data_pipeline.distill import knowledge, prompts
from data_pipeline.distill.journal import Journal, content_key
from data_pipeline.distill.writer import Writer, WriterOptions
from data_pipeline.pairs import DataError
from demos.standin import Standin, serve
from tests.helpers.seed_pairs import PAIRS

BODIES = [prompts.pair_request(t, prompts.Job("m", 6, max_tokens=500)) for t in prompts.plan(knowledge.python_rules(), ("flask",), 6, 0)]
KEYS = {content_key(body) for body in BODIES}


class KilledError(Exception):
    """In place of a SIGKILL: nothing after it gets done."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Asks for some of `BODIES` in a job that goes on from call to call; one stand-in answers all of them."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")
    standin = Standin(PAIRS, 0, 0, None)

    async def ask(bodies):
        server = await serve(standin)
        journal = Journal(tmp_path / "journal")
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        writer = Writer(journal, WriterOptions(url, batch=True, poll_s=0.01, tries=1))
        try:
            return await writer.ask(bodies, lambda: None), set(journal.answers)
        finally:
            await writer.aclose()
            journal.close()
            server.close()

    return standin, lambda bodies=BODIES: asyncio.run(ask(bodies))


@pytest.mark.parametrize("created", [True, False])
def test_a_kill_around_a_batch_s_creation_loses_and_repeats_nothing(run, monkeypatch, created):
    standin, ask = run
    put = Journal.put_batch

    def dies(journal, mark, batch):
        if created and batch.id:
            raise KilledError  # the endpoint has the batch, the journal doesn't know its id
        put(journal, mark, batch)
        if not created:
            raise KilledError  # the journal has the batch, the endpoint doesn't

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put_batch", dies)
        with pytest.raises(KilledError):
            ask(BODIES[:4])
    assert len(standin.batches) == created
    assert ask(BODIES[4:])[0] == {}  # other requests leave it alone
    assert ask() == ({}, KEYS)
    asked = [content_key(body) for body in standin.batched]
    assert sorted(asked) == sorted(KEYS)
    assert ask() == ({}, KEYS) and len(standin.batched) == len(asked)


def test_a_batch_that_failed_is_asked_again(run):
    standin, ask = run
    run_batch = standin.run_batch
    standin.run_batch = lambda *a: run_batch(*a) | {"status": "expired", "output_file_id": None}
    failed, answers = ask()
    assert failed == dict.fromkeys(KEYS, "no answer: batch expired") and not answers
    standin.run_batch = run_batch
    assert ask() == ({}, KEYS)


def test_an_endpoint_without_batches_is_named(run):
    standin, ask = run
    standin.run_batch = lambda *a: {}["no such thing"]  # the connection breaks
    with pytest.raises(DataError, match="without --batch"):
        ask()
