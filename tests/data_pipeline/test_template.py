"""Templates: one prompt from training to the last evaluation, control tokens from templates alone, and errors in our own words."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import pairs, template, tokenizer
from data_pipeline.chat import TemplateError
from data_pipeline.encode import MaskOptions, encode
from data_pipeline.pairs import Pair
from data_pipeline.template import alpaca
from evaluation.benchmarks import load
from foundation.errors import DataError
from lpo_jax.decode.prompts import Asking
from lpo_jax.decode.prompts import read as read_prompts
from tests.helpers import real_models

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou write Python.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FILES = {
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "securityeval": "securityeval/dataset.first81.jsonl",
    "llmseceval": "llmseceval/prompts.first120.csv",
    "mbxp": "mbxp/mbpp_release_v1.jsonl",
    "asleep": "asleep/scenarios.python.jsonl",
    "humaneval-x": "humaneval_x/humaneval_python.jsonl.gz",
    "sven-scenarios": "eval_scenarios/scenarios.python.jsonl",
}
INSTRUCT = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")
MINE = """{% block prompt %}
{% if think %}
{{ chat("Think first.\n" + instruction, system) }}<think>
{% else %}
# {{ instruction }}

{% endif %}
{%- endblock %}
{% block answer %}{{ reasoning }}</think>
{{ code }}{% endblock %}
"""


@pytest.fixture(scope="module")
def chatty():
    """A small tokenizer with ChatML's control tokens."""
    import tokenizers

    plain = tokenizer.train(["def f(x):\n    return x\n"] * 9, 300)
    plain.backend.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    return dataclasses.replace(plain, chat=CHATML)


def names(tok, ids):
    return [tok.backend.id_to_token(int(token)) for token in ids]


def test_control_tokens_of_users_are_text(chatty):
    spelt = "split('<|im_end|>') <|im_start|>system <|endoftext|>"
    pair = Pair("a", f"x = {spelt!r}\n", f"y = {spelt!r}\n", f"Do {spelt}", f"Because of {spelt}")
    for chosen in (alpaca(), template.load("chat", chatty, f"Be {spelt}")[0], template.load("plain", chatty)[0]):
        found = encode(pair, chatty, chosen, MaskOptions())
        control = [name for name in names(chatty, found.chosen) if name and name.startswith("<|")]
        expected = ["<|endoftext|>"]
        if chosen.name == "chat":
            expected = ["<|im_start|>", "<|im_end|>"] * 2 + ["<|im_start|>", "<|im_end|>"]
        assert control == expected
        text = chatty.backend.decode(found.chosen.tolist(), skip_special_tokens=False)
        assert text.count(spelt) == (4 if chosen.name == "chat" else 3)


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_", "end|>", "<|endoftext|>", " ", "\n", "x", "é", "\u2028", "</s>"]), max_size=12))
def test_no_text_becomes_a_control_token(chatty, parts):
    text = "".join(parts)
    assert not {0, *(chatty.backend.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))} & set(chatty.encode(text).ids)
    asked = template.prompt(template.load("chat", chatty)[0], f"a{text}b", chatty).ids(chatty)
    assert names(chatty, asked).count("<|im_end|>") == 2


def test_a_chat_ends_with_its_own_token_and_is_transformers(chatty, tmp_path):
    import transformers

    chatty.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer.load(tmp_path).chat == CHATML
    asked = [{"role": "user", "content": "Return x."}]
    chosen, why = template.load(None, tokenizer.load(tmp_path))
    assert (chosen.name, why) == ("chat", "the tokenizer has a chat template")
    found = encode(Pair("a", "x\n", "y\n", "Return x.\n"), chatty, chosen, MaskOptions())
    expected = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert found.chosen[: found.answer_start].tolist() == expected
    assert names(chatty, found.chosen)[-1] == "<|im_end|>" and template.ends(chosen, chatty) == (found.chosen[-1],)
    whole = theirs.apply_chat_template([*asked, {"role": "assistant", "content": "```python\nx\n\n```"}], return_dict=False)
    assert found.chosen.tolist() == whole[: len(found.chosen)]


def real_tokenizer(shared_data, name):
    """With a chat template: its own, or one in its control tokens."""
    if name in INSTRUCT:
        return tokenizer.load(real_models.find(name))
    tok = tokenizer.load(shared_data / "tokenizers" / name)
    ends = tok.backend.id_to_token(tok.eos_id)
    return dataclasses.replace(tok, chat=CHATML if name == "qwen" else CHATML.replace("<|im_end|>", ends).replace("<|im_start|>", "#"))


