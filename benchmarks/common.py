"""What the benchmarks share: real pairs as token ids, their layouts, and timing that survives a noisy machine."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from data_pipeline import pairs as pair_files
from data_pipeline import tokenizer, trees
from data_pipeline.encode import MaskOptions, UnusableError, encode
from data_pipeline.pairs import Pair
from data_pipeline.row import RowShape, pad
from data_pipeline.template import Text, alpaca, render
from data_pipeline.trees import Encoded, Tree
from foundation.commands import new_file
from foundation.files import Json
from lpo_jax.batch import TreeBatch
from lpo_jax.config import ModelConfig

SEED_PAIRS = Path(pair_files.__file__).parent / "seed" / "pairs.jsonl"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `load_pairs` and of the output."""
    parser.add_argument(
        "--data", nargs="+", default=[SEED_PAIRS], help="files of pairs as `lpo-data build` reads them (default: the shipped ones)"
    )
    parser.add_argument("--tokenizer", help="tokenizer.json, its directory or a hub id (default: trained on the shipped pairs)")
    parser.add_argument("--json", type=new_file, metavar="OUT", help="write the numbers here")


def add_numbers(parser: argparse.ArgumentParser, *numbers: tuple[str, int, str]) -> None:
    """Arguments that are whole numbers: (name, default, meaning); and the one of the output."""
    for name, default, what in numbers:
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: {default})")
    parser.add_argument("--json", type=new_file, metavar="OUT", help="write the numbers here")


