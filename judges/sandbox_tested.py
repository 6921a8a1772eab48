"""A program and its test in two processes of one sandbox. `sandbox.py` sends this file's text behind `sandbox_child.py`'s; it is never imported.

The tester forks the program before it has read the test, and alone holds standard output, where it says that the test has passed. The program gets
calls, `[name, arguments]`, over one pipe, and answers over another. It can't read the tester's memory: system calls that could are refused, and the
tester is not dumpable. Where the test names what it calls, it runs in the tester, on plain values of Python's own types that come out of the pipe: a
result whose class says that it equals everything is no plain value. Elsewhere the test is sent to the program, when that has been loaded, with a word
that has to come back behind it. There it runs in the program's process, where a program can do with it what it likes: `judges/sandbox.py` says how.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

PASSED = b"passed\n"
OPAQUE = 70
"""The tester's exit code where an argument or a result is no plain value."""
NUMBERS = ("decimal", "Decimal"), ("fractions", "Fraction")
"""Modules and their numbers, which equal Python's own; imported where one comes."""
ITERATORS = [type(x) for x in [(_ for _ in ""), map(str, ""), filter(None, ""), zip(), enumerate(""), reversed([]), *map(iter, ([], (), "", set(), {}))]]  # fmt: skip
"""They come out as what they have left to give, up to `MOST`."""
MOST = 100_000
VIEWS = ("keys", "values", "items")
"""Of dicts."""
compile_, exec_ = compile, exec  # as they were before the program
BUILTINS = __builtins__ if isinstance(__builtins__, dict) else vars(__builtins__)


class OpaqueError(BaseException):
    """Not a plain value; no `except Exception` of a test swallows it."""


class Ended(BaseException):
    """The program's process has ended."""


def pack(value: Any) -> Any:
    """A plain value as JSON that tells Python's types apart; subclasses come out as what they are based on."""
    if value is None or isinstance(value, bool | str):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    for kind, into in (
        (int, lambda v: hex(int(v))),
        (float, lambda v: float.hex(float(v))),
        (complex, lambda v: [float.hex(v.real), float.hex(v.imag)]),
        (bytes, lambda v: bytes(v).hex()),
        (bytearray, lambda v: bytes(v).hex()),
        (tuple, lambda v: [pack(x) for x in tuple(v)]),
        (list, lambda v: [pack(x) for x in list(v)]),
        (frozenset, lambda v: [pack(x) for x in frozenset(v)]),
        (set, lambda v: [pack(x) for x in set(v)]),
        (dict, lambda v: [[pack(k), pack(x)] for k, x in dict(v).items()]),
        (range, lambda v: [pack(v.start), pack(v.stop), pack(v.step)]),
    ):
        if isinstance(value, kind):
            return {kind.__name__: into(value)}
    if (type(value).__module__, type(value).__name__) in NUMBERS:
        return {type(value).__name__: str(value)}
    if type(value) in ITERATORS:
        found = list(itertools.islice(value, MOST + 1))
        if len(found) <= MOST:
            return {"iterator": [pack(x) for x in found]}
    for view in VIEWS:
        if type(value) is type(getattr(dict(), view)()):
            return {view: [pack(x) for x in value]}
    raise OpaqueError(type(value).__name__)


def unpack(value: Any) -> Any:
    """The inverse; anything that isn't of `pack` is refused."""
    if value is None or isinstance(value, bool | str):
        return value
    ((kind, inner),) = value.items()
    if kind == "int":
        return int(inner, 16)
    if kind == "float":
        return float.fromhex(inner)
    if kind == "complex":
        return complex(*map(float.fromhex, inner))
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "bytearray":
        return bytearray.fromhex(inner)
    if kind == "dict":
        return {unpack(k): unpack(x) for k, x in inner}
    if kind == "set":
        return set(frozenset(map(unpack, inner)))  # in the order of a literal, on which some tests build
    if kind == "range":
        return range(*map(unpack, inner))
    if kind == "iterator":
        return iter([unpack(x) for x in inner])
    if kind in VIEWS:
        found = [unpack(x) for x in inner]
        return getattr(dict.fromkeys(found) if kind == "keys" else dict(found) if kind == "items" else dict(enumerate(found)), kind)()
    for module, name in NUMBERS:
        if kind == name:
            return getattr(__import__(module), name)(inner)
    return {"tuple": tuple, "list": list, "frozenset": frozenset}[kind](map(unpack, inner))


def send(fd: int, message: Any) -> None:
    content = json.dumps(message).encode()
    content = len(content).to_bytes(8, "big") + content
    while content:
        content = content[os.write(fd, content) :]


def receive(fd: int, size: int | None = None) -> Any:
    """The next message, or (given a size) so many bytes. Raises Ended where the other side has."""
    wanted, found = 8 if size is None else size, bytearray()
    while len(found) < wanted:
        part = os.read(fd, min(wanted - len(found), 1 << 16))
        if not part:
            raise Ended
        found += part
    if size is not None:
        return found
    return json.loads(receive(fd, int.from_bytes(found, "big")))


