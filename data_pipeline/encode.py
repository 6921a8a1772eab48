"""From a pair's text to token ids and masks."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline import masks
from data_pipeline.pairs import Pair
from data_pipeline.template import Text, render
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


def encode(pair: Pair, tokenizer: Tokenizer, options: MaskOptions) -> Encoded:
    """Tokenise both sides and mark what differs.

    Prompt and answer are tokenised together and split in token space, so that a boundary is what the model sees. BOS is put in
    front where the tokenizer asks for it; a completion task without a BOS begins with EOS, as a document of its own. EOS ends
    both sides.

    Raises:
      UnusableError: both sides have the same tokens.
    """
    text = render(pair)
    chosen = _Side(text, text.chosen, tokenizer)
    rejected = _Side(text, text.rejected, tokenizer)
    answer_start = min(chosen.answer_start, rejected.answer_start)
    if options.mode == "reference":
        sizes = answer_start, len(chosen.ids) - answer_start, len(rejected.ids) - answer_start
        prompt, *answers = truncated_lengths(*sizes, options.max_length, options.max_prompt_length)
        for side, kept in zip((chosen, rejected), answers, strict=True):
            side.keep(answer_start - prompt, answer_start + kept)
        answer_start = prompt
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


class _Side:
    """Token ids of one full sequence and where its parts are."""

    def __init__(self, text: Text, code: str, tokenizer: Tokenizer):
        before = len(text.prompt) + len(text.before_code)
        encoding = tokenizer.backend.encode(text.prompt + text.before_code + code + text.after_code, add_special_tokens=False)
        first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        if not text.prompt and not first:
            first = [tokenizer.eos_id]
        self.ids = np.array([*first, *encoding.ids, tokenizer.eos_id], np.int32)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        after = lambda char: len(first) + int(np.searchsorted(offsets[:, 1], char, side="right"))  # noqa: E731
        self.answer_start = after(len(text.prompt))
        stop = len(first) + int(np.searchsorted(offsets[:, 0], before + len(code), side="left"))
        self.code = slice(after(before), stop)
        self.code_offsets = offsets[self.code.start - len(first) : stop - len(first)] - before

    def keep(self, first: int, stop: int) -> None:
        """Cut the sequence to its tokens from `first` to in front of `stop`."""
        self.ids = self.ids[first:stop]
        self.code = slice(*(min(i - first, len(self.ids)) for i in (self.code.start, self.code.stop)))


def _code_masks(pair: Pair, text: Text, rejected: _Side, chosen: _Side, options: MaskOptions) -> masks.Masks:
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
