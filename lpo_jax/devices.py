"""Which devices this machine may have, before JAX is asked."""

import importlib.util
import os
import pkgutil
from pathlib import Path

ROOT = Path("/")

_GOOGLE, _NETWORK = "0x1ae0", "0x0042"  # a PCI vendor, and its network card in every cloud machine


def leave_absent_tpus_alone() -> None:
    """Keep JAX from looking for a TPU where there is certainly none, though its library (libtpu) is installed; call it before anything imports JAX.

    The look takes seconds, writes an error's block to stderr, and takes a lock that one process has at a time: two commands on a laptop that can
    `lpo plan` would be in each other's way. Where anything speaks of a TPU, or another kind of device may be there, nothing is changed.
    """
    plugins = importlib.util.find_spec("jax_plugins")  # GPUs'; its folder may outlive them
    others = plugins is not None and [*pkgutil.iter_modules(plugins.submodule_search_locations)]
    if "JAX_PLATFORMS" not in os.environ and importlib.util.find_spec("libtpu") and not others and not _may_have_tpus():
        os.environ["JAX_PLATFORMS"] = "cpu"


def _may_have_tpus() -> bool:
    if any(name.startswith(("TPU_", "COLAB_TPU_", "MEGASCALE_")) for name in os.environ):
        return True
    if any([*ROOT.glob("dev/accel*"), *ROOT.glob("dev/vfio/[0-9]*")]):
        return True
    cards = ROOT.glob("sys/bus/pci/devices/*")
    return any((card / "vendor").read_text().strip() == _GOOGLE and (card / "device").read_text().strip() != _NETWORK for card in cards)
