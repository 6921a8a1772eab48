"""Alignment of two vocabularies: what tokens spell, planted rotations, and CSLS against its definition."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given

from data_pipeline import tokenizer
from lpo_jax.config import ConfigError
from lpo_jax.decode.rules import vocab_map
from lpo_jax.decode.rules.vocab_map import Alignment, Vocabulary, align, load_or_align, spell
from tests.helpers.sampling import tokenizer as word_level
from tests.helpers.vocabularies import SOME_REAL, TEXT, byte_level, sentencepiece, words

KINDS = {"byte-level": byte_level(), "sentencepiece": sentencepiece()}


def spelled(tok, text, table=None):
    table = table or spell(tok)
    return b"".join(table[token] for token in tok.backend.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXT)
def test_tokens_spell_their_text(kind, text):
    """But for the space that sentencepiece puts in front, and its own mark, which it can't tell from a space."""
    expected = (" " * (kind == "sentencepiece" and bool(text)) + text).replace("▁", " " if kind == "sentencepiece" else "▁")
    assert spelled(KINDS[kind], text) == expected.encode()


@pytest.mark.parametrize("name", SOME_REAL)
def test_real_tokens_spell_their_text(name, shared_data):
    tok = tokenizer.load(shared_data / "tokenizers" / name)
    table = spell(tok)
    for text in ("def f(x):\n        return x  # naïve 日本 🦙\r\n\t", "\n\n  'quoted'   12345 <div>", "a" * 50):
        assert spelled(tok, text, table) == (" " * (name == "codellama") + text).encode()
    assert tok.eos_id not in table and len(table) + 40 > len(tok.backend.get_vocab())


def test_other_kinds_are_refused():
    with pytest.raises(ConfigError, match="neither"):
        spell(word_level())


def table(tok, width, seed=0):
    return np.random.default_rng(seed).normal(size=(tok.size + 3, width)).astype(np.float32)  # three rows of padding


SHARED, TARGETS, EXPERTS = ([f"{kind}{i}" for i in range(150)] for kind in "sxy")


@pytest.mark.parametrize("wider", [64, 80])
def test_a_planted_rotation_is_found(wider):
    """The expert's table is the target's, shuffled and turned (into more dims): each token without a counterpart finds the one it was made from."""
    rng = np.random.default_rng(1)
    target = words([*SHARED, *TARGETS])
    order = rng.permutation(300)
    expert = words([(SHARED + EXPERTS)[i] for i in order], eos="</s>", specials=["<pad>"])
    ours = table(target, 64)
    turn = np.linalg.qr(rng.normal(size=(wider, 64)))[0].T
    theirs = np.zeros((302, wider), np.float32)
    theirs[2:] = ours[1:301][order] @ turn
    found = align(Vocabulary(target, ours), Vocabulary(expert, theirs))
    assert found.votes_for[2:].tolist() == (1 + order).tolist()
    same = order < 150
    assert (found.strength[2:][same] == 1).all() and ((found.strength[2:][~same] >= 0.5) & (found.strength[2:][~same] < 1)).all()
    assert found.votes_for[:2].tolist() == [-1, 0]  # padding, end
    unrelated = align(Vocabulary(target, ours), Vocabulary(expert, table(expert, wider, seed=5)))
    assert (unrelated.votes_for >= 0).sum() == 151  # the shared ones, and the end


def test_csls_is_its_definition(monkeypatch):
    """In blocks of 7 columns, against the whole matrix in numpy."""
    rng = np.random.default_rng(0)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rng.normal(size=(40, 5)), rng.normal(size=(33, 5))))
    monkeypatch.setattr(vocab_map, "_BLOCK_NUMBERS", 7 * 40)
    where, values = vocab_map.nearest_by_csls(jax.numpy.asarray(a), jax.numpy.asarray(b), 25)
    cos = a @ b.T
    csls = 2 * cos - np.sort(cos, 1)[:, -3:].mean(1)[:, None] - np.sort(cos, 0)[-3:].mean(0)
    assert where.tolist() == csls[:25].argmax(1).tolist()
    np.testing.assert_allclose(values, csls[:25].max(1), atol=1e-5)


