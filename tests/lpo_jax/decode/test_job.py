"""`lpo generate`: prompts as training reads them, models from either kind of directory, and a job that was killed."""

import dataclasses
import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
import tokenizers
from etils import epath
from safetensors import numpy

from data_pipeline import template
from data_pipeline.pairs import Pair
from data_pipeline.shards import FORMAT_VERSION, Manifest
from data_pipeline.template import alpaca
from data_pipeline.tokenizer import Tokenizer
from lpo_jax import cli
from lpo_jax.config import AdamW, DataConfig, LoraConfig, ModelSource, RunConfig, StageConfig, to_dict
from lpo_jax.decode import job as jobs
from lpo_jax.decode import load
from lpo_jax.decode.prompts import Asking, asking
from lpo_jax.export import export
from lpo_jax.model import hf
from lpo_jax.objectives.sft import Sft
from lpo_jax.sharding import make_mesh
from lpo_jax.train import state
from lpo_jax.train.checkpoint import Checkpoints, Progress
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.weights import load_params
from tests.helpers.sampling import VOCAB, save_model, tokenizer, torch_model, write_adapter
from tests.helpers.vocabularies import byte_level, sentencepiece


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generate(model, prompts, out, *more):
    length = ("--max-new-tokens", "12", "--data", "1", "--fsdp", "4", "--tensor", "2")
    return cli.main(["generate", str(prompts), "-o", str(out), "--model", str(model), *length, *more])


def samples(out):
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({(r["id"], r["sample"]) for r in records}) == len(records)
    return {(r["id"], r["sample"]): r for r in records}


PROMPTS = [{"id": f"p{i}", "prompt": " ".join(f"w{i + j}" for j in range(1, i + 3))} for i in range(6)]


def test_a_killed_job_goes_on_and_ends_as_if_undisturbed(model, tmp_path, capsys):
    prompts = write(tmp_path / "prompts.jsonl", PROMPTS)
    assert generate(model, prompts, tmp_path / "whole.jsonl", "--samples", "3") == 0
    whole = samples(tmp_path / "whole.jsonl")
    assert whole.keys() == {(row["id"], k) for row in PROMPTS for k in range(3)}
    assert len({r["text"] for r in whole.values()}) > 12

    out = tmp_path / "out.jsonl"
    assert generate(model, prompts, out, "--samples", "2") == 0
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:5]) + lines[5][:20])  # killed in the middle of a line
    assert generate(model, prompts, out, "--samples", "3", "--rows", "4") == 0  # other rows, more samples
    ended = samples(out)
    for key, record in whole.items():
        assert ended[key].pop("logprob") == pytest.approx(record.pop("logprob"), abs=1e-3)
    assert ended == whole
    assert out.read_text().startswith("".join(lines[:5]))
    before = out.read_bytes()
    assert generate(model, prompts, out, "--samples", "3") == 0
    assert out.read_bytes() == before and "wrote 0 samples" in capsys.readouterr().out


def test_what_cannot_go_on_says_why(model, tmp_path, capsys):
    prompts, out = write(tmp_path / "prompts.jsonl", PROMPTS[:1]), tmp_path / "out.jsonl"
    assert generate(model, prompts, out) == 0
    for change, message in (
        (("--temperature", "0.9"), "was begun with another sampling.temperature (see"),
        (("--seed", "1", "--no-think"), "was begun with another seed, think"),
        (("--quantize", "int8"), "was begun with another quantize"),
    ):
        assert generate(model, prompts, out, *change) == 2
        assert message in capsys.readouterr().err
    trained, again = save_model(tmp_path / "trained"), tmp_path / "again.jsonl"
    assert generate(trained, prompts, again) == 0
    assert generate(trained, prompts, again) == 0
    (file,) = trained.glob("*.safetensors")
    numpy.save_file({name: x + np.float32(0.01) for name, x in numpy.load_file(file).items()}, file)
    assert generate(trained, prompts, again) == 2
    assert f"was begun with another weights.{trained} (see" in capsys.readouterr().err
    write(prompts, [PROMPTS[0] | {"prompt": "w9"}])
    assert generate(model, prompts, out) == 2
    assert "out.jsonl:1: prompt p0 was another text then" in capsys.readouterr().err
    (tmp_path / "theirs.jsonl").write_text("{}\n")
    assert generate(model, prompts, tmp_path / "theirs.jsonl") == 2
    assert "isn't of `lpo generate`" in capsys.readouterr().err
    assert (tmp_path / "theirs.jsonl").read_text() == "{}\n"


