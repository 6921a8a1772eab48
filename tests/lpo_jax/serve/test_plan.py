"""`lpo plan --serve`: what a slice must hold is counted as it is, what doesn't fit is refused with a mesh that does, and bounds follow from bytes."""

import dataclasses
import json

import pytest

from lpo_jax import cli
from lpo_jax.plan.chips import CHIPS
from lpo_jax.serve.plan import ServePlan
from tests.helpers.marks import needs_libtpu
from tests.helpers.paths import REPO
from tests.helpers.plans import GIB

BIG, SMALL = (str(REPO / "configs/shapes" / name) for name in ("codellama_34b.json", "tinyllama_1_1b.json"))

PLAN = ServePlan(
    models=["big", "small"], parameters=[1, 1], topology="v5e:2x2", mesh={"data": 2, "fsdp": 1, "expert": 1, "tensor": 2}, dtype="bfloat16",
    rows=32, longest=1024, pages=288, slots=128, block=4, weights=[4 * GIB, GIB], read=[3 * GIB, GIB // 2], cached=[2 * GIB, GIB // 4], state=0,
    temporaries=GIB, program=0, sent=0, verdict="", notes=[], seconds=1.0, versions={},
)  # fmt: skip


def test_a_step_reads_the_target_once_and_the_expert_for_each_proposal():
    chip = CHIPS["v5e"]
    assert PLAN.step(False)["memory"] == pytest.approx((3 + 4 * 0.5) * GIB / chip.hbm_rate)
    # Of the 288 pages, nine a row, the longest texts fill eight.
    assert PLAN.step(True)["memory"] == pytest.approx((3 + 2 * 8 / 9 + 4 * (0.5 + 0.25 * 8 / 9)) * GIB / chip.hbm_rate)
    assert PLAN.step(True)["compute"] == pytest.approx(2 * 3.5 * GIB / 2 * 16 * 4 / chip.flops)  # 16 rows a part, 2 bytes a weight
    assert PLAN.tokens_per_s(False) == pytest.approx((32 * chip.hbm_rate / (5 * GIB), 4 * 32 * chip.hbm_rate / (5 * GIB)))
    alone = dataclasses.replace(PLAN, models=["big"], read=[3 * GIB], cached=[2 * GIB], block=1, sent=2 * 10**11)
    assert alone.step(True) == pytest.approx(
        {"compute": 3 * GIB * 16 / chip.flops, "memory": (3 + 2 * 8 / 9) * GIB / chip.hbm_rate, "network": 1.0}
    )
    assert alone.tokens_per_s(True) == pytest.approx((32.0, 32.0))


def test_room_is_what_rows_of_the_longest_texts_would_take():
    """7.5 GiB are left; a row's nine pages take 2.25 GiB / 144 of a part's pages * 9, and there are two parts."""
    assert PLAN.used == int(8.25 * GIB)
    assert PLAN.more_rows == 2 * int((15.75 - 8.25) / (2.25 * 9 / 144))
    assert dataclasses.replace(PLAN, verdict="no").more_rows == 0


@pytest.fixture
def told(tmp_path, capsys):
    def tell(*arguments):
        code = cli.main(["plan", *arguments, "--json", str(tmp_path / "plan.json")])
        return code, *capsys.readouterr(), json.loads((tmp_path / "plan.json").read_text()) if code < 2 else None

    return tell


@needs_libtpu
def test_what_cannot_fit_is_told_without_asking_the_compiler_and_with_a_mesh_that_does(told):
    """34B in bfloat16 are 63 GiB on each chip, unless they are cut."""
    code, out, _, facts = told("--serve", "v5e:4x4", "--model", BIG, "--security", SMALL)
    assert code == 1 and not facts["fits"] and facts["seconds"] < 60
    assert "doesn't fit 15.75 GiB: weights and pages take" in out and "with --tensor 8 they take 8.15 GiB of each" in out


def tiny(tmp_path, name, **changed):
    shape = json.loads((REPO / "configs/shapes/tinyllama_1_1b.json").read_text())
    shape |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
    (tmp_path / name).write_text(json.dumps(shape | {"vocab_size": 512, "max_position_embeddings": 256} | changed))
    return str(tmp_path / name)


def test_a_pair_without_a_common_tokenizer_is_refused_before_anything_is_compiled(told, tmp_path):
    """Such as is only padded otherwise (Qwen2.5: 151,936 and 152,064) isn't, see below."""
    big, small = tiny(tmp_path, "big.json", vocab_size=151936), tiny(tmp_path, "small.json", vocab_size=32000)
    code, _, err, _ = told("--serve", "v5e:2x2", "--model", big, "--security", small)
    assert code == 2 and f"--model {big} has 151,936, --security {small} has 32,000 entries" in err and "--preset crosec" in err


@needs_libtpu
@pytest.mark.slow
def test_the_real_programs_of_a_pair_are_compiled_and_counted(told, tmp_path):
    big, small = tiny(tmp_path, "big.json"), tiny(tmp_path, "small.json", num_hidden_layers=1, vocab_size=504)
    code, out, _, facts = told("--serve", "v5e:2x2", "--model", big, "--security", small, "--tensor", "2", "--rows", "8", "--block", "2")
    assert code == 0, out
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128  # q, o, k, v, and the MLP
    assert facts["weights"] == [
        (2 * 512 * 64 + 2 * layer) // 2 * 2 + 5 * 64 * 2,
        (2 * 504 * 64 + layer) // 2 * 2 + 3 * 64 * 2,
    ]  # norms are whole
    assert facts["read"] == [facts["weights"][0] - 512 * 64, facts["weights"][1] - 504 * 64]
    assert facts["pages"] == 8 * 3 and facts["slots"] == 128  # two for the text, one for a copy
    assert facts["temporaries"] > 0 and facts["sent"] > 0
    assert "rows: 8, 4 in each of 2 parts; texts of up to 256 tokens" in out
    assert "note: vocabularies of 512 and 504 entries" in out
    assert "a block of 2 proposals takes at least" in out


@needs_libtpu
@pytest.mark.heavy
def test_codellama_34b_and_tinyllama_fit_a_v5e_of_16(told):
    code, out, _, facts = told("--serve", "v5e:4x4", "--model", BIG, "--security", SMALL, "--tensor", "8")
    assert code == 0 and facts["fits"], out
    assert facts["rows"] == 32 and facts["longest"] == 2048 and facts["more_rows"] > 0
    assert "rows: 32, 16 in each of 2 parts; texts of up to 2,048 tokens" in out and "room: for " in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["configs/codellama_7b.yaml", "--tensor", "8"], "--tensor: for --serve SLICE alone"),
        (["configs/codellama_7b.yaml", "--serve", "v5e:4x4", "--model", BIG, "--search"], "CONFIG, --search: not with --serve"),
        (["--serve", "v5e:4x4"], "give it with --model"),
        (["--serve", "v9:4x4", "--model", BIG], "--serve 'v9:4x4': write JAX's name of a slice, like v5e:4x4"),
        (["--serve", "v5litepod-8", "--model", BIG], "--serve 'v5litepod-8': write JAX's name of a slice, like v5e:4x4"),
        (
            ["--serve", "v5e:4x4", "--model", "missing.json"],
            "--model missing.json: missing.json doesn't exist; give a copy of its config.json",
        ),
        (
            ["--serve", "v5e:4x4", "--model", BIG, "--security", "tests"],
            "--security tests: tests/config.json doesn't exist; give a copy of",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments, said, told):
    code, _, err, _ = told(*arguments)
    assert code == 2 and said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["v5e:3x4", "v5e:9x9", "v5e:4x4x4", "v5e:0x0", "v5e:", "v5p:2x2", pytest.param("v5p:3x3x3", marks=needs_libtpu)]
)
def test_of_a_slice_that_there_is_not_those_are_named_that_there_are(name, capfd):
    assert cli.main(["plan", "--serve", name, "--model", SMALL]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    some = "v5p:2x2x1, v5p:2x2x2" if name.startswith("v5p") else "v5e:1x1, v5e:2x2, v5e:2x4"
    assert line.startswith(f"lpo: error: --serve {name!r}: there is no such slice; there are {some}, ")