def serve(program: str, asks: int, answers: int, before: dict[str, Any]) -> None:
    """The program's process: load it, then do what is asked."""
    module = type(sys)("program")
    module.__file__ = os.path.abspath("main.py")  # `before` may change the working directory
    sys.modules["__main__"] = sys.modules["program"] = module  # pickle, dataclasses and typing look it up by its name
    space = module.__dict__
    kept = {name: __import__(name) for name in before["imports"]}
    kept = {name: getattr(kept[name.partition(".")[0]], name.partition(".")[2]) for name in before["keep"]}
    if before["code"]:
        exec_(compile_(before["code"], "before.py", "exec"), {"__name__": "before"})
    for name in before["modules"]:
        sys.modules[name] = module
    exec_(compile_(program, "main.py", "exec"), space)
    send(answers, ["loaded", sorted(name for name in space if not name.startswith("__"))])
    while True:
        kind, *what = receive(asks)
        if kind == "test":
            space["kept_"] = kept
            exec_(compile_(what[0], "test.py", "exec"), space)
            send(answers, ["done", what[1]])
            continue
        name, args, keywords = what[0], unpack(what[1]), unpack(what[2])
        try:
            value = space[name](*args, **keywords)
            send(answers, ["return", pack(value), plain([args, keywords])])
        except OpaqueError as error:
            send(answers, ["opaque", str(error)])
        except BaseException as error:
            if isinstance(error, SystemExit):
                raise
            raised = [kind.__name__ for kind in type(error).__mro__], str(error)[:2000], plain(error.args)
            send(answers, ["raise", raised, plain([args, keywords])])


def plain(values: Any) -> Any:
    """Values packed; None: one isn't plain."""
    try:
        return pack(values)
    except (OpaqueError, RecursionError):
        return None


def refill(old: Any, new: Any) -> None:
    """What a call has done to its arguments, where they are still plain."""
    if type(old) is not type(new):
        return
    if isinstance(old, tuple):
        for each in zip(old, new, strict=True):
            refill(*each)
    elif isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)


def nearest(names: list[str], text: str, args: Any) -> Exception:
    """The exception that the program raised, or the nearest one of Python's own that it is based on; with its arguments, if they make its text."""
    for name in names:
        known = BUILTINS.get(name)
        if isinstance(known, type) and issubclass(known, Exception):
            try:
                if args is not None and str(error := known(*unpack(args))) == text:
                    return error
            except TypeError:
                pass
            if issubclass(known, UnicodeError | BaseExceptionGroup):
                continue
            return known(text if known is not Exception else f"{names[0]}: {text}")
    return Exception(f"{names[0]}: {text}")


def proxy(name: str, asks: int, answers: int) -> Callable:
    def call(*args: Any, **keywords: Any) -> Any:
        send(asks, ["call", name, pack(args), pack(keywords)])
        kind, *said = receive(answers)
        if kind == "opaque":
            raise OpaqueError(f"{name} returned a {said[0]}")
        if said[1] is not None:
            given, named = unpack(said[1])
            refill(args, given)
            for key, old in keywords.items():
                refill(old, named.get(key))
        if kind == "raise":
            error = nearest(*said[0])
            vars(error)["raised"] = said[0][0][0]  # the name of the program's own class
            raise error
        return unpack(said[0])

    call.__name__ = call.__qualname__ = name
    return call


def one_line(text: str) -> bytes:
    return " ".join(text.split()).encode(errors="replace") + b"\n"


def tested(program: str, size: int, source: int, before: dict[str, Any]) -> None:
    """Run a program and its test; never returns. `source`: where the test's `size` bytes are read from."""
    asks, answers = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        for fd in (source, asks[1], answers[0]):
            os.close(fd)
        os.dup2(2, 1)
        try:
            serve(program, asks[0], answers[1], before)
        except Ended:
            os._exit(0)
    for fd in (asks[0], answers[1]):
        os.close(fd)
    sys.path[:] = [path for path in sys.path if path not in ("", "/tmp", "/tmp/work")]  # what the program has written isn't imported
    verdict = os.dup(1)
    os.dup2(2, 1)  # what the test prints is no verdict
    libc("prctl", 4, 0, 0, 0, 0)  # type: ignore[name-defined]  # noqa: F821  (PR_SET_DUMPABLE)
    test = json.loads(receive(source, size))
    try:
        kind, defined = receive(answers[0])
        if test["names"]:
            if missing := [name for name in test["names"] if name not in defined]:
                print(f"the program defines no {missing[0]}", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)
            space = {"__name__": "test", "report_": lambda text: os.write(verdict, one_line(text))}
            if test["given"]:
                exec_(compile_(test["given"], "given.py", "exec"), space)
            functions = {name: proxy(name, asks[1], answers[0]) for name in test["names"]}
            space.update(functions)
            for name in before["modules"]:
                sys.modules[name] = type(sys)(name)
                sys.modules[name].__dict__.update(functions)
            exec_(compile_(test["code"], "test.py", "exec"), space)
        else:
            word = os.urandom(16).hex()
            send(asks[1], ["test", test["code"], word])
            if receive(answers[0]) != ["done", word]:
                raise Ended
        os.write(verdict, PASSED)
        os._exit(0)
    except (Ended, BrokenPipeError):
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            print("ended before its tests did", file=sys.stderr)
        os._exit(128 - code if code < 0 else 1 if code in (0, OPAQUE) else code)
    except OpaqueError as error:
        print(f"not a plain value: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(OPAQUE)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
