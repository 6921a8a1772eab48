"""Pages are played as a reader would: the lines of their shell blocks, one after the other, by a shell, in an empty directory.

Stand-ins are small and bear the names that pages give: a random model is MODEL and each hub id, a few rows are the files that a reader has. Trainings
take two steps a stage. What isn't played has a test elsewhere, or a reason: no line of a page is in neither.
"""

import csv
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lpo_jax.config import load
from tests.helpers.families import save_llama
from tests.helpers.marks import needs_sandbox
from tests.helpers.paths import REPO
from tests.helpers.shown import blocks, commands_of, lines_of, spans

PLAYED = {  # pages that one reader goes through, and how long it takes
    ("README.md",): pytest.mark.slow,
    ("docs/audit.md",): pytest.mark.slow,
    ("docs/reproduce.md",): pytest.mark.slow,
    ("docs/index.md",): pytest.mark.heavy,
    ("docs/tutorial.md",): pytest.mark.heavy,
    ("docs/training.md", "docs/evaluation.md"): pytest.mark.heavy,
    ("docs/generating.md",): pytest.mark.heavy,
    ("docs/devices.md",): pytest.mark.heavy,
    ("docs/data.md", "docs/tracking.md"): pytest.mark.heavy,
}
OWN = "lpo-eval run --benchmark own --data evaluation/examples/own.jsonl --judges none --completions"
BEFORE = {  # what a page's reader has done
    "docs/audit.md": [f"{OWN} insecure -o evals/base", f"{OWN} canonical -o evals/lpo"],
    "docs/evaluation.md": ["lpo-eval run --benchmark securityeval --data dataset.jsonl --completions MODEL -o evals/base"],
    "docs/devices.md": ["lpo-data build pairs.jsonl --tokenizer MODEL --row-tokens 512 --out data/mine"],
    "docs/tracking.md": [
        "lpo-data build pairs.jsonl --tokenizer MODEL --out runs/tiny_cpu_data",
        "lpo train configs/tiny_cpu.yaml run_dir=runs/beta_1 stages.lpo.objective.beta=1",
        "lpo train configs/tiny_cpu.yaml run_dir=runs/beta_10 stages.lpo.objective.beta=10",
    ],
}
FEW = "--repeats 1 --layers 1"
NAMED = [  # what lines of text only name, made small by hand
    "lpo --version",
    "lpo --completion bash",
    "lpo config configs/tiny_cpu.yaml",
    "lpo teacher configs/cosec_plus/qwen2_5_coder_kd.yaml eval_rows=1 -o data/taught",
    "lpo-data rules --cwe CWE-89",
    "lpo-data stats pairs.jsonl --html stats.html",
    "python -m judges fixed.py --tools bandit",
    "python -m benchmarks.attention --repeats 1 --row-tokens 512 --rows 1 --heads 2 --kv-heads 2",
    f"python -m benchmarks.codecode {FEW} --new 8 --width 128 --expert-width 64 --expert-layers 1 --vocab 512",
    f"python -m benchmarks.crosec MODEL MODEL {FEW} --widths 64 64 --rows 1 --new 4",
    "python -m benchmarks.decode --repeats 1 --rows 2 --prompt 16 --preamble 32 --new 4 --text 8 --long 1024",
    "python -m benchmarks.input --row-tokens 1024 --batch-rows 1 --d-model 64 --layers 1 --steps 2",
    "python -m benchmarks.judges pairs.jsonl",
    f"python -m benchmarks.lora {FEW} --pairs 2 --max-tokens 512 --d-model 64 --rank 2",
    "python -m benchmarks.masks --repeats 1 --batch-pairs 2",
    "python -m benchmarks.quantized MODEL --steps 1 --row-tokens 1024 --batch-rows 1",
    "python -m benchmarks.quantized_decode MODEL humaneval.jsonl --repeats 1 --tasks-read 2 --new 4 --rows 2",
    f"python -m benchmarks.serve {FEW} --rows 4 --clients 2 --turns 1 --prompt 16 --new 8 --width 64 --vocab 512 --long 64 --arrivals 1",
    f"python -m benchmarks.step {FEW} --pairs 2 --max-tokens 512 --d-model 64",
    f"python -m benchmarks.warp {FEW} --rows 2 --vocab 512 --width 64",
]
ELSEWHERE = {  # lines, and the test that runs such, or dry-runs what would be paid for
    r"pip install": "tests/whole/test_package.py::test_the_wheel_alone_generates_serves_and_exports",
    r"make train": "tests/whole/test_played_pages.py::test_make_gives_the_commands_of_a_first_run",
    r"make [a-z]+-(tpu|gke|sky|slurm)(-down)?": "tests/whole/test_shown_commands.py::test_a_make",
    r"make reproduce SIZE=smoke": "tests/whole/test_reproduced.py::test_a_second_run_gives_the_same_numbers_bit_for_bit",
    r"lpo serve": "tests/lpo_jax/cli/test_serve.py::test_the_command_serves_what_lpo_generate_writes",
    r"lpo plan": "tests/whole/test_planned_run.py::test_a_real_run_takes_the_steps_tokens_and_bytes_that_were_planned",
    r"lpo-data pivots": "tests/whole/test_pivots_served.py::test_the_token_is_found_through_our_own_sampler",
    r"lpo (config|train) .*name: focal": "tests/whole/test_adding_an_objective.py::test_it_trains",
    r"lpo train .*track=": "tests/lpo_jax/train/test_track.py::test_a_run_that_is_killed_is_tracked_as_one",
    r"lpo doctor": "tests/lpo_jax/cli/test_doctor.py::test_it_says_what_is_here_and_how_to_get_what_is_not",
    r"lpo fetch": "tests/lpo_jax/cli/test_fetch.py::test_it_says_what_it_has_done_and_its_libraries_say_nothing",
    r"lpo-data check": "tests/data_pipeline/test_check.py::test_command_names_the_pair_and_fails",
    r"lpo-data distill": "tests/whole/test_distill_to_training.py::test_distill_build_train",
    r"lpo-data push": "tests/data_pipeline/test_push.py::test_a_file_of_pairs_comes_back_as_it_went",
    r"make train-local-multihost": "tests/launch/test_local.py::test_two_real_processes_train_one_model",
    r"make reproduce$": "tests/whole/test_reproduced.py::test_a_second_run_gives_the_same_numbers_bit_for_bit",
    r"python -m benchmarks.peers": "tests/whole/test_peers.py::test_a_peer_steps_when_told_and_then_says_what_it_logged",
    r"python -m judges.calibrate": "tests/judges/test_calibrate.py::test_reading_answers",
    r"python -m launch.tpu": "tests/whole/test_shown_commands.py::test_a_make",
    r"python -m tests.helpers.chaos": "tests/lpo_jax/train/test_loop.py::test_twenty_kills_change_nothing",
    r"python -m website.figures": "tests/whole/test_documents.py::test_figures_are_what_their_script_draws",
    r"export LPO_API_KEY=|curl": "tests/launch/test_tpu_cloud.py::test_a_server_is_reached_through_the_tunnel_and_outlives_it",
}
UNPLAYED = {  # lines, and why not
    r"make (lint|test|test-slow|test-heavy)": "runs the tests: .ci/run does, and whoever releases",
    r"\.venv/bin/ruff format": "would write into the tree; `make lint` looks whether it would",
    r"make (docs|\.venv/installed|\.venv/installed-judges)": "installs packages: .ci/run does all three",
    r"make (plan|codecode-demo|distill-demo)": "takes minutes; the commands that it gives are played or have tests",
    r"python -m benchmarks.memory": "compiles an 8B for a TPU slice",
    r"make reproduce SIZE=small": "takes hours and a real model; docs/results/ is what came of it",
    r"tensorboard": "no package that this project asks for, and it shows pages until it is stopped",
}
HUB = ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-Coder-1.5B", "Qwen/Qwen2.5-Coder-14B")
THEIRS = re.compile(r"^[IWEF]\d{4} |^\d{4}-\d\d-\d\d|Warning\b|WARNING|TensorFlow|oneDNN|libtpu|\babsl\b", re.MULTILINE)
"""What libraries greet with."""
NOT_THEIRS = ("TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES", "LPO_REAL_MODELS")  # which tests set, and readers don't


