"""Arrays on their way out of the devices: onto the host, and into safetensors files."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jax.experimental import multihost_utils
from safetensors import SafetensorError


def on_host(x: Any) -> Any:
    """Arrays on the host, each whole. Where other processes hold parts of one, all of them call it together.

    `device_get` waits for one device, this for *all* here. On CPU, where a small program may overtake one that is running, the next program's
    collectives would else mix with the last one's.
    """
    ready = jax.block_until_ready(x)
    return jax.device_get(ready) if jax.process_count() == 1 else jax.tree.map(_whole, ready)


def _whole(x: Any) -> Any:
    mine = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
    return jax.device_get(x) if mine else multihost_utils.process_allgather(x, tiled=True)


def save_file(tensors: Mapping[str, np.ndarray], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors by their names.

    Raises:
      OSError: the disk is full, or can't be written; with the file. (safetensors has an error of its own for it.)
    """
    try:
        safetensors.numpy.save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        if not (found := re.search(r"os error (\d+)", str(error))):
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from None
