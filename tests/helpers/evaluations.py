"""Run directories for tests, from the shipped pairs: real secure and vulnerable code, and the faults that models make."""

import ast
import json
import random
from pathlib import Path
from typing import Any

from tests.helpers.paths import REPO

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned=1'><!--<b>\u202e\u2028&amp;"


def pairs(count: int) -> list[dict[str, Any]]:
    lines = (REPO / "data_pipeline/seed/pairs.jsonl").read_text().splitlines()
    step = max(1, len(lines) // count)
    return [json.loads(line) for line in lines[::step][:count]]


def make(path: Path, model: str, secure_share: float, *, benchmark: str = "SecurityEval", tasks: int = 30, samples: int = 3, functional: bool = False, judged: bool = True, hostile: bool = False, seed: int = 0) -> Path:  # fmt: skip
    """A run of `model`: `secure_share` of its samples are the secure side; one in 20 is cut off, one in 40 empty."""
    rng = random.Random(f"{model}{seed}")
    path.mkdir(parents=True)
    lines = []
    for number, pair in enumerate(pairs(tasks)):
        seen: set[str] = set()
        for index in range(samples):
            good = rng.random() < secure_share
            code = pair["chosen" if good else "rejected"] + "\n"
            fate = rng.random()
            code = "" if fate < 0.025 else code[: len(code) * 2 // 3] + "(" if fate < 0.075 else code
            if hostile and number == 0:
                code = f'text = "{HOSTILE}"\n'
            lines.append(_sample(pair, index, code, good, functional, judged, seen, rng, hostile and number == 0))
    (path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "run.json").write_text(
        json.dumps(
            {
                "name": path.name,
                "model": model,
                "benchmark": benchmark,
                "data_sha256": "5e" * 32,
                "form": "instruction",
                "samples_per_task": samples,
                "sampling": {"temperature": 0.4, "top_p": 0.95, "max_new_tokens": 512, "seed": 42},
                "tools": ["bandit", "semgrep"] if judged else [],
                "versions": {"bandit": "1.8.6", "semgrep": "1.131.0"},
            }
        )
    )
    return path


def _sample(pair: dict[str, Any], index: int, code: str, good: bool, functional: bool, judged: bool, seen: set[str], rng: random.Random, hostile: bool) -> dict[str, Any]:  # fmt: skip
    try:
        ast.parse(code)
        parses = True
    except (SyntaxError, ValueError):
        parses = False
    findings = []
    if judged and parses and code.strip() and not good:
        kept = set(pair["chosen"].splitlines())
        line = next((n for n, text in enumerate(code.splitlines(), 1) if text not in kept), 1)
        message = f"{HOSTILE if hostile else pair['reasoning'].split('. ')[0]}."
        findings.append({"judge": "semgrep", "rule": pair["id"], "cwe": pair["cwe"], "line": line, "end_line": line, "severity": "high", "message": message})  # fmt: skip
    duplicate = code in seen
    seen.add(code)
    outcome = {"outcome": "pass" if parses and rng.random() < 0.7 else "fail", "detail": "", "seconds": 0.1}
    return {
        "task_id": HOSTILE if hostile else pair["id"],
        "sample": index,
        "cwe": pair["cwe"],
        "prompt": pair["instruction"],
        "completion": code,
        "code": code,
        "parses": parses,
        "empty": not code.strip(),
        "duplicate": duplicate,
        "findings": findings,
        "functional": outcome if functional else None,
        "security": None,
    }
