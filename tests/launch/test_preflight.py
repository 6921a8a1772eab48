"""The one check before anything is paid for: what a command would refuse there is refused here, by its own words."""

import json
from pathlib import Path

import pytest

from foundation.errors import UserError
from launch import job, preflight
from launch.common import Checks, LaunchError, Shell
from lpo_jax.cli import program
from lpo_jax.config import load, to_dict
from tests.helpers.launch import CONFIG, MANIFEST
from tests.helpers.paths import REPO
from tests.helpers.sampling import save_model

TINY = str(REPO / CONFIG)
KD = str(REPO / "configs/cosec_plus/qwen2_5_coder_kd.yaml")
OWN = str(REPO / "evaluation/examples/own.jsonl")
EVAL = ["--benchmark", "own", "--data", OWN, "--completions", "runs/x", "-o", "evals/x"]
GENERATE = ["p.jsonl", "-o", "o.jsonl", "--model", "runs/x"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A checkout with prompts, the place of a model, and a run in it."""
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/run").mkdir()
    (tmp_path / "runs/run/config.json").write_text(json.dumps(to_dict(load(TINY))))
    (tmp_path / "p.jsonl").write_text('{"id": 1, "prompt": "def f("}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wrong(command, *words, devices=8, bucket="bkt"):
    """What a dry run finds wrong."""
    checks = Checks(dry_run=True)
    preflight.check_job(Shell(dry_run=True), checks, job.read(command, words), devices, bucket)
    return checks.wrong


def test_what_is_fine_is_fine(here):
    assert wrong("eval", *EVAL, "--tensor", "4", "--rows", "32") == []
    assert wrong("generate", *GENERATE, "--fsdp", "4") == []
    assert wrong("serve", "--model", "runs/x", "--security", "runs/x", "--security-adapter", "runs/x") == []
    assert wrong("export", "runs/run", "runs/out") == wrong("export", "runs/run", "--push", "me/x") == []
    assert wrong("train", TINY, "mesh.tensor=8", "run_dir=gs://bkt/runs/x") == []


@pytest.mark.parametrize("run_dir", [".", "./", "runs", "runs/", "/", "..", "runs/..", "gs://bkt", "gs://bkt/", "gs://bkt/runs/"])
def test_a_run_has_a_directory_of_its_own(here, run_dir):
    (problem,) = [line for line in wrong("train", TINY, "mesh.tensor=8", f"run_dir={run_dir}") if line.startswith("run_dir=")]
    assert problem.startswith(f"run_dir={run_dir} holds other things than one run: give a ") and "runs/NAME" in problem
    if "://" not in run_dir:
        (problem,) = [line for line in wrong("eval", *EVAL[:-1], run_dir) if line.startswith("-o=")]
        assert "holds other things than one run: give a directory of its own, e.g. runs/NAME" in problem


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("eval", [*EVAL, "--tensor", "3"], "doesn't fit 8 devices"),
        ("eval", [*EVAL, "--copies", "16"], "doesn't fit 8 devices"),
        ("eval", [*EVAL, "--rows", "12"], "rows is 12: it must be a positive multiple of data * fsdp * expert = 8"),
        ("generate", [*GENERATE, "--fsdp", "8", "--rows", "4"], "rows is 4: it must be a positive multiple"),
        ("serve", ["--model", "runs/x", "--data", "2", "--tensor", "2"], "doesn't fit 8 devices"),
        ("eval", ["--benchmark", "securityevall", *EVAL[2:]], "there is no benchmark 'securityevall': did you mean 'securityeval'?"),
        ("eval", ["--benchmark", "securityevall", "--data", "none.jsonl", *EVAL[4:]], "did you mean 'securityeval'?"),
        ("eval", ["--benchmark", "humaneval", *EVAL[4:]], "humaneval needs its data"),
        ("eval", [*EVAL, "--judges", "bandit", "semgrap"], "there is no judge 'semgrap': did you mean 'semgrep'?"),
        ("eval", [*EVAL, "--security-adapter", "runs/x"], "--security-adapter: for co-decoding alone; give --security as well"),
        ("eval", [*EVAL, "--adapter", "a=runs/x"], "one model is judged at a time"),
        ("eval", [*EVAL[:4], "--completions", "canonical", "-n", "2", "-o", "e"], "canonical has one sample a task"),
        ("eval", [*EVAL[:4], "--completions", "p.jsonl", "-o", "e"], 'p.jsonl:1: write {"task_id"'),
        ("eval", [*EVAL[:4], "--completions", "https://x/v1", "-o", "e"], "an endpoint needs --model"),
        ("generate", [*GENERATE, "--security-adapter", "runs/x"], "--security-adapter: for co-decoding alone; give --security as well"),
        ("generate", [*GENERATE, "--html", "o.html"], "--html shows which of two models"),
        ("serve", ["--model", "runs/x", "--security-adapter", "runs/x"], "give --security as well"),
        ("serve", ["--model", "runs/x", "--adapter", "x=runs/x"], "the model itself is called so"),
        ("export", ["runs/x"], "say where to"),
        ("export", ["runs/x", "out", "--private"], "--private is about a repository"),
        ("teacher", [TINY, "mesh.tensor=8", "-o", "t"], "no stage has the objective kd, so there is nothing that a teacher would be asked"),
        ("teacher", [KD, "--stage", "kdd", "-o", "t"], "--stage kdd: of "),
        ("generate", ["p.jsonl", "-o", "./p.jsonl", *GENERATE[3:]], "-o=p.jsonl is what prompts names: give another -o"),
        ("generate", ["p.jsonl", "-o", "runs/x/", *GENERATE[3:]], "runs/x/ is a directory; name a file"),
        ("export", ["runs/x", "out"], "runs/x: no run's config.json; give the run_dir of a trained config"),
        ("export", ["runs/run", "out", "--merge"], "runs/run: --merge is for LoRA runs"),
        ("export", ["runs/x", "runs/x"], "out=runs/x is what run_dir names"),
        ("eval", [*EVAL[:-1], "runs/x"], "-o=runs/x is what --completions names"),
        ("train", [TINY, "mesh.tensor=8", "run_dir=runs/x", "data.path=runs/x"], "run_dir=runs/x is what data.path names: give another run_dir"),
    ],
)  # fmt: skip
def test_what_the_command_would_refuse_is_refused(here, command, words, said):
    try:
        found = wrong(command, *words)
    except UserError as error:  # of the command's own parser
        found = [str(error)]
    assert any(said in line for line in found), found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# Prompts\n\nSome words.\n", "p.jsonl:1: not valid JSON"),
        ('{"id": 1, "prompt": "x"}\nx\n', "p.jsonl:2: not valid JSON"),
        ('{"id": 1, "text": "x"}\n', "p.jsonl:1: write "),
        ('{"id": 1, "prompt": "x"}\n{"id": 1, "prompt": "y"}\n', "p.jsonl:2: id 1 stands at p.jsonl:1 already"),
        ("", "p.jsonl: no prompt"),
    ],
)
def test_prompts_are_rows(here, text, said):
    (here / "p.jsonl").write_text(text)
    (problem,) = wrong("generate", *GENERATE)
    assert said in problem
    if "JSON" in said:
        assert problem.endswith('write {"id": ..., "prompt": TEXT} or {"id": ..., "instruction": TEXT}')


def test_prompts_of_the_hub_are_read_where_the_job_runs(here, monkeypatch):
    monkeypatch.setattr("data_pipeline.records.read", None)
    words = ["hf://owner/name:test?instruction=question", *GENERATE[1:]]
    asked = job.read("generate", words)
    job.check_paths(asked)
    assert wrong("generate", *words) == [] and asked.argv()[2] == words[0] and "prompts" not in asked.inputs()
    save_model(here / "runs/x")
    assert wrong("generate", *words) == []


def test_an_adapter_that_no_prompt_can_ask_for(here):
    (problem,) = wrong("generate", *GENERATE, "--adapter", "one=runs/x")
    assert "no row names an adapter" in problem


def test_what_is_neither_here_nor_anywhere_is_wrong_in_a_dry_run_too(here):
    """In a bucket it may be, and is a note; on this very disk it isn't."""
    words = {"train": [TINY, "data.path=data/none"], "generate": ["none.jsonl", *GENERATE[1:]]}
    for command, given in words.items():
        assert wrong(command, *given, devices=1) == []
        (problem,) = wrong(command, *given, devices=1, bucket=None)
        assert "no such" in problem


def test_the_directory_of_a_file_is_made_in_a_bucket_and_is_here(here):
    words = ["p.jsonl", "-o", "new/o.jsonl", "--model", "runs/x"]
    assert wrong("generate", *words) == []
    assert wrong("generate", *words, devices=1, bucket=None) == ["-o=new/o.jsonl: there is no directory new; make it, or name another"]


class Asked(Shell):
    """What was run; of the bucket it knows one run's config.json, and what a test puts `there`."""

    def __init__(self, code=0):
        super().__init__()
        self.ran, self.code, self.there = [], code, {"gs://bkt/runs/y/config.json": '{"there": 1}'}

    def run(self, command, *, stdin=None):
        self.ran.append(list(command))
        if self.code:
            raise LaunchError("failed")

    def ask(self, command, **options):
        found = self.there.get(command[-1])
        return super().ask(["echo", found] if found else ["false"])


def test_a_server_is_planned_as_it_is_asked_for(here, monkeypatch):
    asked = ["--model", "runs/x", "--security", "me/small", "--tensor", "8", "--rows", "4", "--max-len-tokens", "8192", "--port", "8001"]
    shell = Asked()
    preflight.plan(shell, job.read("serve", asked), "v5e:2x4", "bkt")
    (command,) = shell.ran
    assert program().parse(command[1:]).rows == 4  # and `lpo plan` takes it
    assert command[:3] == ["lpo", "plan", "--serve=v5e:2x4"]
    assert sorted(command[3:]) == ["--max-len-tokens=8192", "--model=runs/x", "--rows=4", "--security=me/small", "--tensor=8"]


def test_the_shape_of_a_model_in_the_bucket_is_brought_for_its_plan(here):
    shell = Asked()
    shell.run = lambda command: shell.ran.append(
        (list(command), json.loads(Path(command[-1].partition("=")[2], "config.json").read_text()))
    )
    preflight.plan(shell, job.read("serve", ["--model", "runs/y"]), "v5e:2x4", "bkt")
    ((command, found),) = shell.ran
    assert command[:3] == ["lpo", "plan", "--serve=v5e:2x4"] and found == {"there": 1}


def test_a_server_that_does_not_fit_is_refused_and_what_no_plan_knows_is_said(here, capsys):
    with pytest.raises(LaunchError, match="refuses runs/x, see above. SKIP_PLAN=1 starts it all the same"):
        preflight.plan(Asked(code=1), job.read("serve", ["--model", "runs/x"]), "v5e:2x4", "bkt")
    for words in (["--quantize", "int8"], ["--security", "a/b", "--preset", "crosec"]):
        shell = Asked()
        preflight.plan(shell, job.read("serve", ["--model", "runs/x", *words]), "v5e:2x4", "bkt")
        assert shell.ran == [] and "whether this fits isn't known" in capsys.readouterr().out
    preflight.plan(Asked(code=1), job.read("eval", EVAL), "v5e:2x4", "bkt")  # isn't planned


def test_a_model_and_prompts_that_are_here_are_looked_at(here):
    save_model(here / "runs/x")
    (here / "p.jsonl").write_text('{"id": 1, "prompt": "w1 w2 w3"}\n')
    assert wrong("generate", *GENERATE, "--max-new-tokens", "8") == []
    (problem,) = wrong("generate", *GENERATE, "--max-new-tokens", "100000")
    assert "p.jsonl:1: prompt 1 has 3 tokens; with 100000 new ones it exceeds" in problem and "what the model was made for" in problem


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serve", ["--model", "runs/x"]),
        ("generate", GENERATE),
        ("eval", EVAL),
        ("eval", ["--benchmark", "humaneval", "--data", "elsewhere.jsonl", *EVAL[4:]]),
    ],
)
def test_no_text_is_longer_than_its_model_was_made_for_whether_a_plan_looks_or_not(here, command, words):
    save_model(here / "runs/x")
    (problem,) = wrong(command, *words, "--max-len-tokens", "100000")
    assert problem.startswith("--max-len-tokens 100000: runs/x was made for ")