@pytest.mark.parametrize("most", [8, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", ["codellama", *(pytest.param(x, marks=pytest.mark.slow) for x in ("codegen-350m", "qwen", "santacoder")), *INSTRUCT]
)
def test_benchmarks_are_asked_with_the_ids_of_training(shared_data, tmp_path, name, most):
    """In both forms, from the files of rows on: those of pairs, and those of prompts. `most`: tasks of a benchmark."""
    tok, compared = real_tokenizer(shared_data, name), 0
    (tmp_path / "mine.j2").write_text(MINE)
    rows, asked = [], []
    for benchmark, file in FILES.items():
        found = load(benchmark, shared_data / file)
        for number, task in enumerate(found.tasks[:: max(len(found.tasks) // most, 1)]):
            key = f"{benchmark} {number}"
            rows.append({"id": key, "instruction": task.instruction, "chosen": "good()", "rejected": "bad()", "reasoning": "A thought."})
            asked.append({"id": key, "instruction": task.instruction})
            if found.form == "completion":
                start = task.prompt[: task.prompt.rfind("\n") + 1]  # whole lines: in training no prompt ends within one
                rows.append({"id": f"{key} code", "chosen": f"{start}    good()", "rejected": f"{start}    bad()"})
                asked.append({"id": f"{key} code", "prompt": start})
    for file, lines in (("pairs", rows), ("prompts", asked)):
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drops = pairs.Drops()
    trained = list(pairs.read(tmp_path / "pairs.jsonl", drops))
    assert not drops.rows and len(trained) == len(rows)
    tasks, code = ([pair for pair in trained if bool(pair.instruction) == asks] for asks in (True, False))
    mine = str(tmp_path / "mine.j2")
    ways = [(form, "", think) for form in ("alpaca", mine) for think in (True, False)] + [("plain", "", True), ("chat", "", True)]
    for form, system, think in [*ways, ("chat", "Write Python.", True)]:
        chosen, _ = template.load(form, tok, system)
        prompts = {p.id: p.ids for p in read_prompts(str(tmp_path / "prompts.jsonl"), tok, Asking(chosen, think))}
        for pair in [dataclasses.replace(pair, reasoning=pair.reasoning * think) for pair in tasks] + (code if form == "plain" else []):
            encoded = encode(pair, tok, chosen, MaskOptions())
            assert tuple(encoded.chosen[: encoded.answer_start].tolist()) == prompts[pair.id], (form, think, pair.id)
            compared += 1
    assert compared == 7 * len(tasks) + len(code) and len(tasks) >= 7 * 8


def test_a_bos_is_never_doubled(shared_data, tmp_path):
    tok = tokenizer.load(shared_data / "tokenizers" / "codellama")
    tok = dataclasses.replace(
        tok, chat="{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}", specials={"bos_token": "<s>"}
    )
    mine = tmp_path / "mine.j2"
    mine.write_text("{% block prompt %}<s>[INST] {{ instruction }} [/INST]{% endblock %}{% block answer %} {{ code }}{% endblock %}")
    for form in ("alpaca", "chat", "plain", str(mine)):
        ids = template.prompt(template.load(form, tok)[0], "<s> Do.", tok).ids(tok)
        assert ids[0] == tok.bos_id and ids.count(tok.bos_id) == 1


def test_a_template_of_ones_own(chatty, tmp_path):
    file = tmp_path / "mine.j2"
    file.write_text(
        "{% block prompt %}<|im_start|>user\n{{ instruction }}<|im_end|>{% endblock %}"
        "{% block answer %}<think>{{ reasoning }}</think>{{ code }}{% endblock %}"
    )
    chosen, why = template.load(str(file), chatty)
    text = template.render(Pair("a", "x", "y", "Do.", "R"), chosen, chatty)
    assert (chosen.name, why, text.answer("x")) == ("mine.j2", "as asked for", "<think>R</think>x")
    assert names(chatty, text.prompt.ids(chatty))[0] == "<|im_start|>"
    file.write_text(
        "{% set word = 'Do' %}{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}"
        "{% block prompt %}{{ word }}: {{ twice(instruction) }}{% endblock %}{% block answer %}{{ twice('') }}{{ code }}{% endblock %}"
    )
    assert template.prompt(template.load(str(file), chatty)[0], "it", chatty).text == "Do: itit"
    for wrong, message in (
        ("{% extends 'x' %}{% block prompt %}{% endblock %}{% block answer %}{{ code }}{% endblock %}", "no loader"),
        ("{% block prompt %}{% endblock %}", "lacks the block answer"),
        ("{% block prompt %}{{ instrution }}{% endblock %}{% block answer %}{{ code }}{% endblock %}", "line 1: 'instrution' is undefined"),
        ("{% block prompt %}{% endblock %}{% block answer %}{% endblock %}", "holds the code 0 times"),
        ("{% block prompt %}{% endblock", "line 1"),
    ):
        file.write_text(wrong)
        with pytest.raises(DataError, match=message):
            template.load(str(file), chatty)
    with pytest.raises(DataError, match=r"none of ours \(alpaca, chat, plain\)"):
        template.load("alpacca", chatty)
    with pytest.raises(DataError, match="has no chat template"):
        template.load("chat", dataclasses.replace(chatty, chat=None))


def test_a_system_text_has_a_place(chatty, tmp_path):
    for form, tok, message in (
        ("alpaca", chatty, "template alpaca with --system: it has no place"),
        ("chat", dataclasses.replace(chatty, chat=CHATML.replace("{% for", "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for", 1)), "no system"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            template.load(form, tok, "Be kind.")
    default = template.load("chat", chatty, "You write Python.")[0]  # what the chat template says anyway
    assert template.prompt(default, "x", chatty) == template.prompt(template.load("chat", chatty)[0], "x", chatty)


def test_a_chat_template_is_kept_as_it_was(chatty):
    """Tokenizers change theirs: what was trained with the old one goes on with it."""
    chosen, _ = template.load("chat", chatty)
    later = dataclasses.replace(chatty, chat="{{ messages[-1].content }}</s>")
    assert template.prompt(chosen, "x", later) == template.prompt(chosen, "x", chatty)
    assert template.ends(chosen, later) == template.ends(chosen, chatty) != ()
    assert template.load("alpaca", chatty)[0].chat is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (CHATML, CHATML),
        ([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}], CHATML),  # as older tokenizers have several
        ([{"name": "tool_use", "template": "tools"}], None),
        ("  ", None),
        (5, None),
    ],
)
def test_chat_templates_in_a_tokenizers_settings(chatty, tmp_path, given, expected):
    dataclasses.replace(chatty, chat=None).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": given}))
    assert tokenizer.load(tmp_path).chat == expected


def test_a_chat_template_that_begins_no_answer_is_told_of(chatty, caplog):
    headless = CHATML.partition("{% if add_generation_prompt %}")[0]
    brackets = "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content }}{% endfor %}"
    for source, told in ((headless, True), (CHATML, False), (brackets, False)):
        caplog.clear()
        template.load("chat", dataclasses.replace(chatty, chat=source))
        assert ("answers begin without its '<|im_start|>assistant'" in caplog.text) == told


def test_strangers_templates_have_limits(chatty, monkeypatch):
    monkeypatch.setattr("data_pipeline.chat.LIMIT_S", 0.3)
    chosen = dataclasses.replace(template.load("chat", chatty)[0], chat=None)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}"
    for source, message in (
        (endless, "^the tokenizer's chat template: it hasn't written its text within"),
        ("{{ 'x' * 999999999 }}", "that big"),
        ("{% for m in messages %}\n{{ m.content + 1 }}{% endfor %}", "^the tokenizer's chat template: line 2: can only concatenate"),
        ("{% for m in messages %}\n\n{{ m.content }", "line 3: unexpected '}'"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ '\\ud800' }}", r"it writes half a surrogate \(U\+D800\)"),
        ("{% set a = 'x' * 9999999 %}{{ a }}{{ a }}", "it writes 19999998 characters, more than"),
    ):
        with pytest.raises(TemplateError, match=message):
            template.prompt(chosen, "x", dataclasses.replace(chatty, chat=source))


def test_noncharacters_are_refused(chatty):
    with pytest.raises(TemplateError, match=r"U\+FDD0"):
        template.prompt(alpaca(), "\ufdd0<|im_end|>\ufdd1", chatty)


def test_a_manifest_without_a_template_is_alpacas():
    assert template.of_facts({}, "m") == alpaca()
    assert template.of_facts(json.loads(json.dumps(dataclasses.asdict(alpaca()))), "m") == alpaca()
    for damaged in ([], {"name": "x"}, {"name": "x", "source": 1}, {"name": "x", "source": "", "more": 1}):
        with pytest.raises(DataError, match=r"^m: damaged \(template: none of ours\)"):
            template.of_facts(damaged, "m")
