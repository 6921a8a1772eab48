"""Eight fake CPU devices, set up before anything imports jax. Tests compile more than they compute: XLA may be lazy."""

import dataclasses
import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"
FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch; xdist's workers have a core each
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.devices()  # reads the flags
os.environ["XLA_FLAGS"] = FLAGS  # libtpu reads them too, and ends the process at a flag of the CPU's that it doesn't know
hypothesis.settings.register_profile("suite", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("suite")
pytest.register_assert_rewrite("tests.helpers")
from tests.helpers.paths import REPO, SEED_PAIRS  # noqa: E402


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pairs and tokenizers that lie beside a developer's checkout; absent from releases."""
    path = REPO.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no shared data beside this checkout")
    return path


@pytest.fixture(scope="session")
def real_ids(shared_data: Path) -> list[tuple[list[int], list[int]]]:
    """The two sides, rejected first, of real pairs as CodeLlama's tokens: 375 pairs of 10 to 2,800 tokens a side."""
    from data_pipeline import pairs, tokenizer

    encode = tokenizer.load(shared_data / "tokenizers" / "codellama").backend.encode
    files = shared_data / "sven" / "train.python.jsonl", shared_data / "safecoder" / "sec-new-desc.val.jsonl"
    found = [pair for file in files for pair in pairs.read(file, pairs.Drops())]
    return [(encode(pair.rejected).ids, encode(pair.chosen).ids) for pair in found]


@pytest.fixture(scope="session")
def seed_shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The seed pairs with short texts as shard sets, trimmed and untrimmed, with one tokenizer of 512 entries."""
    from data_pipeline import pairs
    from data_pipeline.build import BuildOptions, build

    def first_words(text: str) -> str:
        return " ".join(text.split()[:5])

    out = tmp_path_factory.mktemp("shards")
    rows = pairs.read(SEED_PAIRS, pairs.Drops())
    short = [dataclasses.replace(p, instruction=first_words(p.instruction), reasoning=first_words(p.reasoning)) for p in rows]
    pairs.write(short, out / "pairs.jsonl")
    kinds = {"trimmed": True, "untrimmed": False}
    for name, trim in kinds.items():
        build([out / "pairs.jsonl"], out / name, None, BuildOptions(row_tokens=384, trim=trim, heldout=0.15), vocab_size=512)
    return {name: out / name for name in kinds}


@pytest.fixture(scope="session")
def plain_shards(seed_shards: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain rows, instructions with a response, in narrower rows than `seed_shards` has and with its tokenizer."""
    from data_pipeline import pairs
    from data_pipeline.build import BuildOptions, build

    out = tmp_path_factory.mktemp("plain")
    rows = [pair for pair in pairs.read(SEED_PAIRS, pairs.Drops()) if len(pair.chosen) < 700]
    lines = [json.dumps({"instruction": " ".join(p.instruction.split()[:5]), "output": p.chosen}) for p in rows]
    (out / "rows.jsonl").write_text("\n".join(lines))
    build([out / "rows.jsonl"], out / "shards", str(seed_shards["trimmed"] / "tokenizer"), BuildOptions(row_tokens=256, heldout=0.1))
    return out / "shards"