def test_a_model_in_the_bucket_is_asked_for_its_length_too(here):
    save_model(here / "there")
    shell, checks = Asked(), Checks(dry_run=False)
    shell.there["gs://bkt/runs/z/config.json"] = (here / "there/config.json").read_text()
    asked = job.read("serve", ["--model", "runs/z", "--max-len-tokens", "100000"])
    preflight.check_job(shell, checks, asked, 8, "bkt")
    assert any(line.startswith("--max-len-tokens 100000: runs/z was made for ") for line in checks.wrong)


@pytest.mark.parametrize("model", ["gs://bkt/models/x", "runs/there"])
def test_a_model_that_a_dry_run_can_not_look_at_is_not_asked_for(here, monkeypatch, model):
    monkeypatch.setattr("lpo_jax.decode.load.shape_of", lambda name: pytest.fail(f"asked for {name}"))
    assert wrong("serve", "--model", model, "--max-len-tokens", "100000") == []


def test_nobody_is_asked_where_nobody_can_be(here, monkeypatch):
    """Without gcloud, say."""
    monkeypatch.setattr(Shell, "ask", lambda *_, **__: pytest.fail("asked"))
    for command, words in (("export", ["runs/none", "out"]), ("serve", ["--model", "runs/none", "--max-len-tokens", "100000"])):
        preflight.check_job(Shell(), Checks(dry_run=False), job.read(command, words), 8, "bkt", ask=False)


