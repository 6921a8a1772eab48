"""Programs made of commands, as `lpo train` and `lpo-data build` are: how each is added, and how its errors are told."""

import argparse
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from foundation.errors import UserError, nearest, run_command

_HOME = re.compile(r"^((?:[\w.-]+=)?)~/")
"""Shells expand `--model ~/x`, but neither `--model=~/x` nor `run_dir=~/x`."""

_ELSEWHERE = ContextVar("_ELSEWHERE", default=False)
"""Whether what is parsed will run where other directories are."""


class Program:
    """A program's parser. `command` adds a command to it, and `run` runs the one that is asked for.

    What --help says may be a docstring: its lines stay as they are, and examples at its end, under "examples:", go behind the arguments.
    """

    def __init__(self, name: str, about: str | None):
        self.name = name
        self._parser = Parser(name, **_help(about))
        self._parser.add_argument("--version", action=_Tell, tell=_version, help="show which version this is, and exit")
        self._parser.add_argument("--completion", action=_Tell, tell=_completion, choices=("bash", "zsh", "tcsh"), help="print a shell's completions of all commands and options, and exit")  # fmt: skip
        self._commands = self._parser.add_subparsers(required=True, metavar="COMMAND")

    def command(self, name: str, short: str, about: str | None, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        """A command's own parser, to add arguments to.

        Args:
          short: what it does, in a few words.
          about: what its --help says.
          run: arguments -> exit code.
        """
        parser = self._commands.add_parser(name, help=short, **_help(about))
        parser.set_defaults(run=run)
        return parser

    @property
    def commands(self) -> dict[str, argparse.ArgumentParser]:
        """Each command's parser, by name."""
        return dict(self._commands.choices)

    def parse(self, argv: Sequence[str] | None, elsewhere: bool = False) -> argparse.Namespace:
        """What the arguments say; `run` among it is what runs the command.

        Args:
          elsewhere: it will run where other directories are than here.

        Raises:
          UserError: they are wrong.
        """
        words = sys.argv[1:] if argv is None else argv
        before = _ELSEWHERE.set(elsewhere)
        try:
            return self._parser.parse_args([_HOME.sub(lambda found: f"{found[1]}{Path.home()}/", word) for word in words])
        finally:
            _ELSEWHERE.reset(before)

    def run(self, argv: Sequence[str] | None) -> int:
        """The exit code; what a user can mend is told on stderr."""

        def parse_and_run() -> int:
            args = self.parse(argv)
            return args.run(args)

        return run_command(self.name, parse_and_run)


class _Tell(argparse.Action):
    """Prints something instead of running a command; found out only when it is asked for."""

    def __init__(self, option_strings: list[str], dest: str, tell: Callable[[argparse.ArgumentParser, Any], str], **about: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=None if "choices" in about else 0, **about)
        self._tell = tell

    def __call__(self, parser: argparse.ArgumentParser, _: argparse.Namespace, value: Any, option: str | None = None) -> None:
        print(self._tell(parser, value))
        parser.exit()


def version_of(package: str) -> str | None:
    """Of an installed package; None: it isn't installed. Ours stands in pyproject.toml alone."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _version(parser: argparse.ArgumentParser, _: Any) -> str:
    return f"{parser.prog} {version_of('lpo-jax') or 'from a clone'}"


def _completion(parser: argparse.ArgumentParser, shell: str) -> str:
    import shtab

    return shtab.complete(parser, shell)


class Parser(argparse.ArgumentParser):
    """As argparse's, but options are written in full: an abbreviation would mean another option one day. What is wrong is a `UserError` of one line."""

    _inside = False

    def __init__(self, *args: Any, **about: Any):
        super().__init__(*args, **about | {"allow_abbrev": False})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but a command's own parser takes options and other arguments in any order, as `CONFIG -o OUT key=value`, and refuses what it
        doesn't know: it knows what may have been meant. That is said first: with `--modle X` the --model is missing, too."""
        alone = self._subparsers is None and all(
            action.nargs != argparse.REMAINDER for action in self._actions
        )  # else another parser reads what follows
        if args and alone and not self._inside:
            options = [
                word.partition("=")[0] for word in takewhile(lambda word: word != "--", args) if word.startswith("--") and " " not in word
            ]
            if strange := next((name for name in options if name not in self._option_string_actions), None):
                self.error(f"unrecognized arguments: {strange}{meant(strange, self._option_string_actions)}")
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and alone and not self._inside:
            self._inside = True  # what follows calls this method again
            try:
                found, unknown = self.parse_known_intermixed_args(args, namespace)
            finally:
                self._inside = False
        if unknown and not self._inside:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant(unknown[0].partition('=')[0], self._option_string_actions)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """What is wrong, without the usage of twenty arguments in front."""
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += meant(choice[1], re.findall(r"[^', ]+", choice[2]))
        raise UserError(f"{message}; `{self.prog} --help` explains")


def meant(given: str, valid: Iterable[str]) -> str:
    """ ": did you mean 'X'?", if something valid is near; else nothing."""
    near = nearest(given, valid)
    return f": did you mean {near!r}?" if near else ""


def choices(given: str, valid: Sequence[str]) -> str:
    """What stands behind a name that there isn't: the one that may have been `meant`, else all."""
    return meant(given, valid) or f"; choose from {', '.join(valid)}"


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A type of arguments: whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} must lie in {least} .. {most}")
        return value

    return read


