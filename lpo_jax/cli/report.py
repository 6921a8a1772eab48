"""`lpo report`: training runs side by side on one page.

Write one page, which needs nothing else, about several runs of `lpo train`: in which settings they differ, their held-out numbers and their
curves. A run may still be going on. (Each run has a page of its own, RUN/report.html, with pairs token by token.)

examples:
  lpo report runs/beta_1 runs/beta_10 -o report.html
  lpo report runs/* -o runs.html
"""

import argparse
from pathlib import Path

from foundation.commands import new_page


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run_dirs of trained configs")
    parser.add_argument("-o", "--out", type=new_page, required=True, metavar="FILE.html", help="the page")


def run(args: argparse.Namespace) -> int:
    from etils import epath

    from foundation.errors import ConfigError
    from lpo_jax.config import to_dict
    from lpo_jax.report import runs
    from lpo_jax.train.evaluate import read_summary
    from lpo_jax.train.weights import open_run

    found = []
    for path in args.runs:
        directory = epath.Path(path)
        config = open_run(directory)
        if config is None:
            raise ConfigError(f"{path}: no run's config.json; give the run_dirs of trained configs")
        found.append(runs.TrainedRun(directory, to_dict(config), read_summary(directory, config)))
    runs.write(args.out, found)
    print(f"wrote {args.out}")
    return 0
