"""Attention over a token's ancestors (training) and over a cache (decoding).

Token q sees token k if and only if ``k <= q < subtree_end[k]``, and with a sliding window ``position[k] > position[q] - window``.

`attend` computes it block by block with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022). No [T, T] array exists, forward or
backward, and blocks in which nobody sees anybody are skipped. `Ancestors` says which those are; it is built once a step. Three back ends
share the algorithm: a loop in plain XLA, and Pallas kernels for TPU and GPU; `backend_of` chooses as `model.attention` says. `attend_dense` is the definition, for tests.
`attend_pages` is decoding's: few queries, over texts that lie on pages.

Dims: B batch, T tokens, Q queries, S cache slots, K kv heads, G query heads per kv head, H head dim.
"""

from lpo_jax.model.attention.dense import attend_dense
from lpo_jax.model.attention.dispatch import TOLD, attend, backend_of
from lpo_jax.model.attention.mask import FAR, Ancestors, ancestors
from lpo_jax.model.attention.paged import NO_PAGE, PAGES_AXES, KVPages, attend_pages, copy_pages, memory, walk
from lpo_jax.model.attention.paged_tpu import page_dim

__all__ = [
    "FAR",
    "NO_PAGE",
    "PAGES_AXES",
    "TOLD",
    "Ancestors",
    "KVPages",
    "ancestors",
    "attend",
    "attend_dense",
    "attend_pages",
    "backend_of",
    "copy_pages",
    "memory",
    "page_dim",
    "walk",
]
