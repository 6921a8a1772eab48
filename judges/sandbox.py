"""Runs generated Python programs where they can do no harm (Linux).

Each program runs in namespaces of its own (process, mount, network, IPC, host name; and user, unless we are root: then it becomes a user id that owns
nothing), made by bubblewrap where it is installed, else by util-linux' `unshare`. It sees a read-only /usr and Python, a small private /tmp, no
network but its own loopback, no /proc, nothing of the user's files or environment. A system call filter (x86_64, aarch64) refuses further namespaces, mounts,
tracing, sockets that aren't Unix, TCP, UDP or route netlink, and calls that hold memory which no limit counts: vmsplice, splice, tee, sendfile, System V IPC, memfd,
io_uring, aio, inotify, landlock, keys, larger pipes and socket buffers. Both back ends hold the same limits. Where neither works, `run` refuses unless told to go unprotected.

What the kernel holds for a program is bounded, not counted in `memory_mb`; for 32 processes:

- 4,096 files and names in /tmp: 4 MB, beside `file_mb`. 64 descriptors a process: 64 MB in pipes.
- 256 sockets, open or not: 128 MB (256 KB each way of TCP's; Unix and UDP sockets have the machine's net.core.{r,w}mem_default, mostly 208 KB). Where
  TCP's buffers can't be made small (/proc/sys is read-only), there are no Internet sockets at all.
- some 10,000 mappings a process: 85 MB. Page tables count as memory.
- file locks, 0.2 KB each: as many as the processor time allows, since each looks through all others of its file; 180,000 in 8 s on two cores, 35 MB.

Sockets, mappings and the memory of all processes together are watched twenty times a second: they may pass their limits for that long.

Not contained: faults of the kernel itself; its caches, which it gives up when it needs memory (names that were looked up: 30 MB a second); processor time of the
machine while a case runs (each process has `cpu_s`, all have `time_s`). Hostile models deserve a virtual machine around it all.

A program can make its own verdict look bad, and without a test it can exit with 0. With a test whose `names` it calls, nothing is known by which it could pass
unless it is right (tests/whole/test_forged_passes.py tries). Where the test runs in the program's process (no `names`: tests of objects, `lpo-data check`), these are left, each in
the same file under `LEFT`:

- a result whose class equals everything (`__eq__`; also a subclass of str, list or float), or that gives itself out for another class (`__class__`);
- to go through the frames of its callers (`sys._getframe`; likewise gc or ctypes) to the word that says "done", and to answer with it;
- to change the test's tools, such as pytest's way to run a function, or what the test's code is made of.

`evaluation.audit` marks programs that reach for these. `unsafe_exec` contains nothing: a program can read and say what it likes.
"""

import functools
import json
import os
import re
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from foundation.errors import UserError

