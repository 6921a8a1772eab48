"""Two vocabularies side by side: what each token spells, and which token of one says what a token of the other says.

This is the offline part of CroSec, co-decoding with an expert of another tokenizer. A token stands for a text, whatever its tokenizer writes it
as: "Ġx" and "▁x" are both " x", "Ċ" and "<0x0A>" both a line break. Tokens with the same text are the same; an expert's token without
a counterpart votes for the nearest in embedding space, after a rotation of one space onto the other (Procrustes) and with the neighbourhoods'
density taken off (CSLS, Conneau et al. 2018, "Word translation without parallel data", eq. 2).

Dims: V the target's tokens, E the expert's, D the embeddings' width, N tokens of a block, L expert tokens without a counterpart.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import load_file
from tqdm import tqdm

from data_pipeline.tokenizer import Tokenizer
from foundation.files import kept, replaced
from lpo_jax.config import ConfigError
from lpo_jax.decode.request import LoadedModel
from lpo_jax.tensors import on_host, save_file
from lpo_jax.train.distributed import first

THRESHOLD = 0.5
"""A CSLS below it is no counterpart."""
_NEIGHBOURS = 3
_BLOCK_NUMBERS = 2**25  # of similarities in memory at once: 128 MiB
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """What the alignment needs of a model."""

    tokenizer: Tokenizer
    embeddings: np.ndarray  # [at least as many as tokens, D]: the model's input table
    ends: tuple[int, ...] = ()  # tokens that end a text, besides the tokenizer's


@dataclass(frozen=True)
class Alignment:
    """Which tokens of target and expert correspond."""

    votes_for: np.ndarray  # [E] int32: the target's token that an expert's token speaks for; -1: none
    strength: np.ndarray  # [E] float32: 1 for the same text, else the CSLS; 0: none
    nearest: np.ndarray  # [V] int32: the expert's token that is, or begins, or continues a target's token; -1: none

    @property
    def heard(self) -> np.ndarray:
        """[V] bool: target's tokens that an expert's token speaks for."""
        return np.isin(np.arange(len(self.nearest)), self.votes_for)

    def save(self, file: Path) -> None:
        """Write it as safetensors: whole or not at all."""
        with replaced(file) as unfinished:
            save_file(asdict(self), unfinished)


def vocabulary(model: LoadedModel, tokenizer: Tokenizer) -> Vocabulary:
    """A loaded model's. All processes call it together."""
    return Vocabulary(tokenizer, on_host(model.params["embed"]), model.eos_ids)


def load(file: Path) -> Alignment:
    """What `Alignment.save` wrote."""
    return Alignment(**load_file(file))


def load_or_align(directory: Path, target: Vocabulary, expert: Vocabulary) -> Alignment:
    """The alignment of two models, kept in `directory` under a name made of all that it follows from.

    All processes call it together: each aligns, process 0 keeps what it found, and that is what all get.
    """
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for side in (target, expert):
        names = side.tokenizer
        digest.update(f"{names.sha256} {names.eos_id} {names.bos_id} {side.ends} {side.embeddings.shape}".encode())
        digest.update(np.ascontiguousarray(side.embeddings).view(np.uint8).data)
    file = directory / f"alignment-{digest.hexdigest()[:16]}.safetensors"
    found = kept(file, load, lambda: align(target, expert), lambda file, found: found.save(file) if first() else None)
    return found if jax.process_count() == 1 else Alignment(**multihost_utils.broadcast_one_to_all(vars(found)))


def spell(tokenizer: Tokenizer, ends: Sequence[int] = ()) -> dict[int, bytes]:
    """The text that each token stands for, in UTF-8, by ascending id; a token may hold part of a character.

    Special tokens, and the `ends`, stand for no text and are absent.

    Raises:
      ConfigError: the tokenizer writes its tokens neither as byte-level BPE nor as sentencepiece does.
    """
    decoder = json.dumps(json.loads(tokenizer.backend.to_str())["decoder"], ensure_ascii=False)
    byte_level = '"ByteLevel"' in decoder
    if not byte_level and "▁" not in decoder:
        raise ConfigError("co-decoding with another tokenizer knows byte-level ones and sentencepiece's kind: this one is neither")
    added = tokenizer.backend.get_added_tokens_decoder()
    silent = {tokenizer.eos_id, tokenizer.bos_id, *ends} | {token for token, what in added.items() if what.special}
    texts = {}
    for name, token in sorted(tokenizer.backend.get_vocab().items(), key=itemgetter(1)):
        if token in silent:
            continue
        if token in added:
            texts[token] = name.encode()
        elif byte_level:
            texts[token] = b"".join(bytes([_BYTE_OF[char]]) if char in _BYTE_OF else char.encode() for char in name)
        elif match := _BYTE.fullmatch(name):
            texts[token] = bytes([int(match[1], 16)])
        else:
            texts[token] = name.replace("▁", " ").encode()
    return texts


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte, as byte-level BPE writes bytes: printable ones of Latin-1 as themselves, the others as characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


def align(target: Vocabulary, expert: Vocabulary) -> Alignment:
    """Find for each token of one vocabulary its counterpart in the other.

    Special tokens correspond by their role (end, beginning of a text), the others of them by name, and to nothing else.
    """
    ours, theirs = spell(target.tokenizer, target.ends), spell(expert.tokenizer, expert.ends)
    votes_for, nearest = _same(expert, theirs, target, ours), _same(target, ours, expert, theirs)
    _nearest_by_prefix(nearest, ours, theirs)
    strength = (votes_for >= 0).astype(np.float32)
    shared, lonely = (np.array([token for token in theirs if (votes_for[token] >= 0) == same], np.int32) for same in (True, False))
    if len(lonely) and len(shared):
        candidates = np.array(list(ours), np.int32)
        with jax.default_matmul_precision("highest"):
            a, b = _tables(expert.embeddings[np.concatenate([lonely, shared])], target.embeddings[candidates])
            onto = np.searchsorted(candidates, votes_for[shared])
            found, csls = nearest_by_csls(_rotate(a, a[len(lonely) :], b[onto]), b, len(lonely))
        good = csls >= THRESHOLD
        votes_for[lonely[good]], strength[lonely[good]] = candidates[found[good]], csls[good]
    return Alignment(votes_for, strength, nearest)


