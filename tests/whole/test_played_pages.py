"""Pages are played as a reader would: the commands of their shell blocks, one after the other, in an empty directory, each a process of its own.

Stand-ins are small: a random model where a page names a real one, a few rows where it names a file that the reader has. Trainings take two steps a
stage. `lpo serve` and `lpo plan` have tests of their own.
"""

import csv
import json
import os
import re
import subprocess
import sys

import pytest

from tests.helpers.families import save_llama
from tests.helpers.paths import REPO
from tests.helpers.shown import blocks, commands_of, words_of

MODULES = {"lpo": "lpo_jax.cli", "lpo-data": "data_pipeline.cli", "lpo-eval": "evaluation.cli"}
ELSEWHERE = {("lpo", "serve"), ("lpo", "plan")}
DRAWN = ["--max-new-tokens", "8", "--max-len-tokens", "1024", "--rows", "2"]
SHORTER = {
    "build": [],
    "train": ["stages.sft.steps=2", "stages.lpo.steps=2", "stages.sft.batch_rows=1", "stages.lpo.batch_rows=1", "report_pairs=1", "eval_rows=1"],
    "generate": DRAWN,
    "run": [*DRAWN, "-n", "1", "--judges", "none", "--any-data"],
}  # fmt: skip


@pytest.fixture
def place(tmp_path, seed_shards):
    """A directory with what pages take for granted."""
    model = save_llama(tmp_path / "MODEL", 32, 48)
    for file in (seed_shards["trimmed"] / "tokenizer").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    rows = [json.loads(line) for line in (seed_shards["trimmed"].parent / "pairs.jsonl").read_text().splitlines()][:40]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(tmp_path / "disco_train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Instruction", "Reasoning", "Secure Code", "Vulnerable Code"])
        writer.writerows([row[key] for key in ("instruction", "reasoning", "chosen", "rejected")] for row in rows)
    (tmp_path / "tasks.jsonl").write_text('{"id": "a", "instruction": "Add two numbers."}\n')
    (tmp_path / "dataset.jsonl").write_text(
        json.dumps({"ID": "CWE-089_a_1.py", "Prompt": "import sqlite3\n", "Insecure_code": "x = 1\n"}) + "\n"
    )
    return tmp_path


QUIETERS = ("TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES")  # which tests set, and readers don't
THEIRS = re.compile(r"^[IWEF]\d{4} |^\d{4}-\d\d-\d\d|Warning\b|WARNING|TensorFlow|oneDNN|libtpu|\babsl\b", re.MULTILINE)
"""What libraries greet with."""
BEFORE = {"docs/evaluation.md": "lpo-eval run --benchmark securityeval --data dataset.jsonl --completions MODEL -o evals/base"}
"""What a page's reader has done."""


@pytest.mark.parametrize(
    "pages",
    [
        pytest.param(["README.md"], marks=pytest.mark.slow),
        pytest.param(["docs/index.md"], marks=pytest.mark.heavy),
        pytest.param(["docs/tutorial.md"], marks=pytest.mark.heavy),
        pytest.param(["docs/training.md", "docs/evaluation.md"], marks=pytest.mark.heavy),
    ],
    ids=" ".join,
)
def test_pages_are_played(pages, place):
    env = {name: value for name, value in os.environ.items() if name not in QUIETERS} | {
        "PYTHONPATH": str(REPO),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
    }
    played = set()
    for page in pages:
        shell = "\n".join([BEFORE.get(page, ""), *blocks((REPO / page).read_text(encoding="utf-8"), ("sh",))])
        for line in commands_of(shell):
            program, *words = words_of(line)
            if program not in MODULES or (program, words[0]) in ELSEWHERE:
                continue
            words = [re.sub(r"^(model\.path=)?(MODEL|HuggingFaceTB/\S+)$", rf"\1{place / 'MODEL'}", word) for word in words]
            shorter = [] if "canonical" in words else SHORTER.get(words[0], [])
            given = [sys.executable, "-m", MODULES[program], *words, *shorter]
            done = subprocess.run(given, cwd=place, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{page}: {line}\n{done.stdout}{done.stderr}"
            assert not THEIRS.search(done.stdout + done.stderr), f"{line}\n{done.stderr}"
            played.add(words[0])
    assert {"build", "train"} <= played