def test_the_same_text_is_the_same_token_however_it_is_spelled():
    ours, theirs = KINDS["byte-level"], KINDS["sentencepiece"]
    found = align(Vocabulary(ours, table(ours, 8)), Vocabulary(theirs, table(theirs, 6)))
    for mine, its in {"Ċ": "<0x0A>", "Ġ": "▁", "in": "in", "e": "e"}.items():
        mine, its = ours.backend.token_to_id(mine), theirs.backend.token_to_id(its)
        assert found.votes_for[its] == mine and found.strength[its] == 1
    assert found.votes_for[theirs.backend.token_to_id("<0x65>")] == ours.backend.token_to_id("e")  # bytes too
    assert found.nearest[ours.backend.token_to_id("e")] == theirs.backend.token_to_id("e")  # but a letter is taken before its byte
    texts, its = spell(ours), spell(theirs)
    for token in theirs.backend.get_vocab().values():
        if found.strength[token] == 1 and token in its:
            assert its[token] == texts[found.votes_for[token]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_is_itself(kind):
    tok = KINDS[kind]
    found = align(Vocabulary(tok, table(tok, 8)), Vocabulary(tok, table(tok, 8, 1)))
    assert found.votes_for.tolist() == found.nearest.tolist() == list(range(tok.size))
    assert (found.strength == 1).all() and found.heard.all()


def test_specials_correspond_by_role_then_name_and_never_by_id():
    target = words(["a", "b"], eos="<|endoftext|>", specials=["<fim>", "<mine>"])
    expert = words(["b", "a"], eos="</s>", specials=["<pad>", "<fim>", "<|endoftext|>", "<im_end>"])
    ids = {name: target.backend.token_to_id(name) for name in ("<fim>", "<mine>", "<|endoftext|>", "a", "b")}
    found = align(Vocabulary(target, table(target, 4)), Vocabulary(expert, table(expert, 4), ends=(3,)))
    votes = {expert.backend.id_to_token(i): int(j) for i, j in enumerate(found.votes_for)}
    end = ids["<|endoftext|>"]
    assert votes == {"<pad>": -1, "<fim>": ids["<fim>"], "<|endoftext|>": end, "<im_end>": end, "</s>": end, "a": ids["a"], "b": ids["b"]}
    nearest = {target.backend.id_to_token(i): int(j) for i, j in enumerate(found.nearest)}
    assert nearest["<mine>"] == -1 and nearest["<fim>"] == 1 and nearest["<|endoftext|>"] == expert.eos_id


def test_nearest_begins_or_continues_the_text():
    target = words(["return", "Ġfoo", "ĠĠĠ", "zzz", "abcdef", "é"])  # é: a byte, 0xe9
    expert = words(["re", "retu", "returning", "Ġ", "ĠĠĠĠ", "ab", "abcdefg", "foo"])
    found = align(Vocabulary(target, table(target, 4)), Vocabulary(expert, table(expert, 4))).nearest
    got = {target.backend.id_to_token(i): expert.backend.id_to_token(j) if j >= 0 else None for i, j in enumerate(found.tolist())}
    assert got == {
        "<end>": "<end>", "return": "retu", "Ġfoo": None, "ĠĠĠ": "ĠĠĠĠ", "zzz": None, "abcdef": "abcdefg", "é": None,
    }  # fmt: skip


def test_an_alignment_is_kept_on_disk(tmp_path, monkeypatch):
    """Under a name that follows from everything it follows from; and it comes back whole."""
    a, b = (Vocabulary(tok, table(tok, 8), ends=(3,)) for tok in KINDS.values())
    made = load_or_align(tmp_path / "new", a, b)
    others = [
        load_or_align(tmp_path / "new", *pair)
        for pair in (
            (b, a),
            (a, dataclasses.replace(b, ends=())),
            (a, dataclasses.replace(b, embeddings=b.embeddings + 1)),
        )
    ]
    assert len(list((tmp_path / "new").iterdir())) == 1 + len(others)
    monkeypatch.setattr(vocab_map, "align", None)  # not made again
    again = load_or_align(tmp_path / "new", a, b)
    for name in ("votes_for", "strength", "nearest"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
        assert getattr(again, name).dtype == getattr(made, name).dtype
    bf16 = dataclasses.replace(a, embeddings=np.asarray(jax.numpy.asarray(a.embeddings, jax.numpy.bfloat16)))
    with pytest.raises(TypeError):
        load_or_align(tmp_path / "new", bf16, b)  # another one: it would be made


def test_a_full_disk_leaves_no_half_alignment(tmp_path, monkeypatch):
    def full(tensors, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vocab_map, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        Alignment(*(np.zeros(3, np.int32),) * 3).save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
