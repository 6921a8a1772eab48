"""What `make codecode-demo` needs besides the commands: its rows and prompts, and the count of what came out."""

import argparse
import dataclasses
from collections import Counter
from pathlib import Path

from data_pipeline import pairs
from data_pipeline.pairs import Drops, Pair
from data_pipeline.template import alpaca, first_changed_line, render
from foundation.files import read_journal, write_lines

SEED_PAIRS = Path(__file__).parent.parent / "data_pipeline" / "seed" / "pairs.jsonl"


def prepare(out: Path) -> None:
    """Write what the models read: code.jsonl, both programs of every pair as plain rows, as a model meets code at large; pairs.jsonl, the
    pairs without their reasoning; prompts.jsonl, each task with its program up to the first line that is secure or vulnerable."""
    found = [dataclasses.replace(pair, reasoning="") for pair in pairs.read(SEED_PAIRS, Drops())]
    pairs.write(found, out / "pairs.jsonl")
    sides = ((pair.instruction, side) for pair in found for side in (pair.chosen, pair.rejected))
    write_lines(out / "code.jsonl", [{"instruction": asked, "output": f"```python\n{side}\n```"} for asked, side in sides])
    prompts = [(pair.id, render(pair, alpaca(), None), _shared(pair)) for pair in found]
    write_lines(
        out / "prompts.jsonl", [{"id": i, "prompt": text.prompt.text + text.before_code + shared} for i, text, shared in prompts if shared]
    )


def count(out: Path) -> None:
    """Print how often each way to decode goes on with the secure line, with the vulnerable one, or with another."""
    from data_pipeline.feed import Feed

    feed = Feed(out / "pairs")
    heldout = {pair_id for row in range(feed.rows("heldout")) for pair_id in feed.pair_ids("heldout", row)}
    by_id = {pair.id: pair for pair in pairs.read(out / "pairs.jsonl", Drops())}
    print(f"\n{'first line that differs':32}{'secure':>10}{'vulnerable':>12}{'another':>10}")
    for split, inside in (("trained on", False), ("held out", True)):
        for name in ("target", "security", "together"):
            records = read_journal(out / f"{name}.jsonl")
            seen = Counter(_which(by_id[r["id"]], r["text"]) for r in records if (r["id"] in heldout) == inside)
            secure, vulnerable, another = (seen[kind] / max(seen.total(), 1) for kind in ("secure", "vulnerable", "another"))
            print(f"{name + ', pairs ' + split:32}{secure:>10.1%}{vulnerable:>12.1%}{another:>10.1%}")


def _shared(pair: Pair) -> str:
    """The program's lines in front of the first that differs, without the line break behind them."""
    return pair.chosen[: max(first_changed_line(pair.rejected, pair.chosen) - 1, 0)]


def _which(pair: Pair, text: str) -> str:
    start = len(_shared(pair))
    secure, vulnerable = (side[start:].split("\n", 2)[1] for side in (pair.chosen, pair.rejected))
    written = text.split("\n", 2)[1] if "\n" in text else text
    return {vulnerable: "vulnerable", secure: "secure"}.get(written, "another")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prepare", "count"))
    parser.add_argument("out", type=Path, help="the demo's directory")
    args = parser.parse_args()
    {"prepare": prepare, "count": count}[args.what](args.out)


if __name__ == "__main__":
    main()
