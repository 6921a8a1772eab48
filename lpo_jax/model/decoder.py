"""The decoder: one transformer for every family, driven by `ModelConfig`.

Flax NNX declares the parameters. Outside of this file a model is a `Model` (what is static) and `params` (a nested dict of arrays), under
plain `jax.jit`, `jax.grad` and `jax.lax.scan`. The layers' parameters are stacked along a leading axis, and the layers are scanned.

Dims: B batch, T tokens, D model, N heads, K kv heads, G = N / K, H head dim, F mlp, V vocabulary, L layers; of a cache P pages of S slots, M of
them a row at most.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lpo_jax.config import LoraConfig, ModelConfig
from lpo_jax.model import quantized
from lpo_jax.model.attention import FAR, Ancestors, KVPages, ancestors, attend, attend_pages, backend_of, memory, page_dim, walk
from lpo_jax.model.embedding import embed
from lpo_jax.model.families import FAMILIES
from lpo_jax.model.linear import Adapter, Apart, LowRank, adapters_of, low_rank, one_of, product
from lpo_jax.model.lora import Params
from lpo_jax.model.moe import MATRICES, mixture
from lpo_jax.model.remat import KEPT
from lpo_jax.model.rotary import turned, turns
from lpo_jax.sharding import constrain

Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""(q, k, v) -> (the attention's output, the cache if there is one)."""