def llama(vocab: int, d_model: int, layers: int, max_positions: int) -> ModelConfig:
    """A llama of any size, with heads of 64 dims and an MLP 2.75 times as wide as the model."""
    heads = max(d_model // 64, 1)
    return ModelConfig("llama", vocab, d_model, layers, heads, heads, 64, d_model * 11 // 4, max_positions)


def number_tokenizer(vocab: int) -> tokenizer.Tokenizer:
    """Token i is the text "i"; the last one ends a text, and no prompt of `random_prompts` has it."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(vocab - 1)}, unk_token="0"))
    return tokenizer.Tokenizer(words, vocab - 1, None)


def random_prompts(count: int, longest: int, vocab: int) -> list[list[int]]:
    """Prompts of `longest` tokens at most and half of it at least."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(longest // 2, longest + 1, count)
    return [rng.integers(0, vocab - 1, n).tolist() for n in lengths]


def load_tokenizer(name: str | None) -> tokenizer.Tokenizer:
    """A tokenizer, or a small one trained on the shipped pairs."""
    if name is not None:
        return tokenizer.load(name)
    every_text = (render(pair, alpaca(), None) for pair in _read([SEED_PAIRS]))
    texts = (text.prompt.text + text.answer(code) for text in every_text for code in (text.chosen, text.rejected))
    return tokenizer.train(texts, 4096)


def load_pairs(files: Sequence[str | Path], tok: tokenizer.Tokenizer, masks: MaskOptions | None = None) -> list[Encoded]:
    """Token ids and masks of every usable pair, in a fixed random order."""
    return [encoded for _, encoded in load_texts(files, tok, masks)]


def load_texts(files: Sequence[str | Path], tok: tokenizer.Tokenizer, masks: MaskOptions | None = None) -> list[tuple[Text, Encoded]]:
    """`load_pairs`, each pair with its text in front.

    Pairs that come without reasoning (SafeCoder) or instruction (SVEN) borrow a shipped pair's, of their own CWE where there is one: its text
    is about other code, but as long as what training sees.
    """
    shipped = _read([SEED_PAIRS])
    found = []
    for number, pair in enumerate(_read(files)):
        own = [p for p in shipped if p.cwe == pair.cwe] or shipped
        lender = own[number % len(own)]
        pair = Pair(**vars(pair) | {key: getattr(pair, key) or getattr(lender, key) for key in ("instruction", "reasoning")})
        try:
            found.append((render(pair, alpaca(), tok), encode(pair, tok, alpaca(), masks or MaskOptions())))
        except UnusableError:
            continue
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def _read(files: Sequence[str | Path]) -> list[Pair]:
    return [pair for file in files for pair in pair_files.read(file, pair_files.Drops())]


def two_sequences(pair: Encoded, lean: bool = False) -> Tree:
    """A pair that shares nothing: its chosen and its rejected sequence, one after the other, each whole.

    Both answers are scored, as everybody does; `lean` leaves out the rejected tokens that no LPO loss reads.
    """
    ids, masks = (pair.chosen, pair.rejected), (pair.m_plus, pair.m_minus)
    scored = [np.arange(pair.answer_start, len(side)) for side in ids]
    if lean:
        scored[1] = scored[1][pair.m_minus[scored[1]]]
    start = len(ids[0]) - 1
    sizes = [len(side) - 1 for side in ids]
    return Tree(
        id=pair.id,
        tokens=np.concatenate([side[:-1] for side in ids]),
        positions=np.concatenate([np.arange(n) for n in sizes]),
        subtree_end=np.repeat([start, sum(sizes)], sizes),
        source=np.concatenate([scored[0] - 1, scored[1] - 1 + start]),
        target=np.concatenate([side[at] for side, at in zip(ids, scored, strict=True)]),
        side=np.repeat([trees.CHOSEN, trees.REJECTED], [len(at) for at in scored]),
        answer=np.ones(len(scored[0]) + len(scored[1]), bool),
        changed=np.concatenate([mask[at] for mask, at in zip(masks, scored, strict=True)]),
        chosen_len=len(pair.chosen) - pair.chosen_code_start,
        rejected_len=len(pair.rejected) - pair.rejected_code_start,
        reasoning_len=pair.chosen_code_start - pair.answer_start,
    )


def chosen_only(pair: Encoded) -> Tree:
    """What SFT computes of a pair: its chosen sequence."""
    return trees.plant(Encoded(**vars(pair) | {"rejected": pair.chosen, "m_plus": pair.m_plus & False, "m_minus": pair.m_plus & False}))


def pack(planted: Sequence[Tree], row_tokens: int) -> TreeBatch:
    """All of them in one batch of packed rows."""
    rows = [trees.join([planted[i] for i in row]) for row in trees.pack([len(t.tokens) for t in planted], row_tokens)]
    widest = max(len(row["source"]) for row in rows)
    shape = RowShape(row_tokens, -(-widest // 64) * 64, max(len(row["chosen_len"]) for row in rows))
    return TreeBatch.of(pad(rows, shape))


def interleave(
    ways: Mapping[str, Callable[[], object]], repeats: int, say: Callable[[str], None] = print, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each way, after a warm-up of each, taken in turn (A B C A B C ...) so that a drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(0 if warm_up else 1, repeats + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            taken = time.perf_counter() - start
            if turn:
                seconds[name].append(taken)
            say(f"  {name:24} {'warm-up' if turn == 0 else f'{turn}/{repeats}':>8} {taken:9.3f} s")
    return seconds


def table(seconds: dict[str, list[float]], base: str, work: dict[str, float], unit: str) -> dict[str, dict[str, float]]:
    """Print medians, spread, rates and ratios to `base`; a ratio is the median of the turns' own. Returns the rows."""
    rows = {}
    print(f"\n{'way':26} {'median s':>10} {'min':>9} {'max':>9} {unit + '/s':>12} {'over ' + base:>18}")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, seconds[base], strict=True))
        median = statistics.median(taken)
        rows[name] = {"median_s": median, "min_s": min(taken), "max_s": max(taken), f"{unit}_per_s": work[name] / median, "ratio": ratio}
        print(f"{name:26} {median:10.3f} {min(taken):9.3f} {max(taken):9.3f} {work[name] / median:12.2f} {ratio:17.2f}x")
    return rows


def write_json(file: Path | None, result: Json) -> None:
    """Write a benchmark's result with what it ran on."""
    if file is None:
        return
    import jax

    device = jax.devices()[0]
    about = {"machine": platform.processor() or platform.machine(), "device": device.device_kind, "jax": jax.__version__}
    file.write_text(json.dumps(result | {"about": about}, indent=2, default=str) + "\n")