PASSED, OPAQUE = "passed\n", 70  # what `sandbox_tested.py` says
READY = b"\x06"  # the child's first byte: the sandbox stands, the program begins
SOCKETS, MAPPINGS_BYTES = 256, 1 << 19  # of all processes; of a process's list in /proc: some 5,000 to 10,000 lines
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache")
DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]
# What a program gets to see when the sandbox said no, by errno (negative: name resolution).
DENIED = dict.fromkeys((-3, -2, 97, 101, 111), "network")
DENIED |= {1: "not permitted", 13: "no access", 27: "file too large", 28: "disk full", 30: "read-only"}
# The program's environment is ours alone: nothing is inherited. A fixed hash seed makes the order of sets repeatable.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "USER": "sandbox", "LANG": "C.UTF-8"}
ENVIRONMENT |= {"PYTHONUTF8": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
ENVIRONMENT |= {
    "MALLOC_ARENA_MAX": "1"
}  # else glibc reserves 64 MB of address space for each of the first threads, and `memory_mb` is full


class SandboxError(UserError):
    """The sandbox itself, not the program, failed."""


@dataclass(frozen=True)
class Limits:
    """`time_s` is wall time; `cpu_s` and address space `memory_mb` hold for each process, and `memory_mb` also for the resident memory of all; `file_mb` is the size
    of the private disk; `output_kb` of each of stdout and stderr."""

    time_s: float = 10
    cpu_s: int = 10
    memory_mb: int = 512
    pids: int = 32
    file_mb: int = 16
    output_kb: int = 64


@dataclass(frozen=True)
class Test:
    """What a program is held against: code that raises where it fails. The program can't read it, nor say that it has passed.

    With `names` it runs in a process of its own, in which `given` has run, and these functions are the program's: arguments and results are plain
    values. An exception's `raised` is the name of its class in the program, and `report_(text)` adds to `Result.reports`. A program that lacks one of
    the names fails. Without `names`, the test runs in the program's process and namespace, behind it.
    """

    __test__ = False  # pytest

    code: str
    names: tuple[str, ...] = ()
    given: str = ""
    before: str = ""  # code that runs in the program's process in front of it
    keep: tuple[str, ...] = ()  # "pytest.main": as it was before the program, in `kept_`
    modules: tuple[str, ...] = ()  # names by which the program can be imported


@dataclass(frozen=True)
class Case:
    """A program (`main.py` of its working directory) and the files beside it; `packages`: it may import what is installed with our own Python.

    Without a test it passes if it exits with 0.
    """

    code: str
    files: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()
    packages: bool = False
    test: Test | None = None


@dataclass(frozen=True)
class Result:
    """`outcome`: pass (exit 0), fail (an exception, another exit code), timeout, crash (a signal, out of memory, too many processes, too much output),
    blocked (it ended with an error by which the sandbox refused something)."""

    outcome: str
    detail: str
    stdout: str
    stderr: str
    seconds: float
    opaque: bool = False  # its test runs apart, and met a value that isn't plain
    reports: tuple[str, ...] = ()  # what its test has said as it ran


def _command(backend: str, case: Case, files: Mapping[str, bytes]) -> list[str]:
    prefixes = {sys.base_prefix} | ({sys.prefix} if case.packages else set())
    prefixes |= set(map(os.path.realpath, prefixes))  # a .venv may be a link
    links = {p: os.readlink(p) for p in SYSTEM if os.path.islink(p)}  # /lib, of usr/lib
    system = [p for p in SYSTEM if os.path.exists(p)]
    binds = [p for p in system if p not in links]
    binds += sorted(p for p in prefixes if not any(Path(p).is_relative_to(b) for b in system))
    root = os.geteuid() == 0
    config = {
        "backend": backend,
        # A user id of its own owns nothing and shares its count of processes with nobody.
        "uid": secrets.randbelow(1 << 29) + (1 << 29) if root and backend != "none" else None,
        "root": {},
        "limits": asdict(case.limits),
        "files": [(name, len(content)) for name, content in files.items()],
    }
    command: list[str] = []
    if backend == "bwrap":
        apart = [f"--unshare-{kind}" for kind in ("pid", "net", "ipc", "uts")]
        command = ["bwrap", "--die-with-parent", "--new-session", *apart, "--cap-drop", "ALL"]
        # The child gives these up before the program begins.
        for capability in ("SETUID", "SETGID", "SYS_ADMIN", "NET_ADMIN") if root else ("SYS_ADMIN", "NET_ADMIN"):
            command += ["--cap-add", f"CAP_{capability}"]
        command += [] if root else ["--unshare-user"]
        # In front of the binds: our Python may lie in there.
        command += ["--perms", "1777", "--tmpfs", "/tmp", "--bind-try", "/proc/sys/net", "/tmp/net"]
        # Directories on the way to a bind are its owner's alone unless they are made first.
        for parent in sorted({str(d) for p in [*binds, *DEVICES] for d in Path(p).parents} - {"/", "/tmp"}):
            command += [] if any(Path(parent).is_relative_to(b) for b in binds) else ["--perms", "0755", "--dir", parent]
        for path in binds:
            command += ["--ro-bind", path, path]
        for path, target in links.items():
            command += ["--symlink", target, path]
        for path in DEVICES:
            command += ["--dev-bind", path, path]
        command += ["--symlink", "/tmp", "/dev/shm", "--remount-ro", "/", "--"]
    elif backend == "unshare":
        covers = [d for d in ("/tmp", "/mnt", "/var", "/run") if os.path.isdir(d) and not any(Path(p).is_relative_to(d) for p in binds)]
        config["root"] = {"base": covers[0], "binds": binds, "links": links, "devices": DEVICES}
        command = ["unshare", *([] if root else ["--user", "--map-root-user"])]
        command += ["--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts", "--"]
    here, parts = Path(__file__), ["sandbox_child.py"]
    if case.test is not None:
        parts.append("sandbox_tested.py")
        imports = sorted({name.partition(".")[0] for name in case.test.keep})
        config["before"] = {"imports": imports, "keep": case.test.keep, "code": case.test.before, "modules": case.test.modules}
        config["test"] = len(_sent(case.test))
    script = "".join(here.with_name(part).read_text() for part in parts) + f"\nmain(**{config!r})\n"
    python = [sys.executable] if case.packages else [os.path.realpath(sys.executable), "-S"]
    return [*command, *python, "-s", "-c", script]


def _sent(test: Test) -> bytes:
    return json.dumps({"code": test.code, "names": test.names, "given": test.given}).encode()


def _held(pid: int, apart: bool) -> tuple[float, int, int]:
    """(MB of memory and page tables, bytes of the longest list of mappings, sockets) of a process and its descendants.

    Shared pages count once (by Pss) where the kernel tells us. `apart`: the descendants have a network namespace of their own, whose sockets count,
    closed ones that hold data too.
    """
    total, longest, sockets, todo = 0, 0, 0, [pid]
    while todo:
        number = todo.pop()
        process = Path(f"/proc/{number}")
        try:
            for task in (process / "task").iterdir():
                todo += map(int, (task / "children").read_text().split())
            if apart and number != pid:
                used = re.search(r"^sockets: used (\d+)", (process / "net/sockstat").read_text())
                sockets = max(sockets, int(used[1]) if used else 0)
            with (process / "maps").open("rb") as file:  # bubblewrap's and unshare's own are short
                longest = max(longest, len(file.read(MAPPINGS_BYTES + 1)))
            sizes = (process / "smaps_rollup").read_text() + (process / "status").read_text()
            total += sum(map(int, re.findall(r"^(?:Pss|VmPTE):\s+(\d+)", sizes, re.M)))
        except OSError:  # it has ended, or the kernel keeps this to itself
            continue
    return total / 1024, longest, sockets


def _too_much(pid: int, apart: bool, limits: Limits) -> str:
    """Why a case has to stop, or ""."""
    memory, mappings, sockets = _held(pid, apart)
    if memory > limits.memory_mb:
        return f"out of memory ({limits.memory_mb} MB together)"
    if mappings > MAPPINGS_BYTES:
        return "too many memory mappings"
    return f"more than {SOCKETS} sockets" if sockets > SOCKETS else ""


def _verdict(code: int, stderr: str, limits: Limits) -> tuple[str, str]:
    if code == 0:
        return "pass", ""
    last = (stderr.strip().splitlines() or [""])[-1][:300]
    if code >= 128 or code < 0:
        number = -code if code < 0 else code - 128
        if number == signal.SIGXCPU:
            return "timeout", f"more than {limits.cpu_s} s of processor time"
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return "crash", f"killed by {name}"
    if last.startswith("MemoryError") or "[Errno 12]" in last:
        return "crash", f"out of memory ({limits.memory_mb} MB)"
    # Of many processes the last lines of stderr are anybody's.
    if any("[Errno 11] Resource temporarily unavailable" in x or "can't start new thread" in x for x in stderr.splitlines()[-50:]):
        return "crash", f"too many processes ({limits.pids})"
    if (found := re.search(r"\[Errno (-?\d+)\]", last)) and int(found[1]) in DENIED:
        return "blocked", f"{DENIED[int(found[1])]}: {last}"
    return "fail", last or f"exit code {code}"


def _run(case: Case, backend: str) -> Result:
    if "main.py" in case.files:
        raise ValueError("Case.files has a main.py: that is where Case.code goes; rename it")
    files = {name: text.encode(errors="replace") for name, text in {"main.py": case.code, **case.files}.items()}
    command, limits = _command(backend, case, files), case.limits
    cap = limits.output_kb << 10
    with tempfile.TemporaryDirectory() if backend == "none" else nullcontext("/") as cwd:
        started = time.monotonic()
        proc = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, env=ENVIRONMENT, cwd=cwd, start_new_session=True, bufsize=0)
        assert proc.stdin and proc.stdout and proc.stderr
        pidfd = os.pidfd_open(proc.pid)
        output = {proc.stdout: bytearray(), proc.stderr: bytearray()}
        stopped: tuple[str, str] | None = None
        ready = ended = False
        try:
            os.set_blocking(proc.stdin.fileno(), False)  # a program may keep its tester from reading
            unsent = memoryview(b"".join(files.values()) + (b"" if case.test is None else _sent(case.test)))
            with selectors.DefaultSelector() as selector:
                selector.register(proc.stdin, selectors.EVENT_WRITE)
                for source in (proc.stdout, proc.stderr, pidfd):
                    selector.register(source, selectors.EVENT_READ)
                deadline, watch = started + 60, started + 0.2
                while selector.get_map():
                    events = selector.select(max(0.0, min(deadline, watch) - time.monotonic()))
                    now = time.monotonic()
                    for key, _ in events:
                        if key.fileobj == pidfd:
                            ended = True
                            os.killpg(proc.pid, signal.SIGKILL)  # it isn't reaped yet, so the number is still its own
                            selector.unregister(pidfd)
                            unsent = unsent[:0]
                            deadline = min(deadline, now + 5) if ready else deadline
                        elif key.fileobj == proc.stdin:
                            try:
                                unsent = unsent[os.write(key.fd, unsent[: 1 << 16]) :]
                            except BrokenPipeError:  # then it never began, and stderr says why, below
                                unsent = unsent[:0]
                        elif data := os.read(key.fd, 1 << 16):
                            buffer = output[key.fileobj]  # type: ignore[index]
                            buffer += data
                            if not ready and output[proc.stdout].startswith(READY):
                                ready, started, deadline, watch = True, now, now + limits.time_s, now + 0.05
                            if len(buffer) > cap + 1 and ready:
                                stopped = stopped or ("crash", f"more than {limits.output_kb} KB of output")
                        else:
                            selector.unregister(key.fileobj)
                    if not unsent and not proc.stdin.closed:
                        selector.unregister(proc.stdin)
                        proc.stdin.close()
                    if stopped is None and now >= deadline and not ended:
                        stopped = ("timeout", f"more than {limits.time_s:g} s")
                    if stopped is None and now >= watch:
                        watch = now + 0.05
                        if not ended and (why := _too_much(proc.pid, backend != "none", limits)):
                            stopped = ("crash", why)
                    if stopped or (ended and now >= deadline):
                        break
        finally:
            os.killpg(proc.pid, signal.SIGKILL)
            proc.wait()
            os.close(pidfd)
            proc.stdin.close()
            proc.stdout.close()
            proc.stderr.close()
        seconds = time.monotonic() - started
    stdout, stderr = (bytes(b[: cap + 1]).decode(errors="replace") for b in output.values())
    if not ready:
        raise SandboxError(f"the sandbox ({backend}) did not start: {stderr.strip()[-500:] or stopped}")
    outcome, detail = stopped or _verdict(proc.returncode, stderr, limits)
    if case.test is None:
        return Result(outcome, detail, stdout[1:], stderr, seconds)
    said = stdout[1:].removesuffix(PASSED)  # by the test's reports; nobody but the tester writes there
    if outcome == "pass" and (said == stdout[1:] or (said and not case.test.names)):
        outcome, detail = "fail", "ended before its tests did"
    opaque = proc.returncode == OPAQUE and stopped is None
    reports = tuple(said.splitlines()) if case.test.names else ()
    return Result(outcome, detail, stdout[1:], stderr, seconds, opaque, reports)


