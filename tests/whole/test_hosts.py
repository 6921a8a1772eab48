"""Commands on several hosts: processes that share eight fake devices write what one process with eight writes, bit for bit."""

import json
import shutil
import signal
import socket
import time
import urllib.request

import jax
import pytest

from lpo_jax import cli
from lpo_jax.config import ModelConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.train import peers
from lpo_jax.train.stop import EXIT_CODE
from tests.helpers.multihost import finish, start
from tests.helpers.training import tiny_args
from tests.helpers.vocabularies import loaded, sentencepiece, shape

MODEL = Model(ModelConfig("llama", 520, 48, 1, 2, 1, 24, 64, 384))
KD = {
    "kd": {"objective": {"name": "kd", "kl": {"direction": "reverse", "weight": 0.5}}, "optim": {"lr": 1e-2}, "batch_rows": 8, "steps": 4}
}
SHORT = ["--max-new-tokens", "12", "--temperature", "1", "--seed", "3"]


@pytest.fixture(scope="module")
def made(seed_shards, tmp_path_factory):
    """A Hugging Face directory, one of the same tokenizer and one of another, a LoRA run, prompts and tasks."""
    out, shards = tmp_path_factory.mktemp("made"), seed_shards["trimmed"]
    for name, scale in (("model", 4), ("security", 2.5)):  # near enough that some proposals are taken, and some aren't
        hf.write_params(out / name, MODEL, jax.tree.map(lambda x, scale=scale: scale * x, jax.jit(MODEL.init)(jax.random.key(3))))
        for file in (shards / "tokenizer").iterdir():
            shutil.copy(file, out / name)
    other = sentencepiece()
    made = loaded(shape(other.size), 1, dtype="float32")
    hf.write_params(out / "other", made.model, made.params)
    other.save(out / "other")
    stage = "{objective: {name: sft}, optim: {lr: 1.0e-2}, batch_rows: 8, steps: 2}"
    few = [arg for arg in tiny_args(shards, out / "run") if not arg.startswith("stages.")]
    assert cli.main([*few, f"stages={{sft: {stage}}}", "model.lora={rank: 2, alpha: 4}", "eval_every_steps=0", "report_pairs=0"]) == 0
    (out / "prompts.jsonl").write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"def f{i}(" * (1 + i)}) + "\n" for i in range(6)))
    (out / "own.jsonl").write_text("".join(json.dumps({"prompt": f"def add{i}(a, b):\n"}) + "\n" for i in range(3)))
    config = [arg for arg in tiny_args(shards, out / "none")[1:] if not arg.startswith("stages.")]
    kd = json.loads(json.dumps(KD))
    kd["kd"]["objective"]["kl"]["teacher"] = str(out / "model")
    (out / "kd.json").write_text(json.dumps([*config, f"stages={json.dumps(kd)}", "best_metric=unchanged_nll"]))
    return out


def commands(made, out):
    """What both do; they write into `out`."""
    model, rows = str(made / "model"), ["--rows", "8", "--max-len-tokens", "128"]
    cut, crosec = ["--fsdp", "2", "--tensor", "2"], ["--security", str(made / "other"), "--preset", "crosec"]
    return [
        ["lpo", "export", str(made / "run"), str(out / "adapter")],
        ["lpo", "export", str(made / "run"), str(out / "merged"), "--merge"],
        ["lpo", "generate", str(made / "prompts.jsonl"), "-o", str(out / "of_a_run.jsonl"), "--model", str(made / "run"), *SHORT],
        ["lpo", "generate", str(made / "prompts.jsonl"), "-o", str(out / "out.jsonl"), "--model", model, "--samples", "3", *cut, *SHORT],
        ["lpo", "generate", str(made / "prompts.jsonl"), "-o", str(out / "two.jsonl"), "--model", model, "--security", str(made / "security"), "--trace", *cut, *SHORT],
        ["lpo-eval", "run", "--benchmark", "own", "--data", str(made / "own.jsonl"), "--completions", model, "-o", str(out / "eval"), "-n", "2", "--judges", "none", *SHORT],
        ["lpo", "teacher", *json.loads((made / "kd.json").read_text()), "-o", str(out / "teacher"), "--top-k", "4"],
        ["lpo", "serve", "--model", model, "--port", "0", *crosec, *cut, *rows],
        ["lpo", "serve", "--model", model, "--port", "0", "--tensor", "2", *rows],
    ]  # fmt: skip


