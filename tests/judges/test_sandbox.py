"""Attacks on the sandbox, through every back end of this machine: each contained, reported as what it is, the host untouched."""

import ast
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from judges import sandbox
from judges.sandbox import Case, Limits, SandboxError, run, run_many
from tests.helpers.paths import REPO


def test_this_machine_has_a_sandbox():
    assert sandbox.backends(), (
        "no back end works here: install bubblewrap, or allow unprivileged user namespaces; the attacks below were not tested"
    )


def running(marker):
    """Processes of this machine whose command line holds `marker`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path] if marker.encode() in path.read_bytes() else []
        except OSError:
            continue
    return found


def test_plain_outcomes(attack):
    assert attack("print('hello')").stdout == "hello\n"
    assert attack("exit(0)").outcome == "pass"
    failed = attack("assert 1 == 2, 'wrong'")
    assert (failed.outcome, failed.detail) == ("fail", "AssertionError: wrong")
    assert attack("raise SystemExit(3)").detail == "exit code 3"
    assert attack("def f(:").outcome == "fail"
    assert attack("raise PermissionError('the program says no')").outcome == "fail"
    crashed = attack("import os; os.abort()")
    assert (crashed.outcome, crashed.detail) == ("crash", "killed by SIGABRT")


def test_fork_bomb(attack):
    result = attack("import os\nwhile True: os.fork()")
    assert (result.outcome, result.detail) == ("crash", "too many processes (16)")


def test_fork_bomb_that_shrugs_off_errors(attack):
    assert attack("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n# bomb-7261", time_s=2).outcome == "timeout"
    assert run(Case("print(1)")).outcome == "pass"


def test_thread_bomb(attack):
    result = attack("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()")
    assert result.outcome == "crash"


def test_memory_bomb(attack):
    result = attack("x = []\nwhile True: x.append(bytearray(1 << 20))")
    assert (result.outcome, result.detail) == ("crash", "out of memory (128 MB)")


def test_memory_bomb_of_many_processes(attack):
    result = attack("import os, time\nfor _ in range(3): os.fork()\nx = b'x' * (60 << 20)\ntime.sleep(15)")
    assert (result.outcome, result.detail) == ("crash", "out of memory (128 MB together)")


def test_memory_that_no_limit_counts(attack):
    assert attack("import os\nos.memfd_create('x')").outcome == "blocked"


def test_disk_filler(attack):
    result = attack("for i in range(99):\n    with open(f'/tmp/{i}', 'wb') as f: f.write(bytes(1 << 20))")
    assert result.outcome == "blocked" and "disk full" in result.detail
    result = attack("with open('big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))")
    assert result.outcome == "blocked" and ("disk full" in result.detail or "file too large" in result.detail)


def test_infinite_output(attack):
    for stream in ("stdout", "stderr"):
        result = attack(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)")
        assert (result.outcome, result.detail) == ("crash", "more than 64 KB of output")
        assert len(result.stdout) + len(result.stderr) <= 130 << 10


def test_infinite_loop(attack):
    result = attack("while True: pass", time_s=1)
    assert (result.outcome, result.detail) == ("timeout", "more than 1 s")
    assert attack("while True: pass", cpu_s=1, time_s=60).detail == "more than 1 s of processor time"
    assert attack("import time; time.sleep(99)", time_s=1).outcome == "timeout"


def test_network(attack):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        result = attack(f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)")
        assert result.outcome == "blocked" and result.detail.startswith("network")
        with pytest.raises(TimeoutError):
            server.accept()
    assert attack("import socket\nsocket.create_connection(('192.0.2.1', 80), 5)").outcome == "blocked"
    assert attack("import urllib.request\nurllib.request.urlopen('http://example.org')").outcome == "blocked"


def test_writing_outside(attack, tmp_path):
    outside = tmp_path / "victim"
    outside.write_text("intact")
    for path in ("/usr/planted", "/planted", "/dev/planted", os.__file__, sys.executable):
        assert attack(f"open({path!r}, 'a')").outcome in {"blocked", "fail"}, path
        assert path in {os.__file__, sys.executable} or not Path(path).exists()
    assert attack("open('/usr/planted', 'w')").outcome == "blocked"
    assert attack(f"open({str(outside)!r}, 'w').write('gone')").outcome == "fail"  # there is no such directory in there
    assert outside.read_text() == "intact"


def test_reading_secrets(attack, tmp_path, monkeypatch):
    monkeypatch.setenv("API_KEY", "sesame-4711")
    (tmp_path / "key").write_text("sesame-4711")
    code = "\n".join(
        [
            "import os, glob",
            "print(dict(os.environ))",
            f"paths = [{str(tmp_path / 'key')!r}, {str(Path.home())!r}, '/etc/shadow', '/etc/passwd', *glob.glob('/proc/*/environ')]",
            "for path in paths:",
            "    try: print(open(path).read())",
            "    except OSError as e: print(path, e)",
            f"print(glob.glob({str(Path.home())!r} + '/.*'))",
        ]
    )
    result = attack(code)
    assert result.outcome == "pass"
    assert "sesame" not in result.stdout + result.stderr and "root:" not in result.stdout and "'API_KEY'" not in result.stdout
    assert "/.ssh" not in result.stdout


def test_killing_its_parent(attack):
    result = attack("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nprint('on')")
    assert result.outcome in {"blocked", "pass"}  # not permitted, or without effect: a namespace's first process is immune from inside
    assert attack(f"import os\nos.kill({os.getpid()}, 9)").outcome in {"fail", "crash"}  # nobody has our number in there
    assert attack("import os\nos.kill(-1, 9)\nprint('alone')").outcome in {"blocked", "pass", "fail", "crash"}
    assert run(Case("print(1)")).outcome == "pass"


def test_deleting_the_working_directory(attack):
    before = sorted(os.listdir("."))
    result = attack("import os, shutil\nshutil.rmtree(os.getcwd())\nprint(os.path.exists('/tmp/work'))")
    assert (result.outcome, result.stdout) == ("pass", "False\n")
    assert attack("import shutil\nshutil.rmtree('/')").outcome == "blocked"
    assert sorted(os.listdir(".")) == before and Path("/usr/bin/env").exists()


def test_symlinks(attack, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("intact")
    code = f"import os\nos.symlink({str(victim)!r}, 'link')\nopen('link', 'w').write('gone')"
    assert attack(code).outcome == "fail"
    assert attack("import os\nos.symlink('/usr/planted', 'link')\nopen('link', 'w')").outcome == "blocked"
    assert attack("import os\nos.link('/usr/bin/env', 'hard')").outcome in {"blocked", "fail"}
    assert victim.read_text() == "intact" and not Path("/usr/planted").exists()


def test_daemon(attack):
    code = "\n".join(
        [
            "import os, sys",
            "if os.fork() == 0:",
            "    os.setsid()",
            "    if os.fork() == 0:",
            "        os.execv(sys.executable, [sys.executable, '-S', '-c', 'import time; time.sleep(600) # daemon-9153'])",
            "    os._exit(0)",
            "os.wait()",
            "import time; time.sleep(0.5)",
        ]
    )
    started = time.monotonic()
    assert attack(code).outcome == "pass"
    assert time.monotonic() - started < 300  # its open output doesn't hold us up
    assert gone("time.sleep(600) # daemon-9153")


def test_new_namespaces_and_mounts(attack):
    code = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.{} == -1\nraise OSError(ctypes.get_errno(), 'refused')"
    for call in (
        "unshare(0x10000000)",
        "mount(b'x', b'/tmp', b'tmpfs', 0, None)",
        "shmget(0, 1 << 20, 0o1600)",
        "ptrace(16, 1, 0, 0)",
        "chroot(b'/tmp')",
    ):
        assert attack(code.format(call)).outcome == "blocked", call


def test_hidden_machine(attack):
    result = attack("import os\nprint(sorted(os.listdir('/')))")
    assert not {"proc", "sys", "home", "var", "boot"} & set(ast.literal_eval(result.stdout))


def test_files_and_order_of_many():
    cases = [
        Case(f"import helper\nprint(helper.f({i}), open('data/x.txt').read())", {"helper.py": "f = lambda i: i * i", "data/x.txt": "ü"})
        for i in range(9)
    ]
    assert [r.stdout for r in run_many(iter(cases), 3)] == [f"{i * i} ü\n" for i in range(9)]
    with pytest.raises(ValueError, match=r"main\.py"):
        run(Case("", {"main.py": ""}))


def test_packages_are_there_when_asked_for():
    code = "import importlib.util as u\nprint(u.find_spec('pytest') is not None)"
    assert run(Case(code)).stdout == "False\n"
    assert run(Case(code, packages=True)).stdout == "True\n"


def test_refuses_without_a_back_end(monkeypatch):
    monkeypatch.setattr(sandbox, "backends", tuple)
    with pytest.raises(SandboxError, match="--unsafe-exec"):
        run(Case("print(1)"))
    assert run(Case("print(1)"), unsafe_exec=True).stdout == "1\n"
    assert run(Case("while True: pass", limits=Limits(time_s=1)), unsafe_exec=True).outcome == "timeout"
    assert "API" not in run(Case("import os; print(dict(os.environ))"), unsafe_exec=True).stdout


def test_a_broken_back_end_is_not_a_verdict(backend, monkeypatch):
    monkeypatch.setattr(sandbox, "DEVICES", ["/dev/no-such-device"])
    with pytest.raises(SandboxError, match="did not start"):
        run(Case("print(1)"), backend=backend)


def gone(marker):
    """Whether no process with `marker` is left, within ten seconds of waiting."""
    for _ in range(100):
        if not running(marker):
            return True
        time.sleep(0.1)
    return False


def test_ends_with_its_caller(backend):
    """A killed evaluation leaves nothing behind (under unshare the sandbox's own alarm sees to it, five seconds after the limit)."""
    inner = "import os, sys; os.execv(sys.executable, [sys.executable, '-S', '-c', 'import time; time.sleep(500) # orphan-3307'])"
    code = f"from judges.sandbox import *\nrun(Case({inner!r}, limits=Limits(time_s=3)), backend={backend!r})"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=REPO)
    for _ in range(200):
        if running("orphan-3307") and any(
            b"-S" in p.read_bytes() and b"main(" not in p.read_bytes() for p in running("sleep(500) # orphan-3307")
        ):
            break
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    assert gone("time.sleep(500) # orphan-3307")


