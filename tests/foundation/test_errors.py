"""What a user can mend is one line."""

import errno
import tomllib

import pytest

from foundation.errors import DataError, run_command
from tests.helpers.paths import REPO


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("x: wrong"), "p: error: x: wrong"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "p: error: No space left on device; make room and repeat the command: what is finished stays",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "p: error: a/b: No such file or directory"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory\n  more"),
            "p: error: a device is out of memory (RESOURCE_EXHAUSTED: Out of memory): ",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, line, capsys):
    def fail():
        raise error

    assert run_command("p", fail) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(line)


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("tensorflow_text", "pip install 'lpo-jax[data]'"),
        ("tensorflow.python.eager", "pip install 'lpo-jax[data]'"),
        ("tensorboardX", "pip install 'lpo-jax[data]'"),
        ("bandit", "pip install 'lpo-jax[data]', or [eval]"),
        ("torch", "pip install 'lpo-jax[dev]'"),
        ("flax", "install what the project needs: pip install --upgrade lpo-jax"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(module, remedy, capsys, monkeypatch):
    """By what pyproject.toml says, as it stands in the metadata of what is installed."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    metadata = project["dependencies"] + [
        f'{line}; extra == "{extra}"' for extra, lines in project["optional-dependencies"].items() for line in lines
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: metadata)

    def fail():
        raise ModuleNotFoundError(name=module)

    assert run_command("p", fail) == 2
    assert capsys.readouterr().err.endswith(f"is missing here; {remedy}\n")


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), OSError("no number"), KeyError("x")])
def test_faults_of_ours_keep_their_traceback(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        run_command("p", fail)
