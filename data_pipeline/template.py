"""A pair as text: the Alpaca template with a "Security Thought", as in the LPO paper (Sec. 2, App.).

    preamble / ### Instruction: / ### Security Thought: | reasoning / ### Response: ```python code ```
    '----------------- prompt -----------------------'  '----------------- answer -----------'

A pair without reasoning has no thought section. A pair without an instruction is a completion task: its prompt is the code in
front of the first changed line. A plain row's response stands as it is, without a fence around it.
"""

from dataclasses import dataclass

from data_pipeline.pairs import Pair

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"


@dataclass(frozen=True)
class Text:
    """A pair's prompt, and for each side the text after it with the code's place in that text."""

    prompt: str
    before_code: str  # answer text in front of the code, the same on both sides
    chosen: str
    rejected: str
    after_code: str


def render(pair: Pair) -> Text:
    """The text that a model is trained on, without special tokens."""
    if pair.plain:
        return Text(task_prompt(pair.instruction, think=False), "\n", pair.chosen, pair.rejected, "")
    if not pair.instruction:
        cut = first_changed_line(pair.rejected, pair.chosen)
        return Text(pair.chosen[:cut], "", pair.chosen[cut:], pair.rejected[cut:], "")
    fence = f"\n```{pair.language}\n"
    before = f"\n{pair.reasoning}\n\n### Response:{fence}" if pair.reasoning else fence
    return Text(task_prompt(pair.instruction, think=bool(pair.reasoning)), before, pair.chosen, pair.rejected, "\n```")


def task_prompt(instruction: str, think: bool = True) -> str:
    """The prompt for an instruction: the model goes on with a security thought, or directly with the response."""
    return f"{PREAMBLE}### Instruction:\n{instruction}\n\n### {'Security Thought' if think else 'Response'}:"


def first_changed_line(rejected: str, chosen: str) -> int:
    """Character index where the first line that differs begins."""
    same = 0
    while same < min(len(rejected), len(chosen)) and rejected[same] == chosen[same]:
        same += 1
    return chosen.rfind("\n", 0, same) + 1
