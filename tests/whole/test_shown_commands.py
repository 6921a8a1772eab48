"""Every command that a document, a --help or a config's comment shows can be given: its arguments are known, its config loads, and what would
start a run somewhere passes the check that comes before paying."""

import importlib
import json
import re
import subprocess
import tomllib

import huggingface_hub
import pytest
from packaging.requirements import Requirement

from data_pipeline import cli as lpo_data
from evaluation import cli as lpo_eval
from foundation.errors import UserError
from lpo_jax import cli as lpo
from lpo_jax.cli import export, generate, serve
from lpo_jax.config import load
from lpo_jax.serve.plan import shape_of
from lpo_jax.sharding import topology_size
from lpo_jax.train import preflight
from reproduce import __main__ as reproduce
from tests.helpers.launch import make_targets
from tests.helpers.paths import REPO
from tests.helpers.shown import ANY, blocks, commands_of, spans, words_of

PROGRAMS = {"lpo": lpo, "lpo-data": lpo_data, "lpo-eval": lpo_eval}
LAUNCHERS = ("tpu", "gke", "slurm", "sky", "local")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "launch/README.md", "docs/**/*.md", "CHANGELOG.md")


ASKED = {  # what a command refuses before it looks for a model
    ("lpo", "generate"): generate.asked,
    ("lpo", "serve"): serve.asked,
    ("lpo", "export"): export.check,
    ("lpo-eval", "run"): lpo_eval.asked,
}
EXTRAS = set(tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"])
PARSERS = {name: module.program().commands for name, module in (PROGRAMS | {"python -m reproduce": reproduce}).items()}


def shown():
    """(where, command) of all of them; continued lines are joined."""
    places = []
    for file in sorted(path for pattern in DOCUMENTS for path in REPO.glob(pattern)):
        text = file.read_text(encoding="utf-8")
        places.append((file.relative_to(REPO), "\n".join([*blocks(text), *spans(text)])))
    for file in sorted(REPO.glob("notebooks/*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        places.append((file.relative_to(REPO), "\n".join([*blocks(text), *spans(text)])))
    for file in sorted(REPO.glob("configs/**/*.yaml")):
        comments = [line.partition("#")[2].strip() for line in file.read_text(encoding="utf-8").splitlines()]
        places.append((file.relative_to(REPO), "\n".join(comments)))
        places.append((file.relative_to(REPO), "\n".join(span for line in comments for span in re.findall("`([^`]+)`", line))))
    for program, commands in PARSERS.items():
        places += [(f"{program} {name} --help", parser.epilog) for name, parser in commands.items()]
    for name in LAUNCHERS:
        places.append((f"launch/{name}.py", importlib.import_module(f"launch.{name}").EXAMPLES))
    found = {}
    for where, text in places:
        for line in commands_of(text):
            found.setdefault(line, f"{where}: {line}")
    return list(found.items())


SHOWN = shown()
TARGETS = make_targets()


def test_commands_are_found_everywhere():
    """Else the others here would prove nothing."""
    where = " ".join(place for _, place in SHOWN)
    for part in (
        "README.md",
        "launch/README.md",
        "docs/",
        "notebooks/",
        "configs/pods/",
        "lpo train --help",
        "lpo-data build --help",
        "launch/gke.py",
    ):
        assert part in where
    assert len(SHOWN) > 150


@pytest.mark.parametrize("line", [pytest.param(line, id=place) for line, place in SHOWN if line.split()[0] in PROGRAMS])
def test_a_command_of_ours(line, tmp_path, monkeypatch):
    program, *words = words_of(line)
    if not words or words[0].startswith("-"):  # the program is spoken of
        return
    parser = PARSERS[program][words[0]]
    monkeypatch.chdir(tmp_path)
    try:
        args = PROGRAMS[program].program().parse(words, elsewhere=True)
    except SystemExit:  # --help
        return
    except UserError as error:  # part of a command: what there is of it is known
        if not re.search("are required|expected", str(error)):
            pytest.fail(str(error))
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= set(parser._option_string_actions), line
        return
    monkeypatch.chdir(REPO)
    if known := ASKED.get((program, words[0])):
        known(args)
    if getattr(args, "serve", None):  # `lpo plan --serve`: the models' shapes are there
        assert all(shape_of("--model", name).vocab_size for name in (args.model, args.security) if str(name).endswith(".json"))
    elif (
        words[0] in ("train", "plan", "config", "teacher") and "name: focal" not in line
    ):  # made in tests/whole/test_adding_an_objective.py
        given = args.configs if "configs" in args else [args.config, *args.overrides]
        for name in (word for word in given if "=" not in word):
            for file in REPO.glob(ANY if name in ("CONFIG", "FILE") else name):
                config = load(file, [word for word in given if "=" in word])
                if name not in ("CONFIG", "FILE") and not getattr(args, "search", False):
                    check(config)
                break
            else:
                pytest.fail(f"{name}: no such config")


def check(config):
    """On as many devices as its mesh names: of -1 at least one."""
    mesh, devices = config.mesh, 1
    for size in (mesh.data, mesh.fsdp, mesh.expert, mesh.tensor):
        devices *= max(size, 1)
    found = preflight.look(config, topology_size(mesh.topology) if mesh.topology else devices)
    assert [error for error in found.errors if "shards" not in error] == []


@pytest.mark.parametrize("line", [pytest.param(line, id=place) for line, place in SHOWN if line.startswith("make ")])
def test_a_make(line, monkeypatch, capfd):
    _, *words = words_of(line)
    named = [word for word in words if "=" not in word]
    assert set(named) <= TARGETS
    env = {"PATH": "/usr/bin:/bin"}
    shown = subprocess.run(["make", "-n", *words], cwd=REPO, env=env, capture_output=True, text=True, check=True).stdout
    launcher = re.fullmatch(r"\w+-(tpu|gke|slurm|sky|local)(-down|-multihost)?", named[0])
    if launcher is None or (len(words) == 1 and launcher[1] != "local"):  # the target is spoken of
        return
    command = shown.replace("\\\n", " ").splitlines()[-1]
    module, *given = words_of(command[command.index("-m launch.") + len("-m launch.") :])
    for name in ("PROJECT", "ZONE", "BUCKET", "CLUSTER", "IMAGE"):
        monkeypatch.setenv(f"LPO_{name}", "mine")
    monkeypatch.setenv("LPO_ZONE", "us-west4-a")
    monkeypatch.setenv("LPO_API_KEY", "mine")
    monkeypatch.setenv("PATH", env["PATH"])
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub, "auth_check", lambda *_, **__: None)
    monkeypatch.chdir(REPO)
    monkeypatch.setattr("sys.argv", [module, "--dry-run", *given])
    code, said = importlib.import_module(f"launch.{module}").main(), capfd.readouterr().err
    wrong = re.findall(r"^  - (?!the program )(.*)", said, re.MULTILINE)
    if module in ("slurm", "local"):  # the reader's own data and models would be on this disk
        wrong = [problem for problem in wrong if ": no such " not in problem]
    assert wrong == [] and (code == 0 or module in ("slurm", "local")), said


@pytest.mark.parametrize("line", [pytest.param(line, id=place) for line, place in SHOWN if line.startswith("python -m ")])
def test_a_module(line):
    _, _, module, *words = words_of(line)
    assert importlib.util.find_spec(module) is not None
    if module == "reproduce" and words:
        PARSERS["python -m reproduce"][words[0]].parse_args([word.replace("SIZE", "small") for word in words[1:]])


@pytest.mark.parametrize("line", [pytest.param(line, id=place) for line, place in SHOWN if line.startswith("pip install")])
def test_a_pip_install(line):
    """Its extras are the package's."""
    for word in words_of(line)[2:]:
        if not word.startswith("-") and word != ".":
            requirement = Requirement(re.sub(r"^\.\[", "lpo-jax[", word))
            assert requirement.extras <= EXTRAS
            assert requirement.name in {"lpo-jax", "tensorboard", "tensorflow", "xprof"}
