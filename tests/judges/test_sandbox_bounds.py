"""What no limit of a process counts: kernel memory, inodes, sockets that reach the machine. Every back end bounds it or refuses it alike."""

import importlib.util
import os
import struct
from types import SimpleNamespace

import pytest

from tests.helpers.paths import REPO


def child():
    spec = importlib.util.spec_from_file_location("sandbox_child", REPO / "judges" / "sandbox_child.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(result):
    assert result.outcome == "pass", result
    return [int(word) for word in result.stdout.split()]


def test_empty_files(attack):
    """Each costs the kernel a kilobyte that no size of a disk counts."""
    code = "import os\nn = 0\ntry:\n    while n < 1000000:\n        os.mknod(f'/tmp/{n:x}')\n        n += 1\nexcept OSError as e:\n    print(n, e.errno)"
    made, errno = numbers(attack(code))
    assert made <= 4096 and errno == 28
    assert attack("import os\nfor n in range(5000): os.link(__file__, f'/tmp/{n}')").outcome == "blocked"


def test_unix_sockets_full_of_data(attack):
    code = """
import os, socket, time
for _ in range(3): os.fork()
held = []
for _ in range(25):
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    pair[0].setblocking(False)
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 26)
    held.append(pair)
    try:
        while True: pair[0].send(bytes(50000))
    except OSError: pass
time.sleep(15)
"""
    result = attack(code)
    assert (result.outcome, result.detail) == ("crash", "more than 256 sockets")


def test_sockets_that_wait_to_be_accepted(attack):
    """They need no descriptor of anybody."""
    code = """
import socket, time
server = socket.socket(socket.AF_UNIX)
server.bind("\\0here")
server.listen(4096)
for _ in range(4000):
    with socket.socket(socket.AF_UNIX) as client: client.connect("\\0here")
time.sleep(15)
"""
    assert attack(code).detail == "more than 256 sockets"


def test_buffers_stay_small(attack):
    code = """
import socket
def fill(a):
    a.setblocking(False)
    n = 0
    try:
        while True: n += a.send(bytes(1 << 16))
    except BlockingIOError: return n
pair = socket.socketpair()
before = pair[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
for option in (socket.SO_SNDBUF, socket.SO_RCVBUF, 32, 33): pair[0].setsockopt(socket.SOL_SOCKET, option, 1 << 26)
assert pair[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
there, _ = server.accept()
for _ in range(200):
    client.sendall(bytes(1 << 16))
    left = 1 << 16
    while left: left -= len(there.recv(left))
print(fill(pair[0]), fill(client))
"""
    unix, tcp = numbers(attack(code))
    assert 0 < unix < 1 << 20 and 0 < tcp < 1 << 20


def test_pipes_do_not_grow_and_pages_are_not_pinned(attack):
    for call in (
        "fcntl.fcntl(w, 1031, 1 << 20)",
        "libc('vmsplice', w, b'x' * 16, 1, 0)",
        "s.setsockopt(1, 60, 1)",
        "s.setsockopt(6, 31, b'tls')",
    ):
        code = f"""
import ctypes, fcntl, os, socket
def libc(name, *args):
    c = ctypes.CDLL(None, use_errno=True)
    if getattr(c, name)(*args) == -1: raise OSError(ctypes.get_errno(), name)
r, w = os.pipe()
s = socket.socket()
{call}
"""
        result = attack(code)
        assert result.outcome == "blocked" and "[Errno 1]" in result.detail, (call, result)


def test_copies_where_the_kernel_would_share_pages(attack):
    code = """
import os, shutil, socket
open("a", "wb").write(bytes(70000))
shutil.copyfile("a", "b")
a, b = socket.socketpair()
a.sendfile(open("a", "rb"), 0, 1000)
print(os.path.getsize("b"), len(b.recv(2000)))
try: os.sendfile(a.fileno(), os.open("a", os.O_RDONLY), 0, 1)
except OSError as e: print(e.errno)
"""
    assert numbers(attack(code)) == [70000, 1000, 38]


MAPS = """
import ctypes, os, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
"""


def test_memory_in_many_pieces(attack):
    """A mapping costs the kernel a quarter of a kilobyte."""
    code = "base = libc.mmap(None, 80 << 20, 3, 0x22, -1, 0)\nfor i in range(0, 20000, 2): libc.mprotect(base + 4096 * i, 4096, 1)\ntime.sleep(15)"
    assert attack(MAPS + code).detail == "too many memory mappings"


def test_page_tables(attack):
    """A page that is read and never written costs nothing but two pages of tables, if it lies far from others."""
    code = "for i in range(1, 4500):\n    if libc.mmap(i << 30, 4096, 1, 0x100022, -1, 0) == i << 30: ctypes.string_at(i << 30, 1)\ntime.sleep(15)"
    assert attack(MAPS + code, memory_mb=32).detail == "out of memory (32 MB together)"


@pytest.mark.parametrize("family", [17, 38, 40, 43, 44])  # packets, crypto, VMs, SMC, XDP
def test_families_that_leave_the_namespace(attack, family):
    result = attack(f"import socket\nsocket.socket({family}, 1, 0)")
    assert result.outcome == "blocked" and "[Errno 97]" in result.detail
    assert attack(f"import socket\nsocket.socketpair({family}, 1, 0)").outcome == "blocked"


def test_sockets_that_programs_may_have(attack):
    code = "import socket\nfor family, kind, protocol in {}: socket.socket(family, kind, protocol)\n"
    assert attack(code.format([(1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 1, 6), (2, 2, 17), (10, 1, 0), (16, 3, 0)])).outcome == "pass"
    for refused in ((2, 1, 262), (2, 5, 132), (2, 2, 1), (10, 2, 136), (16, 3, 12)):  # MPTCP, SCTP, ICMP, UDP-Lite, netfilter
        assert attack(code.format([refused])).outcome == "blocked", refused


def test_no_internet_sockets_where_their_buffers_can_not_be_bounded():
    module = child()
    assert module.bound_tcp("/no/such/folder") is False
    assert verdict(module.filtering(False), 0xC000003E, 41, 2, 1, 0) == 0x50000 | 97
    assert verdict(module.filtering(False), 0xC000003E, 41, 1, 1, 0) == ALLOW


ALLOW, KILL = 0x7FFF0000, 0x80000000


def verdict(program, arch, number, *args):
    """What the kernel would do at a system call: an interpreter of the few instructions that the filter is made of."""
    data = struct.pack("<II", number, arch) + bytes(8) + b"".join(struct.pack("<q", a) for a in (*args, *[0] * (6 - len(args))))
    at, value = 0, 0
    while True:
        code, yes, no, k = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            value = struct.unpack_from("<I", data, k)[0]
        elif code == 0x06:
            return k
        else:
            at += yes if {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code] else no


COMMON = {
    "vmsplice": 1,
    "pidfd_getfd": 1,
    "ptrace": 1,
    "unshare": 1,
    "setns": 1,
    "mount": 1,
    "bpf": 1,
    "semget": 1,
    "io_setup": 1,
    "splice": 38,
    "clone3": 38,
}
NUMBERS = {
    "x86_64": (0xC000003E, dict(vmsplice=278, pidfd_getfd=438, ptrace=101, unshare=272, setns=308, mount=165, bpf=321, semget=64, io_setup=206, splice=275, clone3=435, clone=56, socket=41, socketpair=53, fcntl=72, setsockopt=54, read=0, execve=59)),
    "aarch64": (0xC00000B7, dict(vmsplice=75, pidfd_getfd=438, ptrace=117, unshare=97, setns=268, mount=40, bpf=280, semget=190, io_setup=0, splice=76, clone3=435, clone=220, socket=198, socketpair=199, fcntl=25, setsockopt=208, read=63, execve=221)),
}  # fmt: skip


@pytest.mark.parametrize("machine", NUMBERS)
def test_the_filter_on_each_architecture(machine, monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
    program = child().filtering(True)
    assert len(program) // 8 < 4096
    arch, known = NUMBERS[machine]

    def asks(name, *args):
        return verdict(program, arch, known[name], *args)

    assert {name: asks(name) for name in COMMON} == {name: 0x50000 | errno for name, errno in COMMON.items()}
    for name in ("socket", "socketpair"):
        allowed = [
            (family, protocol) for family in range(50) for protocol in (0, 6, 17, 1, 132, 262) if asks(name, family, 1, protocol) == ALLOW
        ]
        assert allowed == [(1, p) for p in (0, 6, 17, 1, 132, 262)] + [(f, p) for f in (2, 10) for p in (0, 6, 17)] + [(16, 0)]
        assert asks(name, 40, 1, 0) == 0x50000 | 97
    assert asks("clone", 17) == asks("read", 0) == asks("execve") == asks("fcntl", 3, 2, 1) == asks("setsockopt", 3, 6, 1) == ALLOW
    assert asks("clone", 0x10000000 | 17) == asks("fcntl", 3, 1031) == asks("setsockopt", 3, 1, 60) == 0x50000 | 1
    assert asks("setsockopt", 3, 1, 7) == 0x50000 and asks("setsockopt", 3, 1, 2) == ALLOW
    assert verdict(program, 0x40000003, 1) == KILL
    assert machine != "x86_64" or verdict(program, arch, 0x40000000 | 41, 40) == KILL
