"""TreeBatch: packed rows on devices. What a row holds is said in `data_pipeline.row`.

Dims: B rows, N scored tokens in a row, K tokens kept of a teacher.
"""

from typing import Any

import flax.struct
from jax import Array

from data_pipeline.row import PackedRows


@flax.struct.dataclass
class TeacherTop:
    """What a teacher holds most probable in the place of each scored token; K tokens, in falling order."""

    ids: Array  # [B, N, K] int32
    logps: Array  # [B, N, K] float32
    rest: Array  # [B, N] float32: log of the probability that all other tokens have together


@flax.struct.dataclass
class TreeBatch(PackedRows):  # type: ignore[misc]  # flax freezes it
    """`PackedRows` as a pytree; with accumulation all leaves have a leading axis of microbatches."""

    teacher: TeacherTop | None = None  # of a `kd` stage whose teacher's log-probabilities were computed before
    reference: Array | None = None  # [B, N] float32: the reference's log-probabilities, where they were computed before

    @classmethod
    def of(cls, rows: PackedRows, teacher: TeacherTop | None = None, reference: Any = None) -> "TreeBatch":
        """Packed rows, with what a teacher or the reference said of them."""
        return cls(**vars(rows) | {"teacher": teacher, "reference": reference})