def _same(side: Vocabulary, texts: dict[int, bytes], other: Vocabulary, others: dict[int, bytes]) -> np.ndarray:
    """For each token of `side` the one of `other` with the same text, of several the one spelled alike; specials by role, then name; -1: none."""
    mine, its = side.tokenizer, other.tokenizer
    added = its.backend.get_added_tokens_decoder()

    def unlikely(token: int) -> tuple[bool, bool, int]:  # what a tokenizer takes last: bytes, and what an added token forestalls
        return bool(_BYTE.fullmatch(its.backend.id_to_token(token) or "")), token not in added, token

    by_text: dict[bytes, int] = {}
    for token in sorted(others, key=unlikely):
        by_text.setdefault(others[token], token)
    found = np.full(mine.size, -1, np.int32)
    for name, token in mine.backend.get_vocab().items():
        alike = its.backend.token_to_id(name)
        if alike is not None and others.get(alike) == texts.get(token):
            found[token] = alike
        elif token in texts:
            found[token] = by_text.get(texts[token], -1)
    if mine.bos_id is not None:
        found[mine.bos_id] = -1 if its.bos_id is None else its.bos_id
    found[[*side.ends, mine.eos_id]] = its.eos_id
    return found


def _nearest_by_prefix(nearest: np.ndarray, ours: dict[int, bytes], theirs: dict[int, bytes]) -> None:
    """Fill in, for the target's tokens without a counterpart, the expert's token whose text begins or continues theirs by the fewest bytes.

    One text being the beginning of the other, their difference in length is their edit distance. A lone space only stands for spaces.
    """
    whole: dict[bytes, int] = {}
    longer: dict[bytes, int] = {}  # a text -> the shortest token that begins with it
    for token, text in sorted(theirs.items(), key=lambda item: (len(item[1]), item[0])):
        whole.setdefault(text, token)
        for end in range(1, len(text)):
            longer.setdefault(text[:end], token)
    for token, text in ours.items():
        if nearest[token] >= 0:
            continue
        parts = (text[:end] for end in range(len(text) - 1, 0, -1))
        shorter = next((part for part in parts if part in whole and (part != b" " or not text.strip(b" "))), None)
        options = [whole[shorter]] if shorter is not None else []
        options += [longer[text]] if text in longer else []
        nearest[token] = min(options, key=lambda option: abs(len(theirs[option]) - len(text)), default=-1)


def _tables(a: np.ndarray, b: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Two tables' rows as unit vectors of one width: where the widths differ, both tables' principal components, as many as the narrower has dims."""
    x, y = (_unit(jnp.asarray(table, jnp.float32)) for table in (a, b))
    D = min(x.shape[1], y.shape[1])
    return (x, y) if x.shape[1] == y.shape[1] else (_unit(_principal(x, D)), _unit(_principal(y, D)))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _principal(x: jax.Array, components: int) -> jax.Array:
    x = x - x.mean(0)
    return x @ jnp.linalg.eigh(x.T @ x)[1][:, ::-1][:, :components]


def _rotate(x: jax.Array, some: jax.Array, onto: jax.Array) -> jax.Array:
    """x [.., D] turned by the orthogonal matrix that brings `some` [.., D] nearest to `onto` (Schönemann 1966)."""
    u, _, vt = jnp.linalg.svd(some.T @ onto)
    return x @ (u @ vt)


def nearest_by_csls(a: jax.Array, b: jax.Array, first: int) -> tuple[np.ndarray, np.ndarray]:
    """For the `first` rows of a [E, D] the row of b [V, D] with the largest CSLS, and that CSLS; rows are unit vectors.

    csls(i, j) = 2 cos(i, j) - (mean of i's 3 largest cosines with b) - (mean of j's 3 largest cosines with a)
    """
    L, rows = first, max(1, _BLOCK_NUMBERS // len(a))
    state = jnp.full(L, -jnp.inf), jnp.zeros(L, jnp.int32), jnp.full((L, min(_NEIGHBOURS, len(b))), -jnp.inf)
    for start in tqdm(range(0, len(b), rows), desc="align vocabularies", unit=" blocks", dynamic_ncols=True, disable=len(b) <= rows):
        state = _look_at_block(a, b[start : start + rows], start, state)
    best, where, top = state
    return np.asarray(where), np.asarray(best - top.mean(-1))


_State = tuple[jax.Array, jax.Array, jax.Array]


@jax.jit
def _look_at_block(a: jax.Array, block: jax.Array, start: int, state: _State) -> _State:
    """What is known of a's first L rows after N more rows of b: their best 2 cos - density there, whose it is, and their largest cosines."""
    best, where, top = state
    cos = jnp.einsum("ND,ED->NE", block, a)
    density = jax.lax.top_k(cos, min(_NEIGHBOURS, len(a)))[0].mean(-1)
    mine = cos[:, : len(best)].T
    score = 2 * mine - density
    at = jnp.argmax(score, axis=-1)
    here = jnp.take_along_axis(score, at[:, None], axis=-1)[:, 0]
    top = jax.lax.top_k(jnp.concatenate([top, mine], axis=-1), top.shape[-1])[0]
    return jnp.maximum(best, here), jnp.where(here > best, start + at, where), top
