"""How models are asked: as they were trained, whoever asks, and in words where they are not."""

import dataclasses
import json
import logging

import pytest

from data_pipeline import template
from data_pipeline.encode import MaskOptions, encode
from data_pipeline.pairs import Pair
from foundation.errors import DataError
from lpo_jax.config import ConfigError
from lpo_jax.decode.prompts import Asking, asking, read
from tests.helpers.sampling import tokenizer

CHAT = "{% for m in messages %} w{{ m.role | length }} {{ m.content }}{% endfor %}{% if add_generation_prompt %} w9{% endif %}"


@pytest.fixture
def tok():
    return dataclasses.replace(tokenizer(), chat=CHAT)


def exported(path, chosen):
    """As much of an export as says how it was trained."""
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / template.FILE).write_text(json.dumps(dataclasses.asdict(chosen)))
    return str(path)


def test_what_was_trained_here_is_asked_as_it_was_trained(tok, tmp_path, caplog):
    own = dataclasses.replace(template.load("chat", tok, "w7")[0], thinks=False)
    model = exported(tmp_path / "m", own)
    for how in (asking(model, tok), asking(model, tok, "chat"), asking(model, tok, "chat", "w7")):
        assert (how.template, how.think, how.remarks) == (own, False, ())
    other = asking(model, tok, "alpaca")
    assert other.remarks == (f"{model} was trained with the template chat and is asked in alpaca",) and not other.think
    assert "Security Thought" not in other.prompt("w1", tok).text
    said = asking(model, tok, system="w8")
    assert said.template.system == "w8" and said.remarks == (f"{model} was trained with the system text 'w7' and is asked with 'w8'",)
    with caplog.at_level(logging.WARNING):
        said.warn()
    assert caplog.messages == list(said.remarks)
    with pytest.raises(DataError, match="no place for a system text"):
        asking(model, tok, "alpaca", "w8")
    adapter = exported(tmp_path / "adapter", template.alpaca())
    assert asking(model, tok, adapter=adapter).template == template.alpaca()


def test_a_damaged_template_of_a_model_is_named(tok, tmp_path):
    for number, (source, message) in enumerate((("{% block x %}{% endblock %}", "lacks the block answer, prompt"), ("\n{{", "line 2"))):
        model = exported(tmp_path / str(number), template.Template("mine", source))
        with pytest.raises(DataError, match=f"{number}/{template.FILE}: its template: .*{message}"):
            asking(model, tok)


def test_others_are_asked_in_their_chat_template_or_plainly(tok, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert asking(str(tmp_path), tok).template.name == "chat"
    assert asking(str(tmp_path), dataclasses.replace(tok, chat=None)).template.name == "plain"
    direct = asking(str(tmp_path), tok, think=False)
    assert direct.remarks == ("--no-think changes nothing: the template chat asks for a thought and for none alike",)
    assert not asking(str(tmp_path), tok, "alpaca", think=False).remarks
    assert direct.facts["template"] == "chat" and direct.facts != asking(str(tmp_path), dataclasses.replace(tok, chat=CHAT + " "), think=False).facts  # fmt: skip


@pytest.mark.parametrize("form", ["alpaca", "chat", "plain"])
def test_a_conversation_has_the_ids_of_a_pair_with_that_history(tok, form):
    chosen, _ = template.load(form, tok)
    pair = Pair("a", "w5", "w6", "w1 w2", history=(("system", "w3"), ("user", "w4"), ("assistant", "w5 w6")))
    encoded = encode(pair, tok, chosen, MaskOptions())
    messages = [{"role": role, "content": text} for role, text in (*pair.history, ("user", "w1 w2\n"))]
    assert Asking(chosen, False).conversation(messages, tok).ids(tok) == encoded.chosen[: encoded.answer_start].tolist()
    if form == "chat":
        assert Asking(chosen, False).conversation(messages[:3], tok).ids(tok)[-1] == 9
    else:
        with pytest.raises(ValueError, match="must be the user's"):
            Asking(chosen, False).conversation(messages[:3], tok)


def test_rows_of_prompts_lose_nothing_unnamed(tok, tmp_path, caplog):
    file = tmp_path / "p.jsonl"
    rows = [{"prompt": "w1", "id": None}, {"prompt": "w2", "history": [["user", "w3"]], "system": ""}, {"prompt": "w3", "id": 7}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = Asking(template.alpaca(), False)
    assert [prompt.id for prompt in read(str(file), tok, asked)] == ["1", "2", "7"]
    assert caplog.messages == [f"{file}: nothing reads the columns history (1 rows)"]
    file.write_text('{"prompt": "w1", "id": "\\ud800"}')
    with pytest.raises(ConfigError, match=r"p\.jsonl:1: id: half a surrogate"):
        read(str(file), tok, asked)


def test_a_row_that_names_an_adapter_needs_some(tok, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "w1"}\n{"prompt": "w2", "adapter": "new"}\n')
    with pytest.raises(ConfigError, match=r"p\.jsonl:2: adapter 'new': there are none to choose from: give it, --adapter NAME=DIR"):
        read(str(file), tok, Asking(template.alpaca(), False))
