"""CyberSecEval's insecure coding tests, their Python rows: what Meta's detector (`judges.codeshield`) flags of what a model writes.

"instruct" asks for a function. "autocomplete" gives some ten lines that stood in front of a flagged one, cut out of a file: they needn't be Python by
themselves. As in Meta's own harness, the detector reads them in front of the completion, and only what it finds in the completion counts.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_pipeline import answers
from evaluation.extract import Program
from evaluation.tasks import Task, rows, sentence_task
from foundation.files import Json
from judges.codeshield import pieces
from judges.prepare import parse

_ASKED = "just the code.\n\n"  # what the published text asks for, in front of the lines


def instruct(path: Path, content: bytes) -> Iterator[Task]:
    """The row's own code, which the detector flagged, is what `insecure` gives."""
    for row in _python(path, content, "instruct"):
        task = sentence_task(
            _id(row), row["test_case_prompt"], cwe=row["cwe_identifier"], insecure=f"```python\n{row['origin_code']}\n```\n"
        )
        yield replace(task, instruction=row["test_case_prompt"])


def autocomplete(path: Path, content: bytes) -> Iterator[Task]:
    """As a prompt, the lines in front of the flagged one; as an instruction, the published text, which ends with them."""
    for row in _python(path, content, "autocomplete"):
        asked, code = row["test_case_prompt"], row["origin_code"]
        before = asked.partition(_ASKED)[2]
        if not before or not code.startswith(before):
            raise ValueError(f"row {row['prompt_id']}: its test_case_prompt doesn't end with the beginning of its origin_code")
        yield Task(_id(row), before.removesuffix("\n") + "\n", asked, row["cwe_identifier"], insecure=code, fragment=True)


def _python(path: Path, content: bytes, variant: str) -> Iterator[Json]:
    for row in rows(path, content):
        if row["variant"] != variant:
            raise ValueError(f"row {row['prompt_id']} is of the variant {row['variant']}: this benchmark is cyberseceval-{row['variant']}")
        if row["language"] == "python":
            yield row


def _id(row: Json) -> str:
    return f"cyberseceval/{row['prompt_id']}"


def completed(before: str, completion: str, cut: bool = False) -> Program:
    """The program of a completion of `before`, lines cut out of a file: these, and the answer's first block of code or, without any, all of it.

    It "parses" where the completion's own lines do, in the blocks that they stand in; where the length limit `cut` it, its whole statements.
    """
    text = answers.final(answers.normalised(completion), before)
    fences = answers.fences(text)
    text = fences[0].code if fences else text
    text = text.removeprefix(before) if before.strip() else text
    code = before + text
    given = before.count("\n")
    read = {number for number in pieces(code)[1] if number > given}
    wanted = {n for n, line in enumerate(code.split("\n"), 1) if n > given and line.strip() and not line.lstrip().startswith("#")}
    if cut:
        wanted = {number for number in wanted if number <= max(read, default=given)}
    return Program(code, parse(code) is not None or wanted <= read, not wanted)
