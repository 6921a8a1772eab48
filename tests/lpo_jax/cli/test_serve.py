"""`lpo serve` as a command: its text is `lpo generate`'s, its chats are written by the model's template, and a signal ends it."""

import json
import logging
import os
import signal
import threading
import time

import jax
import openai
import pytest
import transformers

from data_pipeline import tokenizer as tokenizers
from lpo_jax import cli
from lpo_jax.decode import job as jobs
from lpo_jax.decode import load
from lpo_jax.decode.prompts import asking
from lpo_jax.model import hf
from lpo_jax.sharding import make_mesh
from lpo_jax.train.stop import EXIT_CODE
from tests.helpers.paths import REPO
from tests.helpers.sampling import tokenizer, torch_model
from tests.helpers.shown import blocks
from tests.helpers.vocabularies import byte_level, loaded, sentencepiece, shape


def instruct(port, seed):
    """A chat of one message, with OpenAI's client."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sesame", max_retries=0)
    asked = {"model": "llama", "messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 12, "seed": seed}
    return client.chat.completions.create(**asked, temperature=0.4, top_p=0.95).choices[0].message.content


def as_documented(port):
    """What docs/serving.md has a client print: its text, how it ended, and how many tokens both have."""
    (code,) = blocks((REPO / "docs" / "serving.md").read_text(encoding="utf-8"), ("python",))
    here = {
        "127.0.0.1:8000": f"127.0.0.1:{port}", '"none"': '"sesame"', "tiny_cpu": "llama", "max_tokens=60": "max_tokens=12",
        "Write a Flask route that shows a user's profile from SQLite.": "w1 w2",
    }  # fmt: skip
    for shown, mine in here.items():
        assert shown in code
        code = code.replace(shown, mine)
    printed = []
    exec(code, {"print": lambda *given: printed.append(given)})
    return printed


def alone(directory):
    """A model's flags."""
    torch_model("llama untied").save_pretrained(directory)
    tokenizer().save(directory)
    return ["--model", str(directory)]


def mixed(directory):
    """Those of two models that share no tokenizer."""
    for place, tok, seed in ((directory, byte_level(), 0), (directory.with_name("other"), sentencepiece(), 1)):
        made = loaded(shape(tok.size), seed, dtype="float32")
        hf.write_params(place, made.model, made.params)
        tok.save(place)
    return ["--model", str(directory), "--security", str(directory.with_name("other")), "--preset", "crosec", "--weight", "0.4"]


@pytest.mark.parametrize(("models", "told", "code"), [(alone, signal.SIGTERM, EXIT_CODE), (mixed, signal.SIGINT, 0)])
def test_the_command_serves_what_lpo_generate_writes(models, told, code, tmp_path, monkeypatch, caplog):
    """And SIGTERM ends it as it ends a training, Ctrl-C as what was wanted."""
    flags = models(tmp_path / "llama")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    monkeypatch.setenv("LPO_API_KEY", " sesame\n")  # blanks around it, as files and shells leave them
    caplog.set_level(logging.INFO)
    found, ended = [], threading.Event()

    def client():
        try:
            while not any("ready:" in message for message in caplog.messages):
                assert not ended.is_set()
                time.sleep(0.02)
            port = next(m for m in caplog.messages if "ready:" in m).split("/v1")[0].rpartition(":")[2]
            found.append(instruct(port, jobs.request_seed(0, "p")))
            found.extend(as_documented(port))
        finally:
            os.kill(os.getpid(), told)

    thread = threading.Thread(target=client)
    guard = signal.signal(told, lambda *_: pytest.fail("the signal came before the server was ready"))
    common = [*flags, "--rows", "1", "--max-len-tokens", "60"]
    try:
        thread.start()
        assert cli.main(["serve", "--port", "0", *common]) == code
    finally:
        ended.set()
        thread.join()
        signal.signal(told, guard)
    assert "sesame" not in caplog.text and "in the template plain" in caplog.text
    (tmp_path / "p.jsonl").write_text('{"id": "p", "instruction": "w1 w2"}\n')
    assert cli.main(["generate", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "out.jsonl"), *common, "--max-new-tokens", "12"]) == 0
    assert found[0] == json.loads((tmp_path / "out.jsonl").read_text())["text"] and found[0]
    assert len(found) == 2 and found[1][1] in ("length", "stop") and found[1][2] > 0
    assert len(list(tmp_path.glob("cache/lpo-jax/alignment-*"))) == (models is mixed)


def test_a_chat_template_writes_as_transformers_does(tmp_path):
    tok = tokenizer()
    tok.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('who asked?') }}{% endif %}{{ eos_token }}"
        "{% for m in messages %} w{{ m['role'] | length }} {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} w9{% endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    messages = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}]
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    tok = tokenizers.load(tmp_path)
    how = asking(str(tmp_path), tok)

    def chat(messages):
        return how.conversation(messages, tok).ids(tok)

    assert chat(messages) == expected == [0, 6, 1, 4, 2, 3, 9]
    with pytest.raises(ValueError, match="who asked"):
        chat([{"role": "assistant", "content": "w1"}])


@pytest.mark.parametrize(
    ("flags", "key", "message"),
    [
        (["--threshold", "0.5"], None, "give --security as well"),
        ([], "", "LPO_API_KEY is empty"),
        ([], " \n", "LPO_API_KEY is empty"),
        ([], "ses ame", "LPO_API_KEY holds what clients can't send"),
        ([], "sésame", "LPO_API_KEY holds what clients can't send"),
        ([], "ses\udcffame", "LPO_API_KEY holds what clients can't send"),
        (["--rows", "0"], None, "argument --rows: 0 must lie in"),
        (["--grace", "nan"], None, "argument --grace: nan must be"),
        (["--host", "no.such.host.invalid"], None, "no.such.host.invalid:8000 can't be listened on"),
        (["--max-waiting", "-1"], None, "argument --max-waiting: -1 must lie in"),
        (["--port", "99999"], None, "argument --port: 99999 must lie in"),
        (["--max-len-tokens", "1"], None, "argument --max-len-tokens: 1 must lie in"),
    ],
)
def test_commands_that_cannot_be(tmp_path, monkeypatch, capsys, flags, key, message):
    torch_model("llama untied").save_pretrained(tmp_path)
    tokenizer().save(tmp_path)
    monkeypatch.delenv("LPO_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("LPO_API_KEY", key)
    assert cli.main(["serve", "--model", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err
