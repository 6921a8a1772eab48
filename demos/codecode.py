"""What `make codecode-demo` needs besides the commands: its rows and prompts, and the count of what came out."""

import argparse
import dataclasses
import json
from collections import Counter
from pathlib import Path

from data_pipeline import pairs
from data_pipeline.pairs import Drops, Pair
from data_pipeline.template import render

SEED_PAIRS = Path(__file__).parent.parent / "data_pipeline" / "seed" / "pairs.jsonl"


def prepare(out: Path) -> None:
    """Write what the models read: code.jsonl, both programs of every pair as plain rows, as a model meets code at large; pairs.jsonl, the
    pairs without their reasoning; prompts.jsonl, each task with its program up to the first line that is secure or vulnerable."""
    out.mkdir(parents=True, exist_ok=True)
    found = [dataclasses.replace(pair, reasoning="") for pair in pairs.read(SEED_PAIRS, Drops())]
    pairs.write(found, out / "pairs.jsonl")
    code = [
        {"instruction": pair.instruction, "output": f"```python\n{side}\n```"} for pair in found for side in (pair.chosen, pair.rejected)
    ]
    (out / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in code))
    prompts = [
        {"id": pair.id, "prompt": render(pair).prompt + render(pair).before_code + shared} for pair in found if (shared := _shared(pair))
    ]
    (out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))


def count(out: Path, shards: Path) -> None:
    """Print how often each way to decode goes on with the secure line, with the vulnerable one, or with another."""
    from data_pipeline.feed import Feed

    feed = Feed(shards)
    heldout = {pair_id for row in range(feed.rows("heldout")) for pair_id in feed.pair_ids("heldout", row)}
    by_id = {pair.id: pair for pair in pairs.read(out / "pairs.jsonl", Drops())}
    print(f"\n{'first line that differs':32}{'secure':>10}{'vulnerable':>12}{'another':>10}")
    for split, inside in (("trained on", False), ("held out", True)):
        for name in ("target", "security", "together"):
            records = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
            seen = Counter(_which(by_id[r["id"]], r["text"]) for r in records if (r["id"] in heldout) == inside)
            shares = [seen[kind] / max(seen.total(), 1) for kind in ("secure", "vulnerable", "another")]
            print(f"{name + ', pairs ' + split:32}{shares[0]:>10.1%}{shares[1]:>12.1%}{shares[2]:>10.1%}")


def _shared(pair: Pair) -> str:
    """The program's lines in front of the first that differs, without the line break behind them."""
    same = 0
    while same < min(len(pair.chosen), len(pair.rejected)) and pair.chosen[same] == pair.rejected[same]:
        same += 1
    return pair.chosen[: max(pair.chosen.rfind("\n", 0, same), 0)]


def _which(pair: Pair, text: str) -> str:
    start = len(_shared(pair))
    first = [side[start:].split("\n", 2)[1] for side in (pair.chosen, pair.rejected)]
    written = text.split("\n", 2)[1] if "\n" in text else text
    return "secure" if written == first[0] else "vulnerable" if written == first[1] else "another"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prepare", "count"))
    parser.add_argument("out", type=Path, help="the demo's directory")
    args = parser.parse_args()
    if args.what == "prepare":
        prepare(args.out)
    else:
        count(args.out, args.out / "pairs")


if __name__ == "__main__":
    main()