@pytest.mark.slow
def test_rows_choose_adapters(model, tmp_path, capsys):
    """What one writes beside the model is what it writes merged; the other rows are the model's own."""
    a, b = (write_adapter(tmp_path / name, model, seed) for seed, name in enumerate("ab"))
    (tmp_path / "b" / template.FILE).write_text(json.dumps(asdict(alpaca())))
    rows = [row | {"adapter": name} for row, name in zip(PROMPTS[:3], ("a", None, "b"), strict=True)]
    rows.append({"id": "asked", "instruction": "w1 w2", "adapter": "b"})
    prompts, named = write(tmp_path / "prompts.jsonl", rows), ("--greedy", "--adapter", f"a={a}", "--adapter", f"b={b}")
    assert generate(model, prompts, tmp_path / "out.jsonl", *named) == 0
    found = samples(tmp_path / "out.jsonl")
    assert [found[row["id"], 0].get("adapter") for row in rows] == ["a", None, "b", "b"]
    for directory, own in ((a, rows[:1]), (b, rows[2:]), (None, rows[1:2])):
        write(tmp_path / "own.jsonl", [{k: v for k, v in row.items() if k != "adapter"} for row in own])
        (tmp_path / "merged.jsonl").unlink(missing_ok=True)
        merged = ("--greedy", *(("--adapter", directory) if directory else ()))
        assert generate(model, tmp_path / "own.jsonl", tmp_path / "merged.jsonl", *merged) == 0
        alone = samples(tmp_path / "merged.jsonl")
        assert {key: record["text"] for key, record in alone.items()} == {key: found[key]["text"] for key in alone}

    write(prompts, [rows[0] | {"adapter": "b"}, *rows[1:]])
    assert generate(model, prompts, tmp_path / "out.jsonl", *named) == 2
    assert "prompt p0 was another text then" in capsys.readouterr().err
    for change, given, message in (
        ({"adapter": "c"}, named, "prompts.jsonl:1: adapter 'c' isn't one of those given: a, b"),
        ({"adapter": ""}, named, "no row names an adapter"),
        ({}, ("--adapter", a, "--adapter", f"b={b}"), "is merged into the model, which leaves no other"),
        ({}, ("--adapter", f"a={a}", "--adapter", f"a={b}"), "give each a name of its own"),
        ({}, ("--adapter", f"a/b={a}"), f"--adapter a/b={a}: a NAME has letters, digits"),
    ):
        write(prompts, [PROMPTS[0] | change])
        assert generate(model, prompts, tmp_path / "new.jsonl", *given) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_models_and_what_they_thought(model, tmp_path, capsys):
    """--security with the model itself: every proposal is taken, and the trace says so; at tau = 1 none is."""
    prompts, pair = write(tmp_path / "prompts.jsonl", PROMPTS[:2]), ("--security", str(model), "--trace")
    assert generate(model, prompts, tmp_path / "taken.jsonl", *pair, "--html", str(tmp_path / "taken.html")) == 0
    rejecting = (*pair, "--threshold", "1", "--greedy", "--html", str(tmp_path / "rejected.html"))
    assert generate(model, prompts, tmp_path / "rejected.jsonl", *rejecting) == 0
    assert generate(model, prompts, tmp_path / "alone.jsonl", "--greedy", "--trace") == 0
    taken, rejected, alone = (samples(tmp_path / f"{name}.jsonl") for name in ("taken", "rejected", "alone"))
    for key, record in taken.items():
        assert " ".join(row["token"] for row in record["trace"] if row["token"] != "<end>") == record["text"].strip()
        assert all(
            row["accepted"] and row["draft"] == row["token"] and row["p"] == pytest.approx(row["q"], rel=0.02) for row in record["trace"]
        )
        assert sum(row["logprob"] for row in record["trace"]) == pytest.approx(record["logprob"], abs=0.01)
        assert not any(row["accepted"] for row in rejected[key]["trace"])
        assert rejected[key]["text"] == alone[key]["text"]
        assert [row["token"] for row in rejected[key]["trace"]] == [row["token"] for row in alone[key]["trace"]]
    for name, records, share, look in (("taken", taken, "100.0%", "up"), ("rejected", rejected, "0.0%", "down changed")):
        page = (tmp_path / f"{name}.html").read_text()
        count = sum(len(record["trace"]) for record in records.values())
        assert f"Of {count} tokens in 2 samples, {share} are the security model’s." in page
        assert page.count(f'<span class="{look}"') == count and "http" not in page.replace("http-equiv", "")
        assert all(row["prompt"] in page for row in PROMPTS[:2])
    first = rejected["p0", 0]["trace"][0]
    assert f"proposed &#34;{first['draft']}&#34;: p {first['p']:.3g} by the model" in page
    assert generate(model, prompts, tmp_path / "alone.jsonl", "--greedy", "--trace", "--html", str(tmp_path / "x.html")) == 2
    assert "which of two models decided" in capsys.readouterr().err
    assert generate(model, prompts, tmp_path / "taken.jsonl", *pair, "--threshold", "0.5") == 2
    assert "was begun with another rule" in capsys.readouterr().err
    assert generate(model, prompts, tmp_path / "no.jsonl", "--greedy", "--temperature", "0.7") == 2
    assert "--temperature: not allowed with argument --greedy" in capsys.readouterr().err
    assert generate(model, prompts, tmp_path / "no.jsonl", "--block", "4") == 2
    assert "for co-decoding alone; give --security as well" in capsys.readouterr().err


