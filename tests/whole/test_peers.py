"""benchmarks.peers: what other trainers are given, what they should log, and how they are driven. The trainers themselves are not installed."""

import argparse
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import common
from benchmarks.peers import Peer, PeerError, first_step, model_config, write_inputs
from lpo_jax.model.decoder import Model

FAITHFUL = """
import json, sys
spec = json.load(open(sys.argv[1]))
print("chatter", file=sys.stderr)
print(json.dumps({"lengths": spec["lengths"]}), flush=True)
steps = 0
for line in sys.stdin:
    steps += 1
    print("{}", flush=True)
print(json.dumps({"loss": [0.5] * steps}), flush=True)
"""
MORTAL = """
import sys
print('{"lengths": []}', flush=True)
sys.stdin.readline()
sys.exit("out of memory")
"""


@pytest.fixture(scope="module")
def tok():
    return common.load_tokenizer(None)


@pytest.fixture(scope="module")
def texts(tok):
    return common.load_texts([common.SEED_PAIRS], tok)[:3]


@pytest.fixture(scope="module")
def model(tok):
    return Model(model_config(tok, argparse.Namespace(d_model=64, layers=1, max_tokens=1024)))


def test_a_peer_steps_when_told_and_then_says_what_it_logged(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(FAITHFUL)
    with Peer(sys.executable, script, {"scratch": str(tmp_path), "lengths": [[3, 4]]}) as peer:
        assert peer.lengths == [[3, 4]]
        peer.step()
        peer.step()
        assert peer.finish() == {"loss": [0.5, 0.5]}


def test_a_dead_peer_leaves_its_last_words(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(MORTAL)
    with Peer(sys.executable, script, {"scratch": str(tmp_path)}) as peer:
        for _ in range(2):
            with pytest.raises(PeerError, match="status 1: out of memory"):
                peer.step()


def test_the_text_given_is_that_of_the_ids(tmp_path, tok, texts, model):
    from transformers import AutoTokenizer

    write_inputs(tmp_path, model, model.init(jax.random.key(0)), tok, texts)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == len(texts)
    for row, (_, pair) in zip(rows, texts, strict=True):
        for side in ("chosen", "rejected"):
            ids = theirs(row["prompt"] + row[side], add_special_tokens=False)["input_ids"]
            assert [*ids, theirs.eos_token_id] == row[f"{side}_ids"] == getattr(pair, side).tolist()
        assert theirs(row["prompt"], add_special_tokens=False)["input_ids"] == row["chosen_ids"][: row["answer_start"]]


@pytest.mark.slow
def test_the_expected_log_is_that_of_whole_sequences(texts, model):
    params = model.init(jax.random.key(0))
    pairs = [pair for _, pair in texts]

    def answer(ids, start):
        logps = jax.nn.log_softmax(model.logits(params, jnp.asarray(ids)[None]))[0]
        return np.asarray(logps)[np.arange(start - 1, len(ids) - 1), ids[start:]]

    sides = [[answer(ids, pair.answer_start) for ids in (pair.chosen, pair.rejected)] for pair in pairs]
    mean, total = (np.array([[f(x) for x in pair] for pair in sides]) for f in (np.mean, np.sum))
    expected = first_step(model, params, pairs)
    np.testing.assert_allclose(expected.mean, mean.mean(0), rtol=1e-5)
    np.testing.assert_allclose(expected.total, total.mean(0), rtol=1e-5)
    np.testing.assert_allclose(expected.simpo, np.log1p(np.exp(5.4 - 10.0 * (mean[:, 0] - mean[:, 1]))).mean(), rtol=1e-4)
