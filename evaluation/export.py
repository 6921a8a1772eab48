"""`lpo-eval export`: a run's programs as other harnesses read them, to be judged there."""

import json
import re
from pathlib import Path

from evaluation.runs import ReportError, Run
from foundation.files import write_text

_TASKS = {"humaneval": 164}  # of the benchmarks that both harnesses and we have


def export(run: Run, to: str, out: Path) -> str:
    """Write a run's programs, whole ones, the prompt's code included, to `out`; returns how the harness is started, and what it minds.

    Args:
      to: "evalplus": JSON lines {"task_id", "solution"}. "bigcode" (bigcode-evaluation-harness): a JSON list of the tasks in the benchmark's order, each
        a list of its samples; that harness knows a task by its place alone.

    Raises:
      ReportError: the tasks don't all have the same number of samples, or (bigcode) aren't the benchmark's first ones.
    """
    counts = {len(samples) for samples in run.tasks.values()}
    if len(counts) > 1:
        raise ReportError(f"{run.path}: its tasks have {min(counts)} to {max(counts)} samples; let `lpo-eval run` finish")
    name, tasks = run.info["benchmark"], list(run.tasks)
    if to == "evalplus":
        rows = ({"task_id": task, "solution": sample["code"]} for task, samples in run.tasks.items() for sample in samples)
        write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
        start = f"evalplus.evaluate --dataset {name} --samples {out}"
        minds = "EvalPlus takes nothing less than all 164 tasks" if len(tasks) < _TASKS.get(name, 0) else ""
    else:
        places = [int(found[0]) if (found := re.search(r"\d+$", task)) else -1 for task in tasks]
        if name in _TASKS and places != list(range(len(tasks))):
            raise ReportError(f"{run.path}: its tasks aren't {name}'s first ones in their order, by which that harness knows them")
        write_text(out, json.dumps([[sample["code"] for sample in samples] for samples in run.tasks.values()]) + "\n")
        limit = f" --limit {len(tasks)}" if len(tasks) < _TASKS.get(name, 0) else ""
        start = f"main.py --tasks {name} --load_generations_path {out} --n_samples {counts.pop()}{limit} --allow_code_execution"
        minds = ""
    if name not in _TASKS:
        minds = f"the harness itself has no {name}: it can read the file, and has no tests for it"
    return f"{start}\nmind: {minds}" if minds else start