REMEDY = (
    "install bubblewrap (apt install bubblewrap) or allow unprivileged user namespaces on Linux 5.14 or newer "
    "(Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
)
"""What to do where no back end works."""


@functools.cache
def backends() -> tuple[str, ...]:
    """The back ends that work on this machine, the preferred one first."""

    def works(backend: str) -> bool:
        if not sys.platform.startswith("linux") or not shutil.which(backend, path="/usr/bin:/bin:/usr/sbin"):
            return False
        try:
            return _run(Case(""), backend).outcome == "pass"
        except SandboxError:
            return False

    return tuple(filter(works, ("bwrap", "unshare")))


def run(case: Case, *, backend: str | None = None, unsafe_exec: bool = False) -> Result:
    """Runs one program. Raises SandboxError where no back end works, unless `unsafe_exec`: then it runs in a temporary directory with limits and no walls."""
    if backend is None and not backends() and not unsafe_exec:
        raise SandboxError(f"no sandbox on this machine: {REMEDY}; --unsafe-exec runs generated programs without protection, as you")
    return _run(case, backend or (backends() or ("none",))[0])


def run_many(
    cases: Iterable[Case], workers: int | None = None, *, backend: str | None = None, unsafe_exec: bool = False
) -> Iterator[Result]:
    """Results in the order of `cases`, `workers` at a time (default: one a processor); reads only a little ahead."""
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        for case in cases:
            waiting.append(pool.submit(run, case, backend=backend, unsafe_exec=unsafe_exec))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