def number(least: float = 0.0, most: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """A type of arguments: finite numbers from `least` (`above` it) to `most`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not math.isfinite(value) or not least <= value <= most or (above and value == least):
            upper = "" if math.isinf(most) else f" and at most {most:g}"
            raise argparse.ArgumentTypeError(f"{text} must be {'above' if above else 'at least'} {least:g}{upper}")
        return value

    return read


def new_file(text: str) -> Path:
    """A type of arguments: a file to write, or to write anew, in a directory that is there. Devices and pipes can't be: a file would take their place."""
    path = _named(text)
    if path.is_dir() or text.endswith("/"):
        raise argparse.ArgumentTypeError(f"{text} is a directory; name a file")
    if path.exists() and not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is a device or a pipe; name a file")
    found = _writable(path, path.parent)
    if not path.parent.exists() and not _ELSEWHERE.get():  # whoever mistypes it would look for the file elsewhere
        raise argparse.ArgumentTypeError(f"{text}: there is no directory {path.parent}; make it, or name another")
    return found


def new_page(text: str) -> Path:
    """A type of arguments: a page to write, which takes the place of an earlier page, and of nothing else: what is read stays."""
    path = new_file(text)
    if path.exists():
        with path.open("rb") as file:
            start = file.read(9)
        if start and start.lower() != b"<!doctype":
            raise argparse.ArgumentTypeError(f"{text} holds something else than a page; name another file")
    return path


def new_directory(text: str) -> Path:
    """A type of arguments: a directory to write to, which may be there; else it is made, and those above it."""
    path = _named(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; name a directory")
    return _writable(path, path)


def _named(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no name: say where to")
    return Path(text).expanduser()


def _writable(path: Path, directory: Path) -> Path:
    """`path`, if `directory` can be written, or made, also by libraries that know names in UTF-8 only."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
        raise argparse.ArgumentTypeError(f"{path} isn't UTF-8; choose another name")
    there = next(d for d in (directory, *directory.absolute().parents) if d.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{path} can't be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{path} can't be written: {there} is read-only for this user")
    return path


def _help(about: str | None) -> dict[str, Any]:
    description, heading, examples = inspect.cleandoc(about or "").partition("\nexamples:\n")
    return {"description": description, "epilog": heading + examples, "formatter_class": argparse.RawDescriptionHelpFormatter}
