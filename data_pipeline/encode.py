"""From a pair's text to token ids and masks."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline import masks
from data_pipeline.chat import TemplateError
from data_pipeline.pairs import Pair
from data_pipeline.template import Template, Text, render
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.trees import Encoded


@dataclass(frozen=True)
class MaskOptions:
    """How m+ and m- are made (see `data_pipeline.masks`)."""

    mode: Literal["clean", "lcs", "reference", "spans"] = "clean"
    hole: int = 1  # longest run of unchanged tokens between changed ones that is filled
    max_length: int = 512  # reference only: the authors' limits in tokens, for a whole sequence ...
    max_prompt_length: int = 128  # ... and for the prompt of a sequence that exceeds it


class UnusableError(Exception):
    """The pair can't become a tree; the message is the reason it's counted under."""


def encode(pair: Pair, tokenizer: Tokenizer, template: Template, options: MaskOptions, limit: int | None = None) -> Encoded:
    """Tokenise both sides and mark what differs.

    Prompt and answer are tokenised each for itself: a prompt's tokens never depend on what follows, so that a model is asked with those that it
    was trained on. BOS is put in front where the tokenizer asks for it, and no template has; a completion task without a BOS begins with EOS, as
    a document of its own. EOS, or a chat template's end of turn, ends both sides.

    Raises:
      UnusableError: both sides have the same tokens, the template can't write the pair, or its tree is longer than `limit` for sure: that is
        seen before anything is compared, which takes long for long texts.
    """
    text, answer_start, chosen, rejected = sides(pair, tokenizer, template)
    if limit is not None and options.mode != "reference" and len(chosen.ids) + _differing(rejected.ids, chosen.ids) > limit:
        raise UnusableError(f"longer than --row-tokens {limit}")
    if options.mode == "reference":
        sizes = answer_start, len(chosen.ids) - answer_start, len(rejected.ids) - answer_start
        kept_prompt, *answers = truncated_lengths(*sizes, options.max_length, options.max_prompt_length)
        for side, kept in zip((chosen, rejected), answers, strict=True):
            side.keep(answer_start - kept_prompt, answer_start + kept)
        answer_start = kept_prompt
        m_minus, m_plus = masks.reference(rejected.ids, chosen.ids, options.hole)
        m_minus[:answer_start] = m_plus[:answer_start] = False
    else:
        if np.array_equal(chosen.ids, rejected.ids) and not pair.plain:
            raise UnusableError("both sides have the same tokens")
        m_minus, m_plus = np.zeros(len(rejected.ids), bool), np.zeros(len(chosen.ids), bool)
        m_minus[rejected.code], m_plus[chosen.code] = _code_masks(pair, text, rejected, chosen, options)
    return Encoded(
        id=pair.id,
        chosen=chosen.ids,
        rejected=rejected.ids,
        m_plus=m_plus,
        m_minus=m_minus,
        answer_start=answer_start,
        chosen_code_start=chosen.code.start,
        rejected_code_start=rejected.code.start,
    )


class Side:
    """Token ids of one full sequence and where its parts are.

    Attributes:
      ids: prompt, answer and end, int32 [length].
      code: where the code's tokens are among them; of a completion task, whose prompt holds the first lines, those of the others.
      code_offsets: the half-open character range of each of the code's tokens in that code, int64 [n, 2].
    """

    def __init__(self, prompt: list[int], text: Text, code: str, tokenizer: Tokenizer):
        before, first = len(text.before_code), len(prompt)
        answer = tokenizer.encode(text.answer(code), goes_on=True)
        self.ids = np.array([*prompt, *answer.ids, tokenizer.eos_id if text.end is None else text.end], np.int32)
        offsets = np.array(answer.offsets, np.int64).reshape(-1, 2)
        start = int(np.searchsorted(offsets[:, 1], before, side="right"))
        stop = int(np.searchsorted(offsets[:, 0], before + len(code), side="left"))
        self.code = slice(first + start, first + stop)
        self.code_offsets = offsets[start:stop] - before

    def keep(self, first: int, stop: int) -> None:
        """Cut the sequence to its tokens from `first` to in front of `stop`."""
        self.ids = self.ids[first:stop]
        self.code = slice(*(min(i - first, len(self.ids)) for i in (self.code.start, self.code.stop)))


def sides(pair: Pair, tokenizer: Tokenizer, template: Template) -> tuple[Text, int, Side, Side]:
    """A pair's text, how many tokens its prompt has, and the chosen and the rejected sequence, each with its prompt.

    Raises:
      UnusableError: the template can't write the pair.
    """
    try:
        text = render(pair, template, tokenizer)
    except TemplateError as error:
        raise UnusableError(f"template {template.name}: {error}") from None
    prompt = text.prompt.ids(tokenizer) or [tokenizer.eos_id]
    return text, len(prompt), Side(prompt, text, text.chosen, tokenizer), Side(prompt, text, text.rejected, tokenizer)


def _code_masks(pair: Pair, text: Text, rejected: Side, chosen: Side, options: MaskOptions) -> masks.Masks:
    if options.mode != "spans":
        mark = masks.clean if options.mode == "clean" else masks.lcs
        return mark(rejected.ids[rejected.code], chosen.ids[chosen.code], options.hole)
    if pair.rejected_spans is None or pair.chosen_spans is None:
        changes = masks.changed_spans(pair.rejected, pair.chosen)
    else:
        changes = list(pair.rejected_spans), list(pair.chosen_spans)
    cut = len(pair.chosen) - len(text.chosen)  # a completion task's prompt holds the code's first lines
    before, after = ([(max(start - cut, 0), stop - cut) for start, stop in side if stop > cut] for side in changes)
    return masks.spans((rejected.code_offsets, chosen.code_offsets), (before, after), options.hole)


def _differing(rejected: np.ndarray, chosen: np.ndarray) -> int:
    """Tokens of the rejected side between what both begin with and what both end with: its branch has as many, at least."""
    most = min(len(rejected), len(chosen))
    unlike = np.flatnonzero(rejected[:most] != chosen[:most])
    if not unlike.size:
        return len(rejected) - most
    behind = np.flatnonzero(rejected[::-1][:most] != chosen[::-1][:most])
    return len(rejected) - int(unlike[0]) - min(int(behind[0]), most - int(unlike[0])) if behind.size else 0


def truncated_lengths(prompt: int, chosen: int, rejected: int, max_length: int = 512, max_prompt_length: int = 128) -> tuple[int, int, int]:
    """Tokens that the authors keep of (prompt, chosen answer, rejected answer): TRL's `keep_end` truncation.

    If the longer sequence exceeds `max_length`, the prompt keeps its last `max_prompt_length` tokens; if it still does, both
    answers keep their first ``max_length - max_prompt_length``.
    """
    longest = max(chosen, rejected)
    if prompt + longest > max_length:
        prompt = min(prompt, max_prompt_length)
    if prompt + longest > max_length:
        chosen, rejected = (min(n, max_length - max_prompt_length) for n in (chosen, rejected))
    return prompt, chosen, rejected
