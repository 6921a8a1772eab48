"""What a training step holds beside its state: trees against the padded way, in the compiler's own figures for a TPU slice.

Needs libtpu and no TPU. Both programs are compiled for the same pairs, full fine-tuning of an 8B model with FSDP; nothing is run.
"""

import argparse
import math
import re
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from benchmarks import common, ours, step
from data_pipeline.trees import pack, plant
from foundation.files import Json
from lpo_jax.config import MeshConfig, ModelConfig, StageConfig
from lpo_jax.model.decoder import Model
from lpo_jax.plan import abstract
from lpo_jax.plan.chips import GIB, topology_devices
from lpo_jax.plan.rows import PlannedRows
from lpo_jax.sharding import make_mesh
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.state import TrainState, batch_sharding, new_state, state_shardings

LLAMA_8B = ModelConfig("llama", 128256, 4096, 32, 32, 8, 128, 14336, max_positions=8192, rope_theta=500000.0)
ROW_TOKENS = 2048


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_arguments(parser)
    parser.add_argument("--topology", default="v5e:4x4")
    args = parser.parse_args(argv)
    found = compare(args.data, args.tokenizer, args.topology)
    for name in ("tree", "padded"):
        print(f"{name:8} {found[name]['temporaries'] / GIB:7.2f} GiB a chip beside the state, rows {found[name]['rows']}")
    print(
        f"tree over padded {found['tree_over_padded']:.2f}; the tree step's largest array of logits has {found['largest_logits']:,} elements"
    )
    common.write_json(args.json, found)
    return 0


def compare(data: list[str | Path], tokenizer: str | None, topology: str) -> Json:
    """Temporaries of both steps for as many pairs as fill one row a chip, and the largest array with a vocabulary in the tree's."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1), topology_devices(topology))
    usable = [p for p in common.load_pairs(data, common.load_tokenizer(tokenizer)) if max(len(p.chosen), len(p.rejected)) <= ROW_TOKENS]
    usable = [p for p in usable if len(plant(p).tokens) <= ROW_TOKENS]
    trees = [plant(p) for p in usable]
    # As many pairs, in their random order, as fill one row a chip, but no more than the padded step fits, with four sequences a chip.
    sizes = [len(t.tokens) for t in trees]
    most = max(n for n in range(1, len(sizes) + 1) if len(pack(sizes[:n], ROW_TOKENS)) <= mesh.size)
    members = range(min(most, 2 * mesh.size))
    packed = pack([sizes[i] for i in members], ROW_TOKENS)
    packed += [[]] * (mesh.size - len(packed))
    scored = -(-max(sum(len(trees[i].source) for i in row) for row in packed) // 64) * 64
    row = PlannedRows(ROW_TOKENS, scored, max(map(len, packed)), len(members) / len(packed))
    model = Model(LLAMA_8B, "bfloat16", "float32", "block")
    stage = StageConfig(step.LPO, ours.OPTIM, batch_rows=len(packed), steps=1)
    with tempfile.TemporaryDirectory() as dump:
        tree = abstract.compile_step(abstract.trace_step(model, stage, row, mesh), mesh, dump)
        (program,) = Path(dump).glob("*after_optimizations.txt")
        logits = largest_logits(program.read_text(), mesh.size)

    longest = max(max(len(usable[i].chosen), len(usable[i].rejected)) for i in members)
    sequences = -(-2 * len(members) // mesh.size) * mesh.size
    padded = compile_padded(model, mesh, sequences, -(-longest // 128) * 128)
    temporaries = {name: temporary_bytes(program) for name, program in (("tree", tree), ("padded", padded))}
    return {
        "tree": {"temporaries": temporaries["tree"], "rows": [len(packed), ROW_TOKENS]},
        "padded": {"temporaries": temporaries["padded"], "rows": [sequences, -(-longest // 128) * 128]},
        "pairs": len(members),
        "largest_logits": logits,
        "tree_over_padded": temporaries["tree"] / temporaries["padded"],
    }


def temporary_bytes(program: jax.stages.Compiled) -> int:
    """What a chip must have free beside the state: the peak.

    `temp_size_in_bytes` also adds up buffers that never exist at the same time: programs whose sum exceeds a chip's memory compile.
    """
    memory = program.memory_analysis()
    assert memory is not None
    return memory.peak_memory_in_bytes - memory.argument_size_in_bytes


def largest_logits(program: str, parts: int) -> int:
    """Elements of the largest array in a compiled program with a dimension of the vocabulary, whole or cut, but for head and embedding."""
    V, D = LLAMA_8B.vocab_size, LLAMA_8B.d_model
    sizes = {0}
    for shape in set(re.findall(r"(?:f32|bf16)\[([\d,]+)\]", program)):
        dims = [int(d) for d in shape.split(",") if d != "1"]
        weights = sorted(dims) in (sorted((V // a, D // b)) for a in (1, parts) for b in (1, parts)) or math.prod(dims) == V * D // parts
        if {V, V // parts} & set(dims) and not weights:
            sizes.add(math.prod(dims))
    return max(sizes)


def compile_padded(model: Model, mesh: Mesh, sequences: int, length: int) -> jax.stages.Compiled:
    """The padded step with full logits, on the same mesh with the same optimizer and rematerialisation."""
    tx = optimizer(ours.OPTIM, 100, model)

    def padded_step(now: TrainState, tokens: jax.Array, answer: jax.Array, changed: jax.Array) -> tuple[TrainState, jax.Array]:
        loss, grads = jax.value_and_grad(partial(step.padded_loss, model))(now.params, tokens, answer, changed)
        updates, opt_state = tx.update(grads, now.opt_state, now.params)
        params = optax.apply_updates(now.params, updates)
        return TrainState(now.step + 1, params, opt_state, now.skipped, now.skipped_in_row), loss

    shardings = state_shardings(model, tx, mesh)
    shapes = jax.eval_shape(partial(new_state, tx=tx), model.shapes())
    now = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    rows = batch_sharding(mesh, accumulated=False)
    arrays = [jax.ShapeDtypeStruct((sequences, length), dtype, sharding=rows) for dtype in (jnp.int32, jnp.bool_, jnp.bool_)]
    with jax.set_mesh(mesh):
        return jax.jit(padded_step, out_shardings=(shardings, None), donate_argnums=0).lower(now, *arrays).compile()


if __name__ == "__main__":
    sys.exit(main())