def shown(page):
    """The lines that it shows a shell: those of its shell blocks, and behind a `$`."""
    text = (REPO / page).read_text(encoding="utf-8")
    prompted = [line for block in blocks(text, ("", "text")) for line in block.splitlines() if line.startswith("$ ")]
    return [*lines_of("\n".join([*blocks(text, ("sh",)), *prompted]))]


def without_play(line):
    """Why a line isn't played: the test, or the reason."""
    return next((why for pattern, why in (ELSEWHERE | UNPLAYED).items() if re.match(rf"({pattern})(?![\w-])", line)), None)


def lines_to_play(page):
    return [*BEFORE.get(page, []), *(line for line in shown(page) if without_play(line) is None)]


def command_of(line):
    """A program and its command, or a module."""
    words = line.split()
    return tuple(words[: 3 if words[0] == "python" else 2])


def devices_of(line):
    """How many devices a line's mesh has."""
    return math.prod(map(int, re.findall(r"mesh\.\w+=(\d+)", line)))


def shortened(line):
    """A line, made small."""
    program, *words = shlex.split(line)
    match program, words[0]:
        case "lpo", "train":
            overrides = [word for word in words[2:] if "=" in word]
            stages = load(REPO / words[1] if (REPO / words[1]).exists() else words[1], overrides).stages
            rows = devices_of(line)  # each has one
            more = [f"stages.{name}.{key}" for name in stages for key in ("steps=2", f"batch_rows={rows}")]
            more += ["report_pairs=1", f"eval_rows={rows}", *([f"run_dir=runs/on_{rows}"] if words[1] == "CONFIG" else [])]
        case ("lpo", "generate") | ("lpo-eval", "run") if "canonical" not in words and "insecure" not in words:
            more = ["--max-new-tokens", "8", "--max-len-tokens", "1024", "--rows", "2"]
            if program == "lpo-eval":
                more += ["-n", "1", "--any-data", *([] if "--judges" in words else ["--judges", "none"])]
        case _:
            more = []
    return f"{line} {shlex.join(more)}"