def test_harmless_devices(attack):
    code = "import os, subprocess\nsubprocess.run(['true'], stdin=subprocess.DEVNULL, check=True)\nassert len(open('/dev/urandom', 'rb').read(4)) == 4"
    assert attack(code).outcome == "pass"


def test_a_python_that_lies_in_tmp(backend, tmp_path, monkeypatch):
    """As in a checkout below /tmp: what is bound there must not be hidden by the sandbox's own /tmp."""
    monkeypatch.setattr(sandbox, "SYSTEM", (*sandbox.SYSTEM, str(tmp_path)))
    tmp_path.chmod(0o755)
    (tmp_path / "lib.txt").write_text("here")
    assert run(Case(f"print(open({str(tmp_path / 'lib.txt')!r}).read())"), backend=backend).stdout == "here\n"


def test_an_environment_that_is_a_link(backend, tmp_path):
    """As `.venv` is where several checkouts share one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "real"], check=True)
    (tmp_path / "link").symlink_to("real")
    code = f"from judges.sandbox import *\nprint(run(Case('import sys; print(sys.prefix)', packages=True), backend={backend!r}).stdout)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), *filter(None, sys.path)])}
    found = subprocess.run([tmp_path / "link/bin/python", "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == str(tmp_path / "link"), found.stderr
