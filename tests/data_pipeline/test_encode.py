"""Tokenisation: boundaries in token space, masks on the code alone, the authors' truncation."""

import json

import numpy as np
import pytest

from data_pipeline import tokenizer
from data_pipeline.encode import MaskOptions, UnusableError, truncated_lengths
from data_pipeline.encode import encode as encode_in
from data_pipeline.pairs import DataError, Pair
from data_pipeline.template import alpaca
from data_pipeline.template import render as render_in
from tests.helpers.seed_pairs import PAIRS as ROWS

CLEAN, SPANS = MaskOptions(), MaskOptions("spans", hole=0)


def encode(pair, tok, options):
    return encode_in(pair, tok, alpaca(), options)


def render(pair):
    return render_in(pair, alpaca(), None)


@pytest.fixture(scope="module")
def tok():
    texts = [part for p in ROWS for part in (p.chosen, p.instruction, p.reasoning)]
    return tokenizer.train(texts, 600)


def decode(tok, ids):
    return tok.backend.decode(np.asarray(ids).tolist(), skip_special_tokens=False)


@pytest.mark.parametrize("options", [CLEAN, SPANS, MaskOptions("reference", max_length=4096)], ids=lambda o: o.mode)
def test_every_token_is_where_it_belongs(tok, options):
    for pair in ROWS[:40]:
        found, text = encode(pair, tok, options), render(pair)
        assert decode(tok, found.chosen) == text.prompt.text + text.answer(pair.chosen) + "<|endoftext|>"
        assert decode(tok, found.chosen[: found.answer_start]) == text.prompt.text
        code = decode(tok, found.chosen[found.chosen_code_start :])
        assert code.lstrip("\n") == pair.chosen + "\n```<|endoftext|>"
        assert found.chosen[-1] == found.rejected[-1] == tok.eos_id
        assert not found.m_plus[: found.answer_start].any()
        assert found.m_plus.any() or found.m_minus.any()
        if options.mode != "reference":
            assert not found.m_plus[: found.chosen_code_start].any()
            assert not found.m_minus[: found.rejected_code_start].any()
            assert not found.m_plus[-2:].any()


def test_spans_with_text_that_is_not_ascii(tok):
    rejected, chosen = 'greet = "größe → ñ"\nload(x)\n', 'greet = "größe → ñ"\nsafe_load(x)\n'
    at = chosen.index("safe_load")
    pair = Pair("é", chosen, rejected, "Schöne Größe.", "Weil ñ.", chosen_spans=((at, at + 9),), rejected_spans=((at, at + 4),))
    found = encode(pair, tok, SPANS)
    assert "safe_load" in decode(tok, found.chosen[found.m_plus])
    assert len(decode(tok, found.chosen[found.m_plus])) <= len("\nsafe_load(")
    assert "load" in decode(tok, found.rejected[found.m_minus])
    # without recorded spans a diff of words finds the same tokens
    bare = encode(Pair("é", chosen, rejected, "Schöne Größe.", "Weil ñ."), tok, SPANS)
    np.testing.assert_array_equal(bare.m_plus, found.m_plus)


def test_completion_task_begins_with_a_token_of_its_own(tok):
    found = encode(Pair("a", "good()\n", "bad()\n"), tok, CLEAN)  # differs from its first character on
    assert found.chosen[0] == found.rejected[0] == tok.eos_id
    assert found.answer_start == 1


def test_sides_that_become_equal_are_unusable(tok):
    from tokenizers import normalizers

    lossy = tokenizer.Tokenizer(tok.backend.from_str(tok.backend.to_str()), tok.eos_id, None)
    lossy.backend.normalizer = normalizers.NFC()
    with pytest.raises(UnusableError, match="same tokens"):
        encode(Pair("a", "x = 'e\u0301'", "x = '\u00e9'", "Do."), lossy, CLEAN)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((150, 300, 400), (128, 300, 384)),  # T1 ... T6
        ((100, 410, 420), (100, 384, 384)),
        ((60, 460, 300), (60, 384, 300)),
        ((120, 380, 392), (120, 380, 392)),
        ((129, 384, 384), (128, 384, 384)),
        ((512, 50, 60), (128, 50, 60)),
    ],
)
def test_truncation_vectors(given, kept):
    assert truncated_lengths(*given) == kept


def test_reference_truncation_keeps_the_prompts_end_and_the_answers_beginning(tok):
    pair = next(p for p in ROWS if len(tok.backend.encode(p.chosen).ids) > 150)
    whole, cut = (encode(pair, tok, MaskOptions("reference", max_length=n, max_prompt_length=10)) for n in (4096, 60))
    assert cut.answer_start == 10
    np.testing.assert_array_equal(cut.chosen[:10], whole.chosen[whole.answer_start - 10 : whole.answer_start])
    np.testing.assert_array_equal(cut.chosen[10:], whole.chosen[whole.answer_start :][:50])
    assert len(cut.m_plus) == len(cut.chosen) == 60


def test_bos_is_added_only_where_the_tokenizer_does(shared_data):
    llama = tokenizer.load(shared_data / "tokenizers" / "codellama")
    qwen = tokenizer.load(shared_data / "tokenizers" / "qwen")
    assert (llama.bos_id, llama.eos_id, qwen.bos_id, qwen.eos_id) == (1, 2, None, 151643)
    pair = Pair("a", "f(x)", "g(x)", "Do.", "R.")
    assert encode(pair, llama, CLEAN).chosen[0] == 1
    assert encode(pair, qwen, CLEAN).chosen[0] != 151643


def test_real_tokenizers_encode_as_llama_cpp_does(shared_data):
    vectors = [json.loads(line) for line in open(shared_data / "tokenizers" / "llama_cpp_test_vectors.jsonl")]
    for name, key in (("qwen", "qwen2"), ("codellama", "llama_spm")):
        tok = tokenizer.load(shared_data / "tokenizers" / name)
        assert all(tok.backend.encode(v["text"], add_special_tokens=False).ids == v[key] for v in vectors)


def test_tokenizer_errors_and_fingerprint(tok, tmp_path):
    with pytest.raises(DataError, match="no such tokenizer"):
        tokenizer.load(tmp_path / "none")
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        tokenizer.load(tmp_path)
    tok.save(tmp_path)
    assert tokenizer.load(tmp_path).sha256 == tok.sha256
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))  # formatting doesn't matter ...
    assert tokenizer.load(tmp_path).sha256 == tok.sha256
    raw["model"]["merges"] = raw["model"]["merges"][:-1]  # ... but a merge does
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert tokenizer.load(tmp_path).sha256 != tok.sha256
    assert tokenizer.train(["aa bb aa"] * 9, 300).sha256 == tokenizer.train(["aa bb aa"] * 9, 300).sha256
