"""Tokenizers of every kind: control tokens from templates alone, a text that goes on, and where two tokenizers differ."""

import dataclasses
import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import template, tokenizer
from data_pipeline.chat import TemplateError
from data_pipeline.tokenizer import CLOSE, OPEN
from foundation.errors import DataError
from tests.helpers.vocabularies import CODE, PROSE, TEXT, byte_level, sentencepiece


def unigram():
    """As T5's: pieces with scores, a blank in front of a text."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz(){}'<|>_=#:é\n")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.add_special_tokens(["<unk>", "</s>"])
    return tokenizer.Tokenizer(backend, 1, None)


def chatml():
    """As Qwen's: control tokens that its file calls special, one that it doesn't, and a run of blanks as an added token."""
    made = byte_level()
    names = [
        tokenizers.AddedToken(name, special=name != "<tool_call>", normalized=False) for name in ("<|im_end|>", "<tool_call>", "      ")
    ]
    made.backend.add_special_tokens(names[:1])
    made.backend.add_tokens(names[1:])
    return tokenizer.Tokenizer(made.backend, made.backend.token_to_id("<|im_end|>"), None, specials={"eos_token": "<|im_end|>"})


def bos():
    """As CodeLlama's with its post-processor: <s> in front of every text."""
    made = sentencepiece()
    made.backend.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return made


KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece, "unigram": unigram, "chatml": chatml, "bos": bos}
NAMES = ("<|endoftext|>", "</s>", "<s>", "<unk>", "<|im_end|>", "<tool_call>")


@pytest.fixture(scope="module", params=KINDS)
def tok(request):
    return KINDS[request.param]()


def controls(tok):
    return {name: index for name in NAMES if (index := tok.backend.token_to_id(name)) is not None}


@given(st.lists(TEXT | st.sampled_from([*NAMES, "<|im_", "end|>", "\ufeff", "\u2028", "\r"]), max_size=8).map("".join))
def test_what_a_text_spells_is_text(tok, text):
    """None of its tokens is a control token, but for what the tokenizer can't write at all."""
    unknown = {tok.backend.token_to_id("<unk>")}
    for goes_on in (False, True):
        assert not set(tok.encode(text, goes_on).ids) & (set(controls(tok).values()) - unknown)


def test_what_stands_between_the_two_marks_is_a_control_token(tok):
    for name, index in controls(tok).items():
        assert OPEN + name + CLOSE in (written := f"a{OPEN}{name}{CLOSE}b{name}")
        assert tok.encode(written).ids.count(index) == 1 + (name == "<unk>") * tok.encode(f"ab{name}").ids.count(index)
    ids = tok.encode("def f():\n    return 'x'\n").ids
    assert tok.backend.encode("def f():\n    return 'x'\n", add_special_tokens=False).ids == ids  # all else is as it was


def test_noncharacters_of_users_are_no_marks(tok):
    """Whoever writes the two marks around a name gets an error, not the token."""
    for text in (f"x{OPEN}</s>{CLOSE}", OPEN, CLOSE):
        with pytest.raises(TemplateError, match=r"U\+FDD[01], which is no character"):
            template.as_it_stands(text)


def test_a_text_that_goes_on_gets_no_blank_in_front(tok):
    assert tok.encode("and", goes_on=True).tokens[0][0] == "a" and not tok.encode("", goes_on=True).ids
    together = tok.backend.decode([*tok.encode("return").ids, *tok.encode("(x)", goes_on=True).ids])
    assert together.replace("<unk>", "") == "return(x)"


def test_bos_stands_once_in_front(tok):
    ids, expected = tok.document("x"), [] if tok.bos_id is None else [tok.bos_id]
    assert ids == expected + tok.encode("x").ids
    assert tok.document("") == (expected or [tok.eos_id])
    if tok.bos_id is not None:
        assert tok.document("<s>x").count(tok.bos_id) == 1
        assert template.Prompt(f"{OPEN}<s>{CLOSE}x", whole=True).ids(tok).count(tok.bos_id) == 1


def test_what_is_saved_is_what_is_loaded(tok, tmp_path):
    told = dataclasses.replace(tok, chat="{{ messages }}\ufeff")
    told.save(tmp_path)
    found = tokenizer.load(tmp_path)
    if tok.bos_id is None or tok.backend.post_processor is not None:
        assert found.bos_id == tok.bos_id
    assert (found.eos_id, found.sha256, found.size, found.chat) == (tok.eos_id, tok.sha256, tok.size, told.chat)
    assert found.encode("é </s> x").ids == tok.encode("é </s> x").ids
    (tmp_path / tokenizer.CHAT_FILE).write_bytes(b"\xef\xbb\xbf{{ messages }}")  # an editor's mark isn't the template's
    assert tokenizer.load(tmp_path).chat == "{{ messages }}"
    (tmp_path / tokenizer.CHAT_FILE).write_bytes(b"\xff{{ messages }}")
    with pytest.raises(DataError, match=rf"{tokenizer.CHAT_FILE}: not UTF-8 text"):
        tokenizer.load(tmp_path)


def test_compare_says_where_two_differ():
    ours, theirs = byte_level(), byte_level(entries=320)
    assert tokenizer.compare(ours, ours) == (None, 0, 0)
    assert tokenizer.compare(ours, theirs) == (None, ours.size - theirs.size, 0)
    assert tokenizer.compare(theirs, ours) == (None, 0, ours.size - theirs.size)
    other = byte_level(PROSE)
    (index, mine, its), _, _ = tokenizer.compare(ours, other)
    assert mine != its and ours.backend.id_to_token(index) == mine and other.backend.id_to_token(index) == its
    assert all(ours.backend.id_to_token(i) == other.backend.id_to_token(i) for i in range(index))
    more = tokenizer.Tokenizer(byte_level(CODE).backend, 0, None)
    more.backend.add_special_tokens(["<|im_end|>"])
    assert tokenizer.compare(ours, more) == (None, 0, 1)


def test_the_default_of_several_chat_templates_is_read(tmp_path):
    byte_level().save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}, 5, {"name": "default"}]
    for found, expected in (("C", "C"), (several, "D"), (several[:1], None), (7, None), ({"default": "x"}, None), (None, None)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": found}))
        assert tokenizer.load(tmp_path).chat == expected
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert tokenizer.load(tmp_path).chat == "J"
