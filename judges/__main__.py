"""`python -m judges FILE...`: what the judges find in Python files. Exits with 1 where they find something."""

import argparse
import sys
from importlib.util import decode_source
from pathlib import Path

from foundation.errors import UserError, run_command
from judges import TOOLS, available, judge


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m judges", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, help="default: those that can run here")
    parser.add_argument("--noise", action="store_true", help="show the findings of noisy rules too")
    args = parser.parse_args(argv)
    return run_command("python -m judges", lambda: _show(args))


def _show(args: argparse.Namespace) -> int:
    sources = [_read(file) for file in args.files]
    verdicts = judge(sources, args.tools or available(), noise=args.noise, progress=True)
    for file, verdict in zip(args.files, verdicts, strict=True):
        if not verdict.parses:
            print(f"{file}: not Python (as this Python reads it)")
        for tool in verdict.failed:
            print(f"{file}: {tool} gave up")
        for f in verdict.findings:
            print(f"{file}:{f.line}: {f.severity} {f.cwe or 'no CWE'} [{f.judge} {f.rule}] {f.message}")
    return int(any(v.findings for v in verdicts))


def _read(file: Path) -> str:
    """A program's text as Python reads it: with a byte order mark, or the encoding that it declares."""
    try:
        return decode_source(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give files of Python code") from None
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: Python can't read it ({error}); save it as UTF-8, or declare its encoding") from None


if __name__ == "__main__":
    sys.exit(main())
