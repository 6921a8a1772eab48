"""The library's front: lazy names, and the README's example."""

import ast
import os
import re
import subprocess
import sys
import textwrap

import pytest

import lpo_jax
from tests.helpers.paths import REPO


def python(code, **options):
    env = os.environ | {"PYTHONPATH": str(REPO), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_importing_loads_nothing():
    heavy = "[m for m in ('jax', 'flax', 'numpy', 'tensorflow', 'torch', 'data_pipeline') if m in sys.modules]"
    assert python(f"import lpo_jax, sys; dir(lpo_jax); print({heavy})") == "[]\n"
    assert python("import lpo_jax, sys; lpo_jax.load_config; print('tensorflow' in sys.modules)") == "False\n"


def test_every_name_is_there():
    assert set(lpo_jax.__all__) <= set(dir(lpo_jax))
    for name in lpo_jax.__all__:
        assert getattr(lpo_jax, name) is not None
    assert (REPO / "lpo_jax" / "py.typed").is_file()
    with pytest.raises(AttributeError, match="module 'lpo_jax' has no attribute 'train_modle'"):
        getattr(lpo_jax, "train_modle")  # noqa: B009


def test_the_types_that_checkers_see_are_those_places():
    """What type checkers import and assign is what the interpreter finds, and nothing of it is private to them."""
    block = re.search(r"^if TYPE_CHECKING:.*\n((?:(?:    .*)?\n)+)else:", (REPO / "lpo_jax" / "__init__.py").read_text(), re.MULTILINE)[1]
    seen = {}
    exec(textwrap.dedent(block), seen)
    public = {name for name, alias in re.findall(r"import (\w+) as (\w+)$", block, re.MULTILINE) if name == alias}
    public |= {name for names in re.findall(r"^    ([\w, ]+) = ", block, re.MULTILINE) for name in names.split(", ")}
    assert public == set(lpo_jax._PLACES)
    for name in public:
        assert seen[name] is getattr(lpo_jax, name)


@pytest.mark.slow
def test_the_documented_example_runs(tmp_path):
    """With one stage of three steps and a smaller model, in an empty directory. The README's is how it begins."""
    found = [
        re.findall(r"```python\n(import lpo_jax\n.*?)```", (REPO / name).read_text(), re.DOTALL)
        for name in ("README.md", "docs/training.md")
    ]
    (readme,), (example,) = found
    assert example.startswith(readme)
    small = (
        "model.new.d_model=32", "model.new.n_layers=1", "model.new.head_dim=16", "model.new.d_mlp=32", "report_pairs=1",
        "stages={lpo: {objective: {name: lpo, beta: 2, gamma: 3, alpha: 1}, optim: {lr: 1e-3}, batch_rows: 1, steps: 3}}",
    )  # fmt: skip
    assert '"run_dir=runs/mine"' in example
    example = example.replace('"run_dir=runs/mine"', ", ".join(map(repr, ("run_dir=runs/mine", *small))))
    for name in ("configs", "data_pipeline"):
        (tmp_path / name).symlink_to(REPO / name)
    lines = python(example, cwd=tmp_path).splitlines()
    assert 0 <= float(lines[-2]) <= 1
    assert isinstance(ast.literal_eval(lines[-1]), str)
