"""Safetensors files, written."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError


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
