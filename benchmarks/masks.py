"""How many pairs a second get their masks: the LPO authors' way (difflib.ndiff) and ours, on the same token ids.

`whole` gives every way the whole sequences; `cut` cuts them to 512 tokens first, as the authors do; `code` is what a default build
diffs, the code alone and all of it. The device's way runs on the first JAX device, in batches of like length, already compiled, its
arrays in place.
"""

import argparse
import difflib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from benchmarks import common
from data_pipeline import masks
from data_pipeline.encode import MaskOptions
from data_pipeline.trees import Encoded
from lpo_jax.diff import token_diff

Ids = tuple[np.ndarray, np.ndarray]
"""The two sides of a pair, rejected first."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.masks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_arguments(parser)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-pairs", type=int, default=64, help="pairs in a batch on the device (default: 64)")
    args = parser.parse_args(argv)

    tok = common.load_tokenizer(args.tokenizer)
    cut = [(pair.rejected, pair.chosen) for pair in common.load_pairs(args.data, tok, MaskOptions("reference"))]
    encoded = common.load_pairs(args.data, tok)
    whole = [(pair.rejected, pair.chosen) for pair in encoded]
    ways = {
        "ndiff, cut": _each(ndiff_masks, cut),
        "reference, cut": _each(masks.reference, cut),
        "clean, cut": _each(masks.clean, cut),
        "lcs, cut": _each(masks.lcs, cut),
        "lcs on device, cut": _on_device(cut, args.batch_pairs),
        "ndiff, whole": _each(ndiff_masks, whole),
        "reference, whole": _each(masks.reference, whole),
        "clean, whole": _each(masks.clean, whole),
        "lcs, whole": _each(masks.lcs, whole),
        "clean, code": _each(masks.clean, [_code(pair) for pair in encoded]),
    }
    for name, pairs in (("cut", cut), ("whole", whole)):
        print(f"{name}: {len(pairs)} pairs, {np.mean([len(side) for pair in pairs for side in pair]):.0f} tokens a side")
    passes = {name: _passes(run) for name, run in ways.items()}  # a turn takes a tenth of a second at least
    seconds = common.interleave({name: _repeat(run, passes[name]) for name, run in ways.items()}, args.repeats, say=lambda _: None)
    done = {name: passes[name] * len(cut if "cut" in name else whole) for name in ways}
    seconds = {name: [taken * 10000 / done[name] for taken in turns] for name, turns in seconds.items()}
    print("\nSeconds are those of 10,000 pairs.", end="")
    rows = common.table(seconds, "clean, cut", dict.fromkeys(ways, 10000), "pairs")

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    ratios = {}
    for way in ("reference", "clean", "lcs", "lcs on device"):
        ratios["ndiff_over_" + way.replace(" ", "_")] = ratio("ndiff, cut", f"{way}, cut")
    for way in ("reference", "clean", "lcs"):
        ratios[f"ndiff_over_{way}_whole"] = ratio("ndiff, whole", f"{way}, whole")
    ratios["ndiff_cut_over_clean_code"] = ratio("ndiff, cut", "clean, code")
    print("\nTimes as fast as ndiff:", ", ".join(f"{name.removeprefix('ndiff_')} {value:.1f}" for name, value in ratios.items()))
    common.write_json(args.json, {"ratios": ratios, "rows": rows})
    return 0


def ndiff_masks(rejected: np.ndarray, chosen: np.ndarray) -> masks.Masks:
    """The authors' way: a walk over `difflib.ndiff` of ids in decimal; then a position between two marked ones is marked too."""
    sides = "- ", "+ "
    marks = [0] * len(rejected), [0] * len(chosen)
    at = [0, 0]
    for line in difflib.ndiff([str(t) for t in rejected.tolist()], [str(t) for t in chosen.tolist()], None, None):
        kind = line[:2]
        for side in (0, 1):
            if kind == sides[side]:
                marks[side][at[side]] = 1
            if kind in (sides[side], "  "):
                at[side] += 1
    for mark in marks:
        for i in range(1, len(mark) - 1):
            if mark[i - 1] and mark[i + 1]:
                mark[i] = 1
    return np.array(marks[0], bool), np.array(marks[1], bool)


def _code(pair: Encoded) -> Ids:
    """The code of each side, and what closes it."""
    return pair.rejected[pair.rejected_code_start :], pair.chosen[pair.chosen_code_start :]


def _each(mark: Callable[[np.ndarray, np.ndarray], masks.Masks], pairs: Sequence[Ids]) -> Callable[[], None]:
    def run() -> None:
        for rejected, chosen in pairs:
            mark(rejected, chosen)

    return run


def _on_device(pairs: Sequence[Ids], size: int) -> Callable[[], None]:
    """Batches of `size` pairs of like length, padded to a multiple of 64 tokens."""
    ordered = sorted(pairs, key=lambda pair: max(map(len, pair)))
    batches = []
    for start in range(0, len(ordered), size):
        members = ordered[start : start + size]
        width = -(-max(map(len, members[-1])) // 64) * 64
        sides = np.zeros((2, size, width), np.int32)
        lengths = np.zeros((2, size), np.int32)
        for row, pair in enumerate(members):
            for side, ids in enumerate(pair):
                sides[side, row, : len(ids)], lengths[side, row] = ids, len(ids)
        batches.append(jax.device_put((*sides, *lengths)))
    mark = jax.jit(token_diff)
    return lambda: jax.block_until_ready([mark(*batch) for batch in batches])  # type: ignore[return-value]


def _passes(run: Callable[[], None]) -> int:
    run()  # compiles
    start = time.perf_counter()
    run()
    return max(1, round(0.1 / (time.perf_counter() - start)))


def _repeat(run: Callable[[], None], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            run()

    return repeated


if __name__ == "__main__":
    sys.exit(main())