def test_a_run_in_the_bucket_is_looked_at_before_it_is_exported(here):
    shell, checks = Asked(), Checks(dry_run=False)
    shell.there["gs://bkt/runs/z/config.json"] = (here / "runs/run/config.json").read_text()
    for name, said in (("runs/y", ["runs/y: no run's config.json; give the run_dir of a trained config"]), ("runs/z", [])):
        checks.wrong.clear()
        preflight.check_job(shell, checks, job.read("export", [name, "out"]), 8, "bkt")
        assert [line for line in checks.wrong if ": no such " not in line and "run_dir=" not in line] == said


def test_a_teacher_goes_with_the_shards_of_its_stage(here):
    (here / "data").mkdir()
    (here / "data/manifest.json").write_text(json.dumps(MANIFEST))
    objective = {"name": "kd", "kl": {"direction": "forward", "weight": 1, "teacher": "small"}}
    stage = {"objective": objective, "batch_rows": 8, "steps": 1, "optim": {"lr": 1e-2}}
    settings = ["data.path=data", "mesh.tensor=8", f"stages={json.dumps({'kd': stage})}"]
    asked = [TINY, *settings, "best_metric=unchanged_nll", "model.new.vocab_size=1024", "-o", "top"]
    assert "--top-k must lie between 1 and the tokenizer's 1024 entries, not 1025" in wrong("teacher", *asked, "--top-k", "1025")
    save_model(here / "small")
    (problem,) = wrong("teacher", *asked)
    assert "small knows " in problem and "tokens, the shards' tokenizer has 1024" in problem


def test_a_template_is_a_name_or_a_file(here):
    (problem,) = wrong("generate", *GENERATE, "--template", "alpacca")
    assert problem == "--template=alpacca: no such file, and none of ours (alpaca, chat, plain)"


def test_what_is_wrong_is_told_once(here):
    (problem,) = wrong("generate", *GENERATE, "--html", "a.html")
    assert "--html" in problem
