"""The nearest change with which a run fits, with a compiler whose needs are known."""

from types import SimpleNamespace

import pytest

from lpo_jax import config
from lpo_jax.plan import planner, search
from lpo_jax.plan.chips import doubled
from lpo_jax.plan.flops import Flops
from lpo_jax.sharding import MESH_AXES
from tests.helpers.marks import needs_libtpu
from tests.helpers.paths import REPO
from tests.helpers.plans import a_plan

KEPT = {"none": 4.0, "dots": 2.0, "attention": 1.0, "block": 0.5}
"""GiB of 1,024 tokens of a device"""


@pytest.mark.parametrize(
    ("slice_", "twice"),
    [("v5e:2x2", "v5e:2x4"), ("v5e:2x4", "v5e:4x4"), ("v6e:8x8", "v6e:8x16"), ("v5p:2x2x1", "v5p:2x2x2"), ("v5p:2x2x4", "v5p:2x4x4")],
)
def test_a_slice_is_doubled_as_slices_are_shaped(slice_, twice):
    assert doubled(slice_) == twice


def need(c, stage, held=0.0):
    """GiB of a device: a state, and what a microbatch keeps."""
    settings, ways = c.stages[stage], c.mesh.data * c.mesh.fsdp * c.mesh.expert
    return held + settings.batch_rows / settings.accumulate / ways * 0.5 * KEPT[c.model.remat]


@pytest.fixture
def nearest(tmp_path, monkeypatch):
    """Looks for the nearest change of a run of 64 rows, each of 512 tokens, in a step on v5e:2x2."""
    cut = {"stages.lpo.batch_rows": 64, "stages.lpo.accumulate": 2, "stages.sft.batch_rows": 64, "stages.sft.accumulate": 2, "eval_rows": 4}
    given = {"mesh.fsdp": 4, "mesh.data": 1, "mesh.topology": "v5e:2x2", "plan.row_tokens": 512, "model.new.n_heads": 2} | cut
    monkeypatch.setattr(search.abstract, "trace_step", lambda *_: SimpleNamespace(jaxpr=SimpleNamespace(jaxpr=None)))
    monkeypatch.setattr(search.flops, "count", lambda _: Flops(10**12, 0))

    def look(needs, *others, tries=12, **more):
        """Args: needs: GiB of a device, by config and stage. Returns the changes, and what was compiled for them."""
        run = config.load(REPO / "configs" / "tiny_cpu.yaml", [f"{key}={value}" for key, value in (given | more).items()])
        asked = []

        def cached(c, stage, row, cache):
            asked.append((stage, c))
            mesh = {axis: getattr(c.mesh, axis) for axis in MESH_AXES}
            return a_plan(stage, needs(c, stage), topology=c.mesh.topology, mesh=mesh, remat=c.model.remat)

        monkeypatch.setattr(planner, "cached", cached)
        refused = cached(run, "lpo", None, None)
        assert refused.too_large
        asked.clear()
        return [near.settings for near in search.nearest(run, refused, others, tmp_path, tries)], asked

    return look


@needs_libtpu
def test_a_policy_is_nearer_than_all_else(nearest):
    """Asked for are 16 GiB of policy none. Half of the rows, or twice the microbatches, would do too."""
    found, asked = nearest(need, **{"model.remat": "none"})
    assert found == [["model.remat=dots"]] and len(asked) == 1


@needs_libtpu
def test_microbatches_are_cut_as_often_as_it_takes_and_no_compiler_is_asked_what_is_known(nearest):
    """44 GiB of the policy that keeps least: of 8 rows at once, 2 fit."""
    found, asked = nearest(lambda c, stage: 22 * need(c, stage), **{"model.remat": "block"})
    assert found == [["stages.sft.accumulate=8", "stages.lpo.accumulate=8"]]
    assert [(stage, c.stages["lpo"].accumulate) for stage, c in asked] == [("lpo", 8)]


@needs_libtpu
def test_the_other_stages_must_fit_too(nearest):
    found, asked = nearest(lambda c, stage: (44 if stage == "sft" else 22) * need(c, stage), "sft", **{"model.remat": "block"})
    assert found == [["stages.sft.accumulate=16", "stages.lpo.accumulate=16"]] and ("sft", 8) in [
        (stage, c.stages["sft"].accumulate) for stage, c in asked
    ]


@needs_libtpu
def test_a_state_that_is_too_large_wants_adapters_or_a_larger_slice(nearest):
    def needs(c, stage):
        chips = c.mesh.data * c.mesh.fsdp * c.mesh.expert * c.mesh.tensor
        return need(c, stage, held=6.0 if c.model.lora else 100 / chips)

    adapters, larger = nearest(needs, tries=2, **{"model.remat": "block"})[0]
    assert adapters == ["model.lora.rank=16", "model.lora.alpha=32"]
    assert larger[0] == "mesh.topology=v5e:2x4" and any(setting.startswith("mesh.") for setting in larger[1:])


@needs_libtpu
def test_what_nothing_helps_is_left_after_so_many_tries(nearest):
    found, asked = nearest(lambda c, stage: 60.0, tries=1, **{"model.remat": "block"})
    here = [c for _, c in asked if c.mesh.topology == "v5e:2x2" and c.model.lora is None]
    assert found == [] and len(here) <= 1
