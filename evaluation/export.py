"""`lpo-eval export`: a run's programs as other harnesses read them, to be judged there.

What they read: evalplus/evalplus, evaluate.py and data/utils.py; bigcode-project/bigcode-evaluation-harness, bigcode_eval/evaluator.py.
"""

import json
import re
from pathlib import Path

from evaluation.runs import ReportError, Run
from foundation.files import write_text

_TASKS = {"humaneval": 164}  # of the benchmarks that both harnesses and we have


def export(run: Run, to: str, out: Path) -> str:
    """Write a run's programs, whole ones, the prompt's code included, to `out`; returns how the harness is started on them, or that it can't be.

    Args:
      to: "evalplus": JSON lines {"task_id", "solution"}. "bigcode" (bigcode-evaluation-harness): a JSON list of the tasks in the benchmark's order, each
        a list of its samples. That harness knows a task by its place alone, and takes what it loads as it is.

    Raises:
      ReportError: the tasks don't all have the same number of samples, or (bigcode) aren't the benchmark's first ones.
    """
    counts = {len(samples) for samples in run.tasks.values()}
    if len(counts) > 1:
        raise ReportError(f"{run.path}: its tasks have {min(counts)} to {max(counts)} samples; let `lpo-eval run` finish")
    name, tasks = run.info["benchmark"], list(run.tasks)
    few = len(tasks) < _TASKS.get(name, 0)
    if to == "evalplus":
        rows = ({"task_id": task, "solution": sample["code"]} for task, samples in run.tasks.items() for sample in samples)
        write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
        start = f"evalplus.evaluate --dataset {name} --samples {out}"
        start += f"\nmind: EvalPlus wants all of {name}'s {_TASKS[name]} tasks, here are {len(tasks)}" if few else ""
    else:
        places = [int(found[0]) if (found := re.search(r"\d+$", task)) else -1 for task in tasks]
        if name in _TASKS and places != list(range(len(tasks))):
            raise ReportError(
                f"{run.path}: its tasks aren't {name}'s first ones in their order, by which that harness knows them: run them all"
            )
        write_text(out, json.dumps([[sample["code"] for sample in samples] for samples in run.tasks.values()]) + "\n")
        start = f"main.py --tasks {name} --load_generations_path {out} --n_samples {counts.pop()} --allow_code_execution"
        start += f" --limit {len(tasks)}" if few else ""
    return start if name in _TASKS else f"mind: {to} has no {name}: its evaluation can't judge them without tests of your own"