@pytest.mark.slow
def test_two_models_of_different_tokenizers(tmp_path, capsys):
    """On eight devices. At weight 0 it is the target alone; the alignment is made once and kept beside the output."""
    for name, tok in {"target": byte_level(), "expert": sentencepiece()}.items():
        torch_model("llama untied", vocab_size=tok.size).save_pretrained(tmp_path / name)
        tok.save(tmp_path / name)
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "def read("}, {"prompt": "import é"}])
    pair = ("--security", str(tmp_path / "expert"), "--preset", "crosec", "--rows", "4")
    assert generate(tmp_path / "target", prompts, tmp_path / "alone.jsonl", "--rows", "4") == 0
    assert generate(tmp_path / "target", prompts, tmp_path / "zero.jsonl", *pair, "--weight", "0") == 0
    (alignment,) = tmp_path.glob("alignment-*.safetensors")
    made = alignment.stat().st_mtime_ns
    assert generate(tmp_path / "target", prompts, tmp_path / "mixed.jsonl", *pair, "--weight", "0.9", "--trace") == 0
    assert [file.stat().st_mtime_ns for file in tmp_path.glob("alignment-*")] == [made]
    alone, zero, mixed = (samples(tmp_path / f"{name}.jsonl") for name in ("alone", "zero", "mixed"))
    assert {k: r["text"] for k, r in zero.items()} == {k: r["text"] for k, r in alone.items()}
    assert {k: r["text"] for k, r in mixed.items()} != {k: r["text"] for k, r in alone.items()}
    assert all({"token", "logprob", "p", "q"} == row.keys() for r in mixed.values() for row in r["trace"])
    assert any(row["q"] > 0 for r in mixed.values() for row in r["trace"])
    for wrong, message in (
        ((*pair, "--threshold", "0.5"), "--threshold: not for --preset crosec"),
        (("--security", str(tmp_path / "expert"), "--weight", "0.5"), "--weight: not for --preset aligned"),
        (("--preset", "crosec"), "--preset crosec: for co-decoding alone; give --security as well"),
        ((*pair, "--weight", "2"), "argument --weight: 2 must be at least 0 and at most 1"),
    ):
        assert generate(tmp_path / "target", prompts, tmp_path / "no.jsonl", *wrong) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a", "prompt": "w1"}\n{"id": "b"}\n', 'prompts.jsonl:2: write {"id": ..., "prompt": TEXT}'),
        ('{"prompt": "w1", "instruction": "w2"}\n', "prompts.jsonl:1: write"),
        ('{"prompt": 3}\n', "prompts.jsonl:1: prompt: a number, not text"),
        ('{"id": "\\ud800", "prompt": "w1"}\n', "prompts.jsonl:1: id: half a surrogate"),
        ('{"prompt": "w1"\n', "prompts.jsonl:1: not valid JSON"),
        ('{"id": 1, "prompt": "w1"}\n\n{"id": "1", "prompt": "w2"}\n', "prompts.jsonl:3: id 1 stands at"),
        ("\n", "no prompt"),
        ('{"prompt": "w1"}\n{"id": "long", "prompt": "%s"}\n' % ("w1 " * 60), "prompts.jsonl:2: prompt long has 60 tokens; with 12 new ones it exceeds 64"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named(model, tmp_path, capsys, text, message):
    (tmp_path / "prompts.jsonl").write_text(text)
    assert generate(model, tmp_path / "prompts.jsonl", tmp_path / "out.jsonl") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_missing_files_and_alien_tokenizers(model, tmp_path, capsys):
    prompts = write(tmp_path / "prompts.jsonl", PROMPTS[:1])
    assert generate(model, tmp_path / "no.jsonl", tmp_path / "out.jsonl") == 2
    assert "no.jsonl: no such file" in capsys.readouterr().err
    assert generate(tmp_path / "nowhere", prompts, tmp_path / "out.jsonl") == 2
    assert "nowhere" in capsys.readouterr().err
    tokenizer(VOCAB + 3).save(tmp_path / "bigger")
    assert generate(model, prompts, tmp_path / "out.jsonl", "--tokenizer", str(tmp_path / "bigger")) == 2
    assert "the tokenizer has 100 entries" in capsys.readouterr().err


def colon_newline():
    """A byte-level tokenizer in which ":" and a line break are one token, as in Qwen's."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[^\s\w]+\n*|\s*\w+|\s"), "isolated")
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [backend.pre_tokenizer, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["Response:\n```\n"] * 50, trainer)
    return Tokenizer(backend, 0, None)


@pytest.mark.parametrize("make", [colon_newline, tokenizer])
def test_an_instruction_has_the_tokens_of_training(make, tmp_path):
    """Also where a tokenizer has one token for the prompt's last colon and the line break that an answer begins with."""
    from data_pipeline.encode import MaskOptions, encode

    tok = make()
    for reasoning in ("Quote it.", ""):
        pair = Pair(id="1", instruction="w1 w2", reasoning=reasoning, rejected="w3", chosen="w4", language="python", cwe="")
        encoded = encode(pair, tok, alpaca(), MaskOptions())
        asked = Asking(alpaca(), bool(reasoning)).prompt(" w1 w2\n", tok)
        assert asked.ids(tok) == encoded.chosen[: encoded.answer_start].tolist()


def make_run(directory, source):
    """A run directory as `lpo train` leaves it, one step in; the weights are new."""
    stage = StageConfig(Sft(), AdamW(lr=1e-3), batch_rows=8, steps=1)
    config = RunConfig(str(directory), DataConfig(str(directory / "shards")), source, {"sft": stage})
    mesh, built = make_mesh(config.mesh), hf.open_model(config.model)
    with jax.set_mesh(mesh):
        params, _ = load_params(config, built, mesh)
        if built.lora:  # born 0: make them count
            params = jax.tree.map(lambda x: x + 0.1, params)
        checkpoints = Checkpoints(epath.Path(directory), config, -1)
        checkpoints.save(state.new_state(params, optimizer(stage.optim, 1, built)), Progress("sft", 1, 1, "key", to_dict(config)), {})
    checkpoints.close()
    tokenizer().save(directory / "shards" / "tokenizer")
    (directory / "config.json").write_text(json.dumps(to_dict(config)))
    split = {"rows": 1, "pairs": 1, "tokens": 9, "shards": []}
    facts = Manifest(
        FORMAT_VERSION,
        tokenizer().sha256,
        VOCAB,
        0,
        None,
        {"mode": "clean"},
        True,
        False,
        64,
        64,
        1,
        64,
        {"train": split, "heldout": split},
        {},
        [],
        "key",  # fmt: skip
    )
    (directory / "data.json").write_text(json.dumps(dataclasses.asdict(facts)))
    (directory / "eval").mkdir()
    for name in ("init", "sft"):
        (directory / "eval" / f"{name}.json").write_text(json.dumps({"metrics": {}}))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("lora", [pytest.param(None, id="full"), pytest.param(LoraConfig(rank=2, alpha=4.0), id="lora")])
def test_a_run_generates_as_its_export(model, tmp_path, lora, capsys):
    run = make_run(tmp_path / "run", ModelSource(path=str(model), lora=lora))
    facts, then = json.loads((run / "data.json").read_text()), "{% for m in messages %} w3 {{ m.content }} <end>{% endfor %} w4"
    trained = replace(template.load("chat", replace(tokenizer(), chat=then))[0], system="w7")
    (run / "data.json").write_text(json.dumps(facts | {"template": asdict(trained)}))
    export(run, tmp_path / "exported", merge=lora is not None)
    assert (tmp_path / "exported" / "chat_template.jinja").read_text() == then  # the model's own tokenizer has none
    assert asking(str(tmp_path / "exported"), tokenizer()) == asking(str(run), tokenizer()) == Asking(trained, True)
    prompts = write(tmp_path / "prompts.jsonl", PROMPTS[:3])
    for source, out in ((run, "run.jsonl"), (tmp_path / "exported", "exported.jsonl"), (model, "base.jsonl")):
        assert generate(source, prompts, tmp_path / out, "--temperature", "1") == 0
    texts = [{k: r["text"] for k, r in samples(tmp_path / f"{name}.jsonl").items()} for name in ("run", "exported", "base")]
    assert texts[0] == texts[1]
    assert (texts[0] == texts[2]) == (lora is None)
    if lora:
        export(run, tmp_path / "adapter")
        args = ("--adapter", str(tmp_path / "adapter"), "--temperature", "1")
        assert generate(model, prompts, tmp_path / "adapted.jsonl", *args) == 0
        assert {k: r["text"] for k, r in samples(tmp_path / "adapted.jsonl").items()} == texts[0]
    tokenizer(VOCAB - 1).save(tmp_path / "other")
    assert generate(run, prompts, tmp_path / "o.jsonl", "--tokenizer", str(tmp_path / "other")) == 2
    assert "was trained with another tokenizer" in capsys.readouterr().err


def test_seeds_belong_to_requests():
    seeds = {jobs.request_seed(seed, name) for seed in range(3) for name in ("a", "b", "1")}
    assert len(seeds) == 9 and all(0 <= seed < 2**32 for seed in seeds)
    assert jobs.request_seed(0, "a") == jobs.request_seed(0, "a")


def test_declared_ends_are_read(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 7]}')
    assert load._eos_ids(tmp_path) == (3, 7)


def test_a_run_without_checkpoint_says_so(model, tmp_path, capsys):
    run = make_run(tmp_path / "run", ModelSource(path=str(model)))
    (run / "checkpoints").rename(tmp_path / "moved")
    assert generate(run, write(tmp_path / "prompts.jsonl", PROMPTS[:1]), tmp_path / "out.jsonl") == 2
    assert "no checkpoint; run `lpo train` first" in capsys.readouterr().err
