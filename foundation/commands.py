"""Programs made of commands, as `lpo train` and `lpo-data build` are: how each is added, and how its errors are told."""

import argparse
from collections.abc import Callable, Sequence

from foundation.errors import run_command


class Program:
    """A program's parser. `command` adds a command to it, and `run` runs the one that is asked for."""

    def __init__(self, name: str, about: str, examples: str | None = None):
        self._name = name
        self._parser = argparse.ArgumentParser(
            name, description=about, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self._commands = self._parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        self, name: str, short: str, about: str, run: Callable[[argparse.Namespace], int], examples: str | None = None
    ) -> argparse.ArgumentParser:
        """A command's own parser, to add arguments to.

        Args:
          short: what it does, in a few words.
          about: what its --help says in front of the arguments; line breaks stay.
          run: arguments -> exit code.
        """
        parser = self._commands.add_parser(
            name, help=short, description=about, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.set_defaults(run=run)
        return parser

    def run(self, argv: Sequence[str] | None) -> int:
        """The exit code; what a user can mend is told on stderr."""
        args = self._parser.parse_args(argv)
        return run_command(self._name, lambda: args.run(args))