def ask(url):
    body = {"model": "model", "prompt": "def f(", "max_tokens": 20, "seed": 5, "n": 3}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return [choice["text"] for choice in json.load(urllib.request.urlopen(request))["choices"]]


def run(count, made, out):
    """All commands in so many processes; the answers of the last two, which are servers. One is told to end by Ctrl-C, the other as a job is."""
    out.mkdir()
    (out / "commands.json").write_text(json.dumps(commands(made, out)))
    processes, said, answers = start(count, "tests.helpers.multihost", "commands", out / "commands.json"), [], []
    for line in processes[0].stdout:
        said.append(line)
        if line.startswith("ready: "):
            answers.append([ask(line.split()[1].removesuffix("/v1")) for _ in range(2)])
            if len(answers) == 2:
                break
            processes[0].send_signal(signal.SIGINT)
    else:
        for process in processes:
            process.kill()
        pytest.fail("".join(said))
    for process in processes:
        process.send_signal(signal.SIGTERM)
    return answers, finish(processes, [EXIT_CODE] * count)


WRITTEN = ["adapter/adapter_model.safetensors", "merged/model.safetensors", "of_a_run.jsonl", "out.jsonl", "two.jsonl", "eval/samples.jsonl", "eval/scores.json", "teacher/rows-00000.safetensors"]  # fmt: skip


def same(count, made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # for what aligns two vocabularies
    answers, _ = run(1, made, tmp_path / "one")
    theirs, texts = run(count, made, tmp_path / "several")
    for name in WRITTEN:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes(), name
    files = ({file.name for file in (tmp_path / name).rglob("*")} for name in ("one", "several"))
    assert next(files) == next(files)
    assert answers == theirs and all(once == again and len(set(once)) == 3 for once, again in answers)
    traces = [json.loads(line)["trace"] for line in (tmp_path / "one/two.jsonl").read_text().splitlines()]
    assert {token["accepted"] for trace in traces for token in trace} == {False, True}
    for text in texts[1:]:  # process 0 speaks for all
        assert "wrote" not in text and "own:" not in text and "ready" not in text


@pytest.mark.slow
def test_two_hosts_write_and_answer_what_one_does(made, tmp_path, monkeypatch):
    same(2, made, tmp_path, monkeypatch)


@pytest.mark.heavy
def test_four_hosts_write_and_answer_what_one_does(made, tmp_path, monkeypatch):
    same(4, made, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.heavy)])
def test_a_host_that_is_gone_ends_the_job_by_its_name(made, tmp_path, killed):
    """And the same command goes on. Here looks are eight times as frequent as they are."""
    assert peers._LOOK_S * (peers._SILENT + 2) < 60
    for name in ("straight", "killed"):
        asked = ["lpo", "generate", str(made / "prompts.jsonl"), "-o", str(tmp_path / f"{name}.jsonl"), "--model", str(made / "model")]
        (tmp_path / f"{name}.json").write_text(json.dumps([[*asked, "--samples", "8", "--rows", "8", *SHORT]]))
    finish(start(2, "tests.helpers.multihost", "commands", tmp_path / "straight.json"), [0, 0])
    straight = (tmp_path / "straight.jsonl").read_text()

    two, out = start(2, "tests.helpers.multihost", "commands", tmp_path / "killed.json", 0.5), tmp_path / "killed.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and (not out.is_file() or out.read_text().count("\n") < 3):
        time.sleep(0.05)
    two[killed].kill()
    told = two[1 - killed].communicate(timeout=60)[0]
    assert two[1 - killed].returncode not in (0, None)
    if killed == 1:
        assert two[0].returncode == 1
        assert f"lpo: error: process 1 on {socket.gethostname()} is gone" in told
    else:
        assert "process 0" in told or "leader" in told  # JAX's own word may come first
    before = out.read_text().splitlines()
    assert 3 <= len(before) < len(straight.splitlines())

    finish(start(2, "tests.helpers.multihost", "commands", tmp_path / "killed.json"), [0, 0])
    assert out.read_text().splitlines()[: len(before)] == before
    assert sorted(out.read_text().splitlines()) == sorted(straight.splitlines())
