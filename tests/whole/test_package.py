"""The package: what its wheel and sdist hold, which extra has what, and that the wheel alone generates, serves and exports."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.paths import REPO, SEED_PAIRS
from tests.helpers.training import start

PACKAGES = ("foundation", "judges", "data_pipeline", "lpo_jax", "evaluation")
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Where the wheel and the sdist of this tree lie."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", out], cwd=REPO, check=True, capture_output=True)
    return out


def files(folder):
    """Below a folder of the tree, by their paths in it, but for what Python has compiled."""
    return {str(path.relative_to(REPO)) for path in (REPO / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_what_a_package_reads_is_in_its_wheel(built):
    (wheel,) = built.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {name for package in PACKAGES for name in files(package)} | {f"lpo_jax/{name}" for name in files("configs")}


def test_the_sdist_holds_the_whole_tree(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    folders = (*PACKAGES, "configs", "docs", "launch", "benchmarks", "demos", "notebooks", "tests")
    assert {name for folder in folders for name in files(folder)} <= packed
    assert {"Makefile", "requirements.txt", "requirements-dev.txt", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE"} <= packed


def pins(file):
    lines = [line for line in (REPO / file).read_text().splitlines() if not line.startswith("-r")]
    return {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, lines)}


@pytest.mark.parametrize("extra", [None, "data", "eval", "dev"])
def test_what_an_extra_asks_for_is_pinned(extra):
    """requirements.txt has the core and `data`, which `make train` needs; requirements-dev.txt adds the rest. No pin lies outside its bound."""
    needed = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    pinned = pins("requirements.txt") | (pins("requirements-dev.txt") if extra in ("eval", "dev") else {})
    for requirement in map(Requirement, needed):
        if requirement.name != "lpo-jax":
            (pin,) = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pin.version), requirement


def test_a_released_version_stands_in_the_changelog():
    headings = re.findall(r"^## \[(.+?)\]", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" and (len(headings) == 1 or headings[1] == PROJECT["version"])


@pytest.fixture(scope="module")
def fresh(built, tmp_path_factory):
    """A function that runs a command in a new environment, which holds the wheel and what it depends on, in an empty directory."""
    home = tmp_path_factory.mktemp("fresh")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS", "VIRTUAL_ENV")}
    pip = [home / "venv" / "bin" / "python", "-m", "pip"]
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    if subprocess.run([*pip, "download", "--quiet", "--no-deps", "--dest", home / "probe", "tqdm"], env=environment).returncode:
        pytest.skip("no package index can be reached")
    (wheel,) = built.glob("*.whl")
    subprocess.run([*pip, "install", "--quiet", wheel], check=True, env=environment)
    (home / "empty").mkdir()

    def run(command, *, code=0, start=False):
        program, *words = command.split()
        how = {"cwd": home / "empty", "env": environment, "text": True}
        words = [home / "venv" / "bin" / program, *words]
        if start:
            return subprocess.Popen(words, stderr=subprocess.PIPE, **how)
        done = subprocess.run(words, capture_output=True, **how)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_the_wheel_alone_generates_serves_and_exports(fresh, seed_shards, tmp_path):
    """Without TensorFlow, torch, numba or any other package of an extra."""
    run_dir = tmp_path / "run"
    training = start(seed_shards["trimmed"], run_dir, "stages.sft.steps=1", "stages.lpo.steps=1")
    assert training.wait() == 0, training.stdout.read()
    installed = {canonicalize_name(each["name"]) for each in json.loads(fresh("python -m pip list --format json"))}
    extras = {Requirement(each).name for extra in ("data", "eval") for each in PROJECT["optional-dependencies"][extra]} | {"torch"}
    assert not installed & {canonicalize_name(name) for name in extras}

    assert fresh("lpo --version") == f"lpo {PROJECT['version']}\n"
    for command in ("lpo", "lpo-data", "lpo-eval", "lpo plan", "lpo train", "lpo-data build", "lpo-eval run"):
        assert "usage:" in fresh(f"{command} --help")
    assert "batch_rows" in fresh("lpo config configs/tiny_cpu.yaml")  # the wheel's

    (tmp_path / "tasks.jsonl").write_text('{"id": "a", "prompt": "import sqlite3\\n"}\n')
    length = "--rows 1 --max-len-tokens 64"
    fresh(f"lpo generate {tmp_path}/tasks.jsonl -o {tmp_path}/out.jsonl --model {run_dir} --max-new-tokens 5 --temperature 0 {length}")
    written = json.loads((tmp_path / "out.jsonl").read_text())["text"]
    fresh(f"lpo export {run_dir} {tmp_path}/exported")
    server = fresh(f"lpo serve --model {tmp_path}/exported --name tiny --port 0 {length}", start=True)
    try:
        said = []
        while not (said and said[-1].startswith("ready: ")):
            assert (line := server.stderr.readline()), "".join(said)
            said.append(line)
        body = json.dumps({"model": "tiny", "prompt": "import sqlite3\n", "max_tokens": 5, "temperature": 0}).encode()
        url = f"{said[-1].split()[1]}/completions"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            assert json.load(reply)["choices"][0]["text"] == written
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 75  # told to stop: see lpo_jax.train.stop
    finally:
        server.kill()
        server.wait()

    assert "pip install 'lpo-jax[tpu]'" in fresh("lpo plan configs/pods/codellama_7b_v5e_4x4.yaml", code=2)
    build = f"lpo-data build {SEED_PAIRS.relative_to(REPO)} --train-tokenizer 512 --out shards"
    for command, package, extra in (
        (build, "numba", "data"),
        (f"lpo train configs/tiny_cpu.yaml data.path={seed_shards['trimmed']}", "tensorboardX", "data"),
        ("lpo-data rules", "bandit", "data"),
    ):
        assert f"the package {package!r} is missing here; pip install 'lpo-jax[{extra}]'" in fresh(command, code=2)