X = TypeVar("X")

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class Block(nnx.Module):
    """Attention and MLP with pre-normalisation. It holds all L layers' parameters; inside the scan, those of one layer."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        self.c = nnx.static(c)
        heads, kv_heads = {"heads": c.n_heads, "head_dim": c.head_dim}, {"kv_heads": c.n_kv_heads, "head_dim": c.head_dim}
        layers, embed, mlp = {"layers": c.n_layers}, {"embed": c.d_model}, {"mlp": c.d_mlp}
        matrices = {  # inputs, outputs, and whether it has a bias
            "q": (embed, heads, c.qkv_bias),
            "k": (embed, kv_heads, c.qkv_bias),
            "v": (embed, kv_heads, c.qkv_bias),
            "o": (heads, embed, c.out_bias),
        }
        if c.experts:
            layers_experts, inside = layers | {"experts": c.experts}, {"mlp": c.d_expert}
            self.router = _matrix(rngs, layers | {None: c.experts} | embed, None)
            matrices |= {"expert_gate": (embed, inside, False), "expert_up": (embed, inside, False), "expert_down": (inside, embed, False)}
        else:
            matrices |= {"gate": (embed, mlp, c.mlp_bias)} if c.gated_mlp else {}
            matrices |= {"up": (embed, mlp, c.mlp_bias), "down": (mlp, embed, c.mlp_bias)}
        for name, (inputs, outputs, has_bias) in matrices.items():
            std = 0.02 / (2 * c.n_layers) ** 0.5 if outputs is embed else 0.02  # smaller where it is added to the residual
            setattr(self, name, _matrix(rngs, (layers_experts if name in MATRICES else layers) | inputs | outputs, len(inputs), std))
            if has_bias:
                axes = (None,) if outputs is embed else tuple(outputs)
                setattr(self, name + "_bias", _constant(0, (c.n_layers, *outputs.values()), ("layers", *axes)))
        post_norms = ("attn_post_norm", "mlp_post_norm") if c.post_norms else ()
        for name in ("attn_norm", *(() if c.parallel else ("mlp_norm",)), *post_norms):
            setattr(self, name, _constant(_unit(c), (c.n_layers, c.d_model), ("layers", None)))
            if c.norm == "layer":
                setattr(self, name + "_bias", _constant(0, (c.n_layers, c.d_model), ("layers", None)))
        for name in ("q_norm", "k_norm") if c.qk_norm else ():
            setattr(self, name, _constant(_unit(c), (c.n_layers, c.head_dim), ("layers", None)))

    def __call__(
        self, x: jax.Array, rotate: Callable[[jax.Array], jax.Array], attend: Attend, adapters: Mapping[str, Adapter], counted: jax.Array
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        """[B, T, D] -> [B, T, D] for one layer, the cache as `attend` leaves it, and the experts' load.

        Matrices with `adapters` are multiplied beside these. Of `counted` tokens [B, T] the choice of experts counts as load.
        """
        c = self.c
        h = self._norm(x, "attn_norm")
        q, k, v = (self._linear(name, h, adapters) for name in "qkv")
        if c.qk_norm:
            q, k = self._norm(q, "q_norm"), self._norm(k, "k_norm")
        q, k = rotate(q), rotate(k)
        a, cache = attend(q.reshape(*q.shape[:2], c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim), k, v)
        a = self._added(self._linear("o", a.reshape(q.shape), adapters), "attn_post_norm")
        if c.parallel:
            y, load = self._mlp(h, adapters, counted)
            return constrain(x + a + self._added(y, "mlp_post_norm"), "batch", None, None), cache, load
        x = constrain(x + a, "batch", None, None)
        y, load = self._mlp(self._norm(x, "mlp_norm"), adapters, counted)
        return constrain(x + self._added(y, "mlp_post_norm"), "batch", None, None), cache, load

    def _added(self, x: jax.Array, post_norm: str) -> jax.Array:
        """What is added to the residual of a branch's output."""
        return _scaled(self._norm(x, post_norm) if self.c.post_norms else x, self.c.residual_scale)

    def _mlp(self, h: jax.Array, adapters: Mapping[str, Adapter], counted: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        activate = _ACTIVATIONS[self.c.activation]
        if self.c.experts:
            matrices = {name: self._gathered(name) for name in MATRICES}
            own = {name: adapter for name, adapter in adapters.items() if name in MATRICES}
            return mixture(h, counted, self.router[...], matrices, own, self.c, activate)
        up = self._linear("up", h, adapters)
        inner = activate(self._linear("gate", h, adapters)) * up if self.c.gated_mlp else activate(up)
        return self._linear("down", inner, adapters), None

    def _linear(self, name: str, x: jax.Array, adapters: Mapping[str, Adapter]) -> jax.Array:
        """[B, T, inputs ...] -> [B, T, outputs ...]"""
        y = checkpoint_name(product(x, self._gathered(name), adapters.get(name)), name)
        bias = getattr(self, name + "_bias", None)
        return y if bias is None else y + bias[...].astype(x.dtype)

    def _gathered(self, name: str) -> Any:
        matrix = getattr(self, name)
        return quantized.gathered(matrix.get_value(), matrix.get_metadata("axes")[1:])

    def _norm(self, x: jax.Array, name: str) -> jax.Array:
        bias = getattr(self, name + "_bias", None)
        return _normalised(x, getattr(self, name)[...], None if bias is None else bias[...], self.c)


class Decoder(nnx.Module):
    """Embedding, L blocks, final norm and output head: the parameters of a whole model."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        vocab, embed = {"vocab": c.vocab_size}, {"embed": c.d_model}
        self.embed = _matrix(rngs, vocab | embed, None)
        if c.positions == "learned":
            self.positions = _matrix(rngs, {None: c.max_positions} | embed, None)
        self.blocks = Block(c, rngs)
        self.final_norm = _constant(_unit(c), (c.d_model,), (None,))
        if c.norm == "layer":
            self.final_norm_bias = _constant(0, (c.d_model,), (None,))
        if not c.tied_head:
            self.head = _matrix(rngs, embed | vocab, 1)
        if c.head_bias:
            self.head_bias = _constant(0, (c.vocab_size,), ("vocab",))


@dataclass(frozen=True)
class Model:
    """What is static about a model. Its parameters, and the adapters of a LoRA model, travel beside it."""

    config: ModelConfig
    compute_dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "dots"  # "none" keeps everything; the others recompute what isn't in _KEPT
    lora: LoraConfig | None = None
    quantize: str | None = None  # how what isn't trained (a LoRA model's base, a model that only decodes) holds the blocks' matrices
    attention: str = "auto"  # which back end computes it in training, see `lpo_jax.model.attention.backend_of`

    @cached_property
    def _variables(self) -> nnx.State:
        return nnx.state(nnx.eval_shape(lambda: Decoder(self.config, nnx.Rngs(0))))

    @cached_property
    def _block(self) -> nnx.GraphDef[Block]:
        return nnx.graphdef(nnx.eval_shape(lambda: Block(self.config, nnx.Rngs(0))))

    def init(self, key: jax.Array) -> Params:
        """Random parameters."""
        pure = nnx.to_pure_dict(nnx.state(Decoder(self.config, nnx.Rngs(key))))
        return jax.tree.map(lambda x: x.astype(self.param_dtype), pure)

    def shapes(self) -> Params:
        """The parameters as `jax.ShapeDtypeStruct`s."""
        dtype = jnp.dtype(self.param_dtype)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), nnx.to_pure_dict(self._variables))

    def base_shapes(self) -> Params:
        """The parameters beneath the adapters: `shapes`, the blocks' matrices quantised as `quantize` says."""
        return jax.eval_shape(self.base, self.shapes())

    def base(self, params: Params) -> Params:
        """Parameters as they are held beneath the adapters."""
        return params if self.quantize is None else quantized.blocks(params, self.quantize, self.inputs())

    def apart(self, params: Params) -> Params:
        """Parameters for `decode` with the blocks' matrices (experts' not) as one array a layer; codes are only turned. `params` is used up, matrix by
        matrix.

        CPUs copy a layer's part of a stacked matrix for every product. With few tokens that takes as long as the product.
        """
        inputs, blocks = self.inputs(), dict(params["blocks"])
        for name in sorted(blocks.keys() - set(MATRICES)):
            if count := inputs.get(f"blocks.{name}"):
                stacked = blocks[name]
                blocks[name] = jax.block_until_ready(Apart.of(stacked, count))
                jax.tree.map(lambda x: x.delete(), stacked)
        return params | {"blocks": blocks}

    def axes(self) -> Params:
        """For each parameter, the names of its dimensions (see `lpo_jax.sharding.RULES`)."""
        return self._metadata("axes")

    def inputs(self) -> dict[str, int]:
        """How many of each matrix' dims, behind the layer axis, are inputs: {"blocks.q": 1, "blocks.o": 2, ..., "head": 1}, tied heads too."""
        flat = jax.tree.leaves_with_path(self._metadata("inputs"))
        return {".".join(key.key for key in path): inputs for path, inputs in flat} | {"head": 1}

    def hidden(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        subtree_end: jax.Array,
        adapters: Params | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """[B, T] int32 each -> final hidden states [B, T, D] in the compute dtype.

        Args:
          adapters: LoRA matrices, which work beside their layers' own.
          dropout_key: draws the adapters' dropout; None: no dropout.
        """
        return self.hidden_and_load(params, tokens, positions, subtree_end, adapters, dropout_key)[0]

    def hidden_and_load(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        subtree_end: jax.Array,
        adapters: Params | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """`hidden`, and how often each layer of a mixture chose each expert, [L, E]; None: there are no experts.

        Neither padding nor a tree's first token counts, as in the step's number of tokens.
        """
        seen, scale = self._seen(subtree_end, positions), self.config.score_scale
        attention = lambda q, k, v, kind, *_: (attend(q, k, v, _of_kind(kind, seen), scale), None)  # noqa: E731
        x, _, load = self._run(params, tokens, positions, attention, None, adapters, dropout_key)
        return x, load

    def decode(
        self,
        params: Params,
        cache: KVPages,
        tokens: jax.Array,
        positions: jax.Array,
        table: jax.Array,
        adapters: Params | None = None,
        which: jax.Array | None = None,
    ) -> tuple[jax.Array, KVPages]:
        """Run new tokens against a cache: [B, T] ids at [B, T] positions -> ([B, T, D], the cache with them in it, in place).

        The new tokens are written first. They see one another in the order of their positions. No token sees a position behind its own: rows of
        a batch may have different lengths, and to take tokens back is to go on from an earlier position.

        Args:
          table: [B, M] int32, the pages that each row's text lies on, see `lpo_jax.model.attention.paged`.
          adapters: several, see `lpo_jax.model.adapters.joined`.
          which: [B], the number of each row's adapter, from 1 on; 0: none.
        """
        positions, table = jnp.asarray(positions), jnp.asarray(table)
        windows, room = _windows(self.config), table.shape[1] * cache.slots
        if all(window is None or window >= room for window in windows):
            windows = [None] * len(windows)
        scale = self.config.score_scale
        by_window = {window: walk(positions, table, cache.slots, window) for window in windows}
        pairs = [by_window[window] for window in windows]

        def attention(
            q: jax.Array, k: jax.Array, v: jax.Array, kind: jax.Array, layer: jax.Array, carried: tuple[KVPages, jax.Array | None]
        ) -> tuple[jax.Array, Any]:
            (cache, scores), window = carried, _of_kind(kind, windows)
            out, cache, scores = attend_pages(q, k, v, cache, layer, positions, table, _of_kind(kind, pairs), scores, window, scale)
            return out, (cache, scores)

        K, c = cache.k.shape[2], self.config
        scores = memory(pairs[0], positions, (K, c.n_heads // K, cache.slots), jnp.dtype(self.compute_dtype))
        x, (cache, _), _ = self._run(params, tokens, positions, attention, (cache, scores), adapters, which=which)
        return x, cache

    def fill(
        self,
        params: Params,
        cache: KVPages,
        tokens: jax.Array,
        starts: jax.Array,
        table: jax.Array,
        adapters: Params | None = None,
        which: jax.Array | None = None,
    ) -> KVPages:
        """The cache with the keys and values of `tokens` [B, T], which stand from the positions `starts` [B] on; the rest as `decode` has it."""
        positions = jnp.asarray(starts)[:, None] + jnp.arange(tokens.shape[1])
        return self.decode(params, cache, jnp.asarray(tokens), positions, table, adapters, which)[1]

    def empty_cache(self, pages: int, slots: int) -> KVPages:
        """A cache of so many pages of so many tokens each."""
        c = self.config
        shape = (c.n_layers, pages, c.n_kv_heads, slots, page_dim(c.head_dim))
        # Zeros, not memory as it lies: a slot that no token may see still takes part in a sum, with weight 0, and 0 times what isn't a number isn't 0.
        return KVPages(jnp.zeros(shape, self.compute_dtype), jnp.zeros(shape, self.compute_dtype))  # two buffers, each to be donated

    def head(self, params: Params) -> tuple[jax.Array, jax.Array | None]:
        """The output matrix [D, V] in the compute dtype, and its bias [V] or None."""
        matrix = params["embed"].T if self.config.tied_head else params["head"]
        bias = params["head_bias"].astype(self.compute_dtype) if self.config.head_bias else None
        return matrix.astype(self.compute_dtype), bias

    def head_adapter(
        self, hidden: jax.Array, adapters: Params | None, dropout_key: jax.Array | None = None, which: jax.Array | None = None
    ) -> LowRank | None:
        """What a head's adapter adds to the logits of hidden states [B, T, D], a tied head's too; None: it has no adapter."""
        own = self._adapters({name: adapter for name, adapter in (adapters or {}).items() if name == "head"}, dropout_key, which)
        return low_rank(hidden, own["head"]) if own else None

    def logits(self, params: Params, tokens: jax.Array, adapters: Params | None = None) -> jax.Array:
        """[B, T] ids of plain sequences -> [B, T, V] logits. This is for tests and inspection: training never builds them."""
        return self.unembed(params, self.hidden(params, tokens, *_plain(tokens), adapters), adapters)

    def unembed(self, params: Params, hidden: jax.Array, adapters: Params | None = None, which: jax.Array | None = None) -> jax.Array:
        """[B, T, D] hidden states -> [B, T, V] logits."""
        (matrix, bias), adapter = self.head(params), self.head_adapter(hidden, adapters, which=which)
        logits = jnp.einsum("BTD,DV->BTV", hidden, matrix)
        if adapter is not None:
            logits += jnp.einsum("BTR,RV->BTV", *adapter)
        return logits if bias is None else logits + bias

    def _run(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        attention: Callable[..., tuple[jax.Array, Any]],
        cache: Any = None,
        adapters: Params | None = None,
        dropout_key: jax.Array | None = None,
        which: jax.Array | None = None,
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        """Embed, scan the layers (each with the number of its kind, its own, and the cache), normalise.

        The cache rides along in the carry: a layer changes it in place. Among the scan's inputs and outputs it would be copied.
        """
        c, dtype = self.config, jnp.dtype(self.compute_dtype)
        x = embed(params["embed"], tokens, self.compute_dtype) * c.embed_scale  # a factor that is rounded first, as in Gemma's training
        if c.positions == "learned":
            x = x + params["positions"].astype(dtype)[positions]
        x = constrain(x, "batch", None, None)
        angles = [turns(c, kind, positions, jnp.promote_types(dtype, jnp.float32)) for kind in c.kinds] if c.positions == "rope" else []
        kinds = jnp.array([c.kinds.index(kind) for kind in c.layers or c.kinds * c.n_layers], jnp.int32)

        apart = {name: w for name, w in params["blocks"].items() if isinstance(w, Apart)}
        counted = positions > 0

        def layer(carry: tuple[jax.Array, jax.Array, Any], inputs: tuple[Params, Params | None]) -> tuple[tuple, jax.Array | None]:
            (x, index, cache), (block, own) = carry, inputs
            block = block | {name: replace(w, layer=index) for name, w in apart.items()}
            kind = kinds[index]
            rotate = partial(turned, c, _of_kind(kind, angles)) if angles else lambda y: y
            own = self._adapters(own or {}, None if dropout_key is None else jax.random.fold_in(dropout_key, index), which, "blocks.")
            x, cache, load = nnx.merge(self._block, nnx.State(block))(
                x, rotate, lambda q, k, v: attention(q, k, v, kind, index, cache), own, counted
            )
            return (x, index + 1, cache), load

        if self.remat != "none" and cache is None:
            layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(*KEPT[self.remat]))
        layers = {name: w for name, w in params["blocks"].items() if name not in apart}, (adapters or {}).get("blocks")
        (x, _, cache), load = jax.lax.scan(layer, (x, jnp.zeros((), jnp.int32), cache), layers)
        x = _normalised(x, params["final_norm"], params.get("final_norm_bias"), c)
        return _scaled(x, 1 / c.logit_divisor), cache, load

    def _seen(self, subtree_end: jax.Array, positions: jax.Array) -> list[Ancestors]:
        """What a token sees in layers of each kind."""
        backend = backend_of(self.attention)
        seen = {window: ancestors(subtree_end, positions, window, backend) for window in _windows(self.config)}
        return [seen[window] for window in _windows(self.config)]

    def _adapters(self, matrices: Params, key: jax.Array | None, which: jax.Array | None, under: str = "") -> dict[str, Adapter]:
        """The adapters of one layer, or of the head, by their matrices' names."""
        if not matrices:
            return {}
        if which is not None:
            return one_of(matrices, which)
        assert self.lora is not None
        modules = {path.removeprefix(under): t.name for t in FAMILIES[self.config.family].tensors for path in t.paths}
        return adapters_of(matrices, self.lora, modules, key)

    def _metadata(self, name: str) -> Params:
        leaves, tree = jax.tree.flatten(self._variables, is_leaf=lambda x: isinstance(x, nnx.Variable))
        return nnx.to_pure_dict(jax.tree.unflatten(tree, [leaf.get_metadata(name, None) for leaf in leaves]))


def _plain(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positions and subtree ends of plain sequences, [B, T] each."""
    T = tokens.shape[1]
    return jnp.broadcast_to(jnp.arange(T), tokens.shape), jnp.full(tokens.shape, T)


def _matrix(rngs: nnx.Rngs, dims: Mapping[Any, int], inputs: int | None, std: float = 0.02) -> nnx.Param:
    """A matrix of dims with these names, of which so many are inputs; None: a table, which is looked up."""
    return nnx.Param(std * jax.random.normal(rngs.params(), tuple(dims.values()), jnp.float32), axes=tuple(dims), inputs=inputs)


def _constant(value: float, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes)


def _unit(c: ModelConfig) -> float:
    """The weight of a norm that scales by 1."""
    return 0.0 if c.norm == "rms_plus_one" else 1.0


def _scaled(x: jax.Array, factor: float) -> jax.Array:
    """`x * factor`; the product is rounded, the factor isn't."""
    return x if factor == 1 else (x.astype(jnp.promote_types(x.dtype, jnp.float32)) * factor).astype(x.dtype)


def _of_kind(kind: jax.Array, each: Sequence[X]) -> X:
    """Of one thing for each kind of layer, that of this kind. Where they are all one thing, nothing is chosen."""
    if all(one is each[0] for one in each):
        return each[0]
    return jax.tree.map(lambda *leaves: jax.lax.select_n(kind, *map(jnp.asarray, leaves)), *each)


def _windows(c: ModelConfig) -> list[int | None]:
    """The window of each kind of layer. One that is wider than any sequence, where others have one, so that masks differ in numbers only."""
    everything = FAR if "window" in c.kinds else None
    return [c.window if kind == "window" else everything for kind in c.kinds]


def _normalised(x: jax.Array, scale: jax.Array, bias: jax.Array | None, c: ModelConfig) -> jax.Array:
    """RMS norm, or with a bias layer norm."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = scale.astype(wide.dtype)
    if c.norm == "rms_plus_one":
        scale = 1 + scale
    if bias is not None:
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + c.norm_eps) * scale
    return (normed if bias is None else normed + bias.astype(wide.dtype)).astype(x.dtype)