@pytest.fixture
def place(tmp_path, seed_shards, monkeypatch):
    """A directory with what pages take for granted."""
    model = save_llama(tmp_path / "MODEL", 32, 48)
    for file in (seed_shards["trimmed"] / "tokenizer").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    for name in ("TARGET", "EXPERT"):
        (tmp_path / name).symlink_to(model)
    for name in HUB:
        kept = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        for folder in ("refs", "snapshots"):
            (kept / folder).mkdir(parents=True)
        (kept / "refs" / "main").write_text("0" * 40)
        (kept / "snapshots" / ("0" * 40)).symlink_to(model)
    rows = [json.loads(line) for line in (seed_shards["trimmed"].parent / "pairs.jsonl").read_text().splitlines()][:40]
    marked = [row | {f"{side}_spans": [[0, len(row[side])]] for side in ("chosen", "rejected")} for row in rows]
    plain = [{"instruction": row["instruction"], "response": row["chosen"]} for row in rows]
    fixes = [
        {"func_src_before": row["rejected"], "func_src_after": row["chosen"], "file_name": "a.py", "vul_type": row["cwe"]} for row in rows
    ]
    task = {"ID": "CWE-089_a_1.py", "Prompt": "import sqlite3\n", "Insecure_code": "x = 1\n"}
    mixture = {
        "family": "qwen3_moe",
        "vocab_size": 512,
        "d_model": 32,
        "n_layers": 1,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
        "d_mlp": 32,
    }
    mixture |= {"max_positions": 1024, "experts": 4, "experts_per_token": 2, "d_expert": 16}
    stage = {"objective": {"name": "lpo", "beta": 2.0, "gamma": 1.0, "alpha": 1.0}, "optim": {"lr": 1e-3}, "batch_rows": 1, "epochs": 1}
    config = {"run_dir": "runs/mine", "data": {"path": "data/mine"}, "model": {"new": mixture}, "stages": {"lpo": stage}}
    (tmp_path / "CONFIG").write_text(json.dumps(config))
    (tmp_path / "sven").mkdir()
    for name, kept in {
        "pairs.jsonl": rows,
        "pivots.jsonl": marked,
        "evol.jsonl": plain,
        "sven/train.jsonl": fixes,
        "tasks.jsonl": [{"id": "a", "instruction": "Add two numbers."}],
        "dataset.jsonl": [task],
        "humaneval.jsonl": [{"prompt": "def one():\n", "canonical_solution": "    return 1\n"}] * 2,
    }.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in kept))
    (tmp_path / "fixed.py").write_text("import hashlib\n")
    with open(tmp_path / "disco_train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Instruction", "Reasoning", "Secure Code", "Vulnerable Code"])
        writer.writerows([row[key] for key in ("instruction", "reasoning", "chosen", "rejected")] for row in rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def play(line, place):
    """Let a shell do a line. It ends well, and says nothing that isn't ours."""
    env = {name: value for name, value in os.environ.items() if name not in NOT_THEIRS} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPO),
        "HF_HUB_CACHE": str(place / "hub"),
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices_of(line)}",
    }
    done = subprocess.run(["bash", "-c", line], cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert not THEIRS.search(done.stdout + done.stderr), f"{line}\n{done.stderr}"


@needs_sandbox
@pytest.mark.parametrize("pages", [pytest.param(pages, marks=mark) for pages, mark in PLAYED.items()], ids=" ".join)
def test_pages_are_played(pages, place):
    for page in pages:
        for line in lines_to_play(page):
            play(shortened(line), place)


@pytest.mark.heavy
def test_what_is_only_named_is_played(place):
    play("lpo-data build evol.jsonl --tokenizer MODEL --row-tokens 512 --out data/evol_qwen2_5_coder", place)
    for line in NAMED:
        play(line, place)


def test_no_line_of_a_page_is_left_out():
    """Each is played, or has a test elsewhere that there is, or a reason; so is each command that a page's text names."""
    files = [path for pattern in ("*.md", "docs/**/*.md", "launch/*.md") for path in REPO.glob(pattern)]
    texts = {str(path.relative_to(REPO)): path.read_text(encoding="utf-8") for path in files}
    pages = [page for pages in PLAYED for page in pages]
    left = [f"{page}: {line}" for page in texts if page not in pages for line in shown(page) if without_play(line) is None]
    assert left == [] and {*pages} | BEFORE.keys() <= texts.keys()

    played = {command_of(line) for line in [*NAMED, *(line for page in pages for line in lines_to_play(page))]}
    named = [line for text in texts.values() for line in commands_of("\n".join(spans(text)))]
    assert [line for line in named if command_of(line) not in played and len(line.split()) > 1 and without_play(line) is None] == []

    every = [*named, *(line for page in texts for line in shown(page))]
    for pattern in ELSEWHERE | UNPLAYED:
        assert any(re.match(pattern, line) for line in every), f"no page shows {pattern}"
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (REPO / file).read_text(encoding="utf-8"), test


def test_make_gives_the_commands_of_a_first_run():
    """Those of docs/index.md, which is played."""
    said = subprocess.run(
        ["make", "-n", "-o", ".venv/installed", "RUN=runs/new", "train"],
        cwd=REPO,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    given = [
        shlex.join(shlex.split(line.replace("runs/new", "runs/tiny_cpu").replace(".venv/bin/", ""))) for line in said.stdout.splitlines()
    ]
    assert [line.removesuffix(" --force").strip() for line in given] == [
        line for line in shown("docs/index.md") if line.startswith(("lpo-data", "lpo train"))
    ]
