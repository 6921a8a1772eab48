"""Templates in Jinja, ours and those that come with tokenizers, run as strangers' code: in Jinja's sandbox, with limits of time and size.

What a template may use is what transformers gives it: `messages`, `add_generation_prompt`, the names of special tokens (`bos_token`, ...), `tools`
and `documents` (none), `raise_exception`, `strftime_now`, the filter `tojson`, and the loop controls.
"""

import ctypes
import functools
import json
import re
import threading
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

LIMIT_S = 5.0
"""Within which a template must have written its text."""
COMPILED = "<template>"
"""Where Python believes a template's code to stand."""
MAX_CHARS = 16 * 2**20
"""What a text multiplied by a number may come to, and all that a template writes."""


class TemplateError(ValueError):
    """A template can't be read, refuses what it is given, or takes too long; the message is for whoever gave the template or the text."""


class _TooLong(Exception):  # noqa: N818
    """Raised in a thread from outside."""


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, str | list | tuple) else side for side in (left, right)]
        if operator == "**" or (all(isinstance(size, int) for size in sizes) and abs(sizes[0] * sizes[1]) > MAX_CHARS):
            raise jinja2.TemplateError(f"{operator!r} of numbers or texts that big")
        return super().call_binop(context, operator, left, right)


class _Refused(jinja2.TemplateError):
    """What a template itself says is wrong with what it is given."""


def _refuse(message: str) -> None:
    raise _Refused(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, by which templates mark what an assistant writes: read as its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


@functools.lru_cache(maxsize=16)
def compiled(source: str, strict: bool = False) -> jinja2.Template:
    """A template, ready to be written. `strict`: a name that isn't given is an error (chat templates ask for names to see whether they are).

    Raises:
      TemplateError: it is no Jinja; with the line.
    """
    unknown = jinja2.StrictUndefined if strict else jinja2.Undefined
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, undefined=unknown, extensions=[_Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = _to_json
    env.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        return env.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"line {error.lineno}: {error.message}") from None


def limited(template: jinja2.Template, given: Mapping[str, Any], block: str | None = None) -> str:
    """What a template, or a block of it, writes.

    Raises:
      TemplateError: it refuses, fails, or isn't done within `LIMIT_S`, with the line; or it writes too much, or what is no text.
    """
    found: list[str | Exception] = []

    def work() -> None:
        context, parts = template.new_context(dict(given)), template.root_render_func
        try:
            if block is not None:  # what the template sets beside its blocks, they see: that comes first, without them
                context.blocks = dict.fromkeys(context.blocks, [lambda _: iter(())])
                "".join(parts(context))
                parts = template.blocks[block]
            found.append("".join(parts(context)))
        except Exception as error:  # a stranger's code may raise anything
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT_S if block is None else 1.2 * LIMIT_S)  # a block may hold a chat template, which ends first, and is named
    if thread.is_alive():
        # A thread can't be killed, but the loops of a template are Python's: what is raised in it ends them.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_TooLong))
        raise TemplateError(f"it hasn't written its text within {LIMIT_S:g} s")
    (said,) = found
    if isinstance(said, Exception):
        raise TemplateError(_where(template, said) + (" ".join(str(said).split()) or type(said).__name__)) from None
    if len(said) > MAX_CHARS:
        raise TemplateError(f"it writes {len(said)} characters, more than {MAX_CHARS}")
    if wrong := re.search("[\ud800-\udfff]", said):
        raise TemplateError(f"it writes half a surrogate (U+{ord(wrong[0]):04X}), which no text may hold")
    return said


def _where(template: jinja2.Template, error: Exception) -> str:
    """The template's line that failed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == COMPILED]
    if isinstance(error, _Refused | TemplateError) or not frames:
        return ""
    return f"line {template.get_corresponding_lineno(frames[-1].lineno or 1)}: "


def write(source: str, messages: Sequence[Mapping[str, str]], specials: Mapping[str, Any], goes_on: bool = True) -> str:
    """Messages (role, content) as a tokenizer's chat template writes them; `goes_on`: up to where the assistant's answer begins."""
    given = {"messages": list(messages), "add_generation_prompt": goes_on, "tools": None, "documents": None}
    return limited(compiled(source), dict(specials) | given)
