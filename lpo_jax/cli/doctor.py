"""`lpo doctor`: what is here, what is missing, and whether the device computes right.

Says which devices JAX sees, which versions are installed, which sandbox and analyzers work, and how to get what is missing.

With --device the fast paths are run on the device that is here, in at most two minutes, and compared with dense float32: training's attention forward
and backward (trees' masks, windows, grouped heads), log-probabilities in chunks, and decoding over pages. For each it prints the error beside
what is allowed, and what it reached: TFLOP/s of what the result needs, or GB/s of what must be read for it, and where the chip is known their
share of its peak. On CPUs the TPUs' and GPUs' kernels are interpreted, on small inputs: that shows their logic, not their speed.

Exit code: 0; with --device 1 if a path is wrong or doesn't compile. Until it is mended, model.attention=einsum trains without the attention kernels.

examples:
  lpo doctor
  lpo doctor --device
"""

import argparse
import platform
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from foundation.commands import version_of

if TYPE_CHECKING:
    from lpo_jax.plan.device import Finding

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tokenizers", "transformers")
"""What everything here needs."""

EXTRAS = {
    "tensorflow": "training reads shards with it: pip install -e .",
    "libtpu": "`lpo plan` compiles with it, and TPUs run by it: pip install 'lpo-jax[tpu]'",
    "jax-cuda13-plugin": "NVIDIA GPUs run by it: pip install 'lpo-jax[cuda]'",
}
"""What some things need: by package, what for, and how to get it."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", action="store_true", help="run the fast paths on the device that is here, and compare them with dense ones"
    )


def run(args: argparse.Namespace) -> int:
    print("\n".join(_lines()))
    return _check_device() if args.device else 0


def _lines() -> Iterator[str]:
    import jax

    import judges
    from judges import sandbox

    devices = jax.devices()
    yield _line("lpo-jax", f"{version_of('lpo-jax') or 'from a clone'}, Python {platform.python_version()}, {platform.platform()}")
    memory = (devices[0].memory_stats() or {}).get("bytes_limit") if devices[0].platform != "cpu" else None
    room = f", {memory / 2**30:.1f} GiB each" if memory else ""
    yield _line("devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){room}")
    yield _line("libraries", ", ".join(f"{name} {version_of(name)}" for name in LIBRARIES))
    for name, remedy in EXTRAS.items():
        found = version_of(name)
        yield _line(name, found or f"missing; {remedy}")
    works = sandbox.backends()
    yield _line("sandbox", ", ".join(works) or f"missing; {sandbox.REMEDY}")
    for name, tool in judges.TOOLS.items():
        missing = tool.missing()
        yield _line(name, f"missing; {missing}" if missing else "found")


def _line(name: str, text: str) -> str:
    return f"{name:20} {text}"


def _check_device() -> int:
    import jax

    from lpo_jax.model.attention import TOLD
    from lpo_jax.plan import device
    from lpo_jax.plan.chips import peak_of

    here, begin, wrong = jax.devices()[0], time.perf_counter(), dict[str, str]()
    peak, last = peak_of(here.device_kind), ""
    for case in device.cases({"cuda": "gpu", "rocm": "gpu"}.get(here.platform, here.platform)):
        if case.by != last:
            print(f"\n{case.by}{', interpreted' if case.interpreted else ''}\n{'':33}{'dtype':>9} {'error':>9} {'allowed':>9}   reached")
            last = case.by
        print(f"  {case.what:31}{case.dtype:>9} ", end="", flush=True)
        found = device.check(case)
        print(_told(found, None if peak is None else peak.flops if case.unit == "FLOP" else peak.hbm_rate))
        if not found.right:
            wrong.setdefault(case.by, case.what)
    seconds = time.perf_counter() - begin
    if not wrong:
        print(f"\nall are right on {here.device_kind}, in {seconds:.0f} s")
        return 0
    for by, what in wrong.items():
        remedy = "; model.attention=einsum trains without it" if by.startswith("attention") and not by.endswith(TOLD["cpu"]) else ""
        print(f"lpo: {by}: wrong on {here.device_kind} ({what}){remedy}", file=sys.stderr)
    return 1


def _told(found: "Finding", peak: float | None) -> str:
    """A finding's columns."""
    if found.problem:
        return f"{'FAILED':>9} {found.allowed:9.0e}   {found.problem}"
    error = f"{found.error:9.1e} {found.allowed:9.0e}   "
    if not found.right:
        return f"{error}WRONG"
    if found.rate is None:
        return f"{error}-"
    scale, unit = (1e9, f"G{found.case.unit}") if found.case.unit == "B" or found.rate < 1e11 else (1e12, "TFLOP")
    rate = f"{found.rate / scale:.3g} {unit}/s"
    return error + rate + (f", {found.rate / peak:.0%} of the chip's" if peak else "")
