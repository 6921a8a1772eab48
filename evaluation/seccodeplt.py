"""SecCodePLT+: functions to write, judged by cases: see `data_pipeline.seccodeplt`.

As published, an answer stands behind its row's `setup`. Other than there, "capability" and "safety" cases run in processes of their own, where the
answer can't reach them, and have `Limits.time_s` each rather than one second together.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_pipeline import pairs
from evaluation.tasks import Task, sentence_task
from foundation.commands import version_of

log = logging.getLogger(__name__)


def read(path: Path, content: bytes) -> Iterator[Task]:
    """The rows of JSON lines or Parquet that `data_pipeline.formats` reads as SecCodePLT's, and which have tests."""
    drops, missing = pairs.Drops(), dict[str, list[str]]()
    for row, pair in pairs.read_rows(path, drops):
        if not pair.tests:
            raise ValueError(f"{pair.id} has no testcases")
        name = (row.get("task") or row["task_description"])["function_name"]
        tested = f"{pair.tests}\nclass program_:\n    {name} = staticmethod({name})\n\n"
        task = sentence_task(
            pair.id,
            pair.instruction.removeprefix("Coding Problem:").partition("Output Format:")[0],
            cwe=pair.cwe,
            canonical=pair.chosen,
            insecure=pair.rejected,
            functional_test=f"{tested}functional(program_)\n",
            security_test=f"{tested}exploit(program_)\n",
            packages=bool(row.get("install_requires")),
            names=(name,),
            given=pair.setup,
            setup=pair.setup,
        )
        yield replace(task, instruction=pair.instruction)
        for package in row.get("install_requires") or ():
            if version_of(package) is None:
                missing.setdefault(package, []).append(pair.id)
    if drops.rows:
        raise ValueError(": ".join(drops.rows[0]))
    if missing:
        ids = list(dict.fromkeys(task for tasks in missing.values() for task in tasks))
        log.warning("%d tasks, %s first, need packages that aren't installed: %s", len(ids), ids[0], ", ".join(sorted(missing)))
