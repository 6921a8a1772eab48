"""Tensors on disks that can't take them."""

import numpy as np
import pytest

from lpo_jax.tensors import save_file


def test_a_disk_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match="No such file or directory: .*none/a.safetensors"):
        save_file({"a": np.zeros(3)}, tmp_path / "none" / "a.safetensors")
