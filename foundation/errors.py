"""Errors that a user can act on, and the one place that tells them."""

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Something given to us can't be used. The message names the file, row or key at fault, and the remedy."""


class ConfigError(UserError, ValueError):
    """Settings that can't be run."""


class DataError(UserError, ValueError):
    """Input data that can't be read."""


def nearest(given: str, valid: Iterable[str], alike: float = 0.6) -> str | None:
    """The valid name of which `given` may be a slip, or the only one that it begins; dashes in front don't count. `alike`: how near, of 1."""
    names = {name.lstrip("-"): name for name in valid}
    bare = given.lstrip("-")
    begun = [name for name in names if bare and name.startswith(bare)]
    near = begun if len(begun) == 1 else difflib.get_close_matches(bare, names, n=1, cutoff=alike)
    return names[near[0]] if near else None


_FULL = errno.ENOSPC, errno.EDQUOT
_DISK = (*_FULL, errno.EROFS, errno.EIO)


def masked(text: str) -> str:
    """A text without the keys that this process was given: servers repeat them in what they say."""
    for name in ("OPENAI_API_KEY", "LPO_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "TRACKIO_WRITE_TOKEN"):
        if len(key := os.environ.get(name, "").strip()) >= 4:
            text = text.replace(key, "***")
    return text


def installing(module: str) -> str:
    """How to get a missing package: the extras of ours that have it, by what pyproject.toml says."""
    from importlib.metadata import PackageNotFoundError, requires

    def plain(name: str) -> str:
        return name.lower().replace("_", "-")

    wanted, extras = plain(module.partition(".")[0]), set()
    try:
        for line in requires("lpo-jax") or ():
            requirement, _, marker = line.partition(";")
            extra = re.search(r"""extra == ["'](.+?)["']""", marker)
            if extra and plain(re.split(r"[^\w.-]", requirement)[0]) == wanted:
                extras.add(extra[1])
    except PackageNotFoundError:  # run from a clone that isn't installed
        return "install what the project needs: pip install -e '.[data,eval]'"
    if not extras:
        return "install what the project needs: pip install --upgrade lpo-jax"
    first, *others = sorted(extras - {"dev"} or extras)  # dev has them all
    return f"pip install 'lpo-jax[{first}]'" + "".join(f", or [{other}]" for other in others)


def run_command(program: str, command: Callable[[], int]) -> int:
    """Run a command; returns its exit code. What a user can mend becomes one line on stderr and exit code 2."""
    try:
        return command()
    except UserError as error:
        from foundation.pages import visible  # here: jinja2 takes its time

        print(f"{program}: error: {visible(masked(str(error)))}", file=sys.stderr)
    except BrokenPipeError:  # `lpo-data show DIR | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            raise
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        remedy = "; make room and repeat the command: what is finished stays" if error.errno in _FULL else ""
        print(f"{program}: error: {where}{error.strerror}{remedy}", file=sys.stderr)
    except RuntimeError as error:  # JAX's errors are some
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        remedy = (
            "lower what is computed at once (batch_rows, --rows, lengths), or cut the model over more devices; `lpo plan` says what fits"
        )
        print(f"{program}: error: a device is out of memory ({str(error).splitlines()[0][:200]}): {remedy}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"{program}: error: the package {error.name!r} is missing here; {installing(error.name or '')}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; repeat the command to go on", file=sys.stderr)
        return 130
    return 2
