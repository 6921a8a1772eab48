"""How `lpo generate` and `lpo serve` find their models before weights are read, and a journal with any text in it."""

import json
import logging
import shutil

import pytest

from lpo_jax import cli
from lpo_jax.config import ConfigError
from lpo_jax.decode.load import Models, find
from lpo_jax.decode.rules.crosec import CroSec
from tests.helpers.sampling import tokenizer, torch_model
from tests.helpers.vocabularies import byte_level, sentencepiece


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of one tokenizer, the second shorter, and one of another."""
    out = tmp_path_factory.mktemp("models")
    kinds = {"target": (tokenizer(), 64), "short": (tokenizer(), 40), "other": (sentencepiece(), 16)}
    for name, (tok, longest) in kinds.items():
        torch_model("llama untied", vocab_size=tok.size, max_position_embeddings=longest).save_pretrained(out / name)
        tok.save(out / name)
    return out


def test_what_is_found_without_weights(models):
    """The length is the shortest of what is asked and of the models that read the same tokens."""
    for file in models.rglob("*.safetensors"):
        file.rename(file.with_suffix(".away"))
    target, short, other = (str(models / name) for name in ("target", "short", "other"))
    for asked, longest in ((None, 64), (30, 30), (64, 64)):
        assert find(Models(target, max_len_tokens=asked)).max_len_tokens == longest
    with pytest.raises(ConfigError, match=f"--max-len-tokens 50: {short} was made for 40 tokens"):
        find(Models(target, security=short, max_len_tokens=50))
    pair = find(Models(target, security=short))
    assert (pair.max_len_tokens, pair.security_tokenizer, pair.dtype, pair.tokenizer_path) == (40, None, "float32", target)
    mixed = find(Models(target, security=other, rule=CroSec(), dtype="bfloat16"))
    assert (mixed.max_len_tokens, mixed.security_tokenizer.sha256, mixed.dtype) == (64, sentencepiece().sha256, "bfloat16")
    byte_level().save(models / "bytes")
    assert find(Models(other, tokenizer=str(models / "bytes"))).tokenizer.sha256 == byte_level().sha256
    for file in models.rglob("*.away"):
        file.rename(file.with_suffix(".safetensors"))


def test_two_models_of_other_tokens_do_not_decode_together(models, tmp_path, caplog):
    """Each id must mean the same to both; entries that one side adds are told of."""
    target, other = str(models / "target"), str(models / "other")
    with pytest.raises(ConfigError, match=r"its tokenizer has .* as token 0, .* --preset crosec aligns two vocabularies"):
        find(Models(target, security=other))
    swapped = json.loads((models / "target" / "tokenizer.json").read_text())
    names = swapped["model"]["vocab"]
    names["w95"], names["w96"] = names["w96"], names["w95"]
    for name, tok, size in (("swapped", tokenizer(), 97), ("more", tokenizer(99), 99)):
        shutil.copytree(models / "short", tmp_path / name)
        torch_model("llama untied", vocab_size=size).save_pretrained(tmp_path / name)
        tok.save(tmp_path / name)
    (tmp_path / "swapped" / "tokenizer.json").write_text(json.dumps(swapped))
    with pytest.raises(ConfigError, match="'w96' as token 95, .* has 'w95'"):
        find(Models(target, security=str(tmp_path / "swapped")))
    with caplog.at_level(logging.INFO):
        assert find(Models(target, security=str(tmp_path / "more"))).tokenizer.size == 97
    assert "tokenizer has 0 tokens that" in caplog.text and "which has 2 others" in caplog.text


def test_a_name_that_can_be_no_models_is_told_by_what_it_was_given_for(models):
    target = str(models / "target")
    file = f"{target}/config.json"
    for wrong, said in (
        (Models("nonsense"), "the model nonsense is neither a directory in"),
        (Models(file), "the model .*config.json is a file; give the directory that it is in"),
        (Models(target, security="nonsense"), "the security model nonsense is neither"),
        (Models(str(models)), "the model .* holds neither a model nor a run: it has no config.json"),
        (Models(target, adapter=target), "adapter_config.json doesn't exist; give a directory that PEFT's save_pretrained wrote"),
        (Models(target, adapter="a/b"), "the adapter a/b: there is no such directory in"),
        (Models(target, adapters={"new": file}), "the adapter new .*config.json is a file"),
    ):
        with pytest.raises(ConfigError, match=said):
            find(wrong)


def test_a_server_longer_than_its_models_is_refused(models, monkeypatch, capsys):
    monkeypatch.delenv("LPO_API_KEY", raising=False)
    pair = ["--model", str(models / "target"), "--security", str(models / "short")]
    assert cli.main(["serve", *pair, "--max-len-tokens", "41"]) == 2
    assert f"--max-len-tokens 41: {models / 'short'} was made for 40 tokens" in capsys.readouterr().err


def test_a_line_separator_within_a_text_is_no_new_line(models, tmp_path, capsys):
    """U+2028 and its kin stand unescaped in JSON; only line breaks part the rows of prompts and completions."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(json.dumps({"id": "a\u2028b", "prompt": "w1\u2028w2 w3"}, ensure_ascii=False) + "\n")
    command = ["generate", str(prompts), "-o", str(out), "--model", str(models / "target"), "--max-new-tokens", "3", "--rows", "8"]
    assert cli.main(command) == 0
    assert cli.main([*command, "--samples", "2"]) == 0
    rows = [json.loads(line) for line in out.read_text().split("\n") if line]
    assert [(row["id"], row["sample"]) for row in rows] == [("a\u2028b", 0), ("a\u2028b", 1)]
    assert capsys.readouterr().out.count("wrote 1 samples") == 2
