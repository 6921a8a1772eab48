"""The first code inside a sandbox: locks the door from inside, then runs the case. `sandbox.py` sends this file's text to `python -S -c`; it is never imported
by the product. Only what is cheap to import (2 ms in all) is used.
"""

import ctypes
import os
import resource
import site
import struct
import sys

# Linux's numbers (include/uapi/linux): the same on every architecture.
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 4096, 16384, 1 << 18, 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
CLONE_NAMESPACES = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}

# Calls that would widen the sandbox (namespaces, mounts), reach another process, or hold memory that no limit counts.
X86_64 = dict(
    clone=56,
    socket=41,
    socketpair=53,
    pivot_root=155,
    mount=165,
    umount2=166,
    chroot=161,
    unshare=272,
    setns=308,
    ptrace=101,
    process_vm_readv=310,
    process_vm_writev=311,
    vmsplice=278,
)
X86_64 |= dict(
    memfd_create=319, shmget=29, msgget=68, add_key=248, request_key=249, keyctl=250, bpf=321, perf_event_open=298, userfaultfd=323
)
AARCH64 = dict(
    clone=220,
    socket=198,
    socketpair=199,
    pivot_root=41,
    mount=40,
    umount2=39,
    chroot=51,
    unshare=97,
    setns=268,
    ptrace=117,
    process_vm_readv=270,
    process_vm_writev=271,
    vmsplice=75,
)
AARCH64 |= dict(
    memfd_create=279, shmget=194, msgget=186, add_key=217, request_key=218, keyctl=219, bpf=280, perf_event_open=241, userfaultfd=282
)
SYSCALLS = {"x86_64": (0xC000003E, X86_64), "aarch64": (0xC00000B7, AARCH64)}
EVERYWHERE = dict(
    pidfd_getfd=438, io_uring_setup=425, open_tree=428, move_mount=429, fsopen=430, fspick=433, mount_setattr=442, memfd_secret=447
)
CLONE3 = 435
FAMILIES = {
    "AF_UNIX": 1,
    "AF_INET": 2,
    "AF_INET6": 10,
}  # sockets that programs may have; of AF_NETLINK only NETLINK_ROUTE, which libc asks for addresses
AF_NETLINK, NETLINK_ROUTE = 16, 0
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97


def libc(name: str, *args: object) -> None:
    """Calls a C function that returns -1 on failure."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*args) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def build_root(base: str, binds: list[str], devices: list[str], disk_bytes: int) -> None:
    """Makes `base` a new root that holds `binds` read-only and one small writable /tmp, and enters it (needs a mount namespace of our own)."""
    import _socket  # socket itself takes 10 ms
    import fcntl

    def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
        libc("mount", source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), data.encode())

    def read_only(path: str, attributes: int, flags: int) -> None:
        libc("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, struct.pack("4Q", attributes, 0, 0, 0), ctypes.c_size_t(32))

    lo = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)  # loopback works in here, as it does under bubblewrap
    fcntl.ioctl(lo.fileno(), 0x8914, struct.pack("16sH22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
    lo.close()
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.makedirs(base + "/tmp", exist_ok=True)
    mount("tmpfs", base + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_bytes},nr_inodes=4096,mode=1777")
    for path in [*binds, *devices]:  # behind /tmp: our Python may lie there
        if os.path.islink(path):
            os.symlink(os.readlink(path), base + path)
            continue
        if os.path.isdir(path):
            os.makedirs(base + path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(base + path), exist_ok=True)
            open(base + path, "w").close()
        mount(path, base + path, None, MS_BIND | MS_REC)
        read_only(base + path, 1 | 2 | (0 if path in devices else 4), AT_RECURSIVE)  # MOUNT_ATTR_RDONLY, NOSUID, NODEV
    os.symlink("/tmp", base + "/dev/shm")
    os.chdir(base)
    libc("syscall", SYSCALLS[os.uname().machine][1]["pivot_root"], b".", b".")
    libc("umount2", b".", MNT_DETACH)
    os.chdir("/")
    read_only("/", 1, 0)


def be_init(time_s: float) -> None:
    """Forks; returns in the child. The parent, process 1 of the namespace, ends with the child's status (128 + signal), and takes everything left with it."""
    import _signal

    if pid := os.fork():
        _signal.signal(_signal.SIGALRM, lambda *_: os._exit(128 + 9))  # should nobody be left to end us
        _signal.alarm(int(time_s) + 5)
        while True:
            ended, status = os.wait()
            if ended == pid:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)


def drop_privileges(uid: int | None) -> None:
    """Becomes `uid` (None: already nobody in particular) without capabilities, for good, behind a system call filter."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    libc("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    arch, numbers = SYSCALLS[os.uname().machine]

    def op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
        return struct.pack("HBBI", code, jt, jf, k)

    LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF
    ALLOW, DENY, KILL = 0x7FFF0000, 0x00050000, 0x80000000
    program = [op(LOAD, 4), op(EQUAL, arch, 1, 0), op(RETURN, KILL), op(LOAD, 0)]  # seccomp_data: nr at 0, arch at 4, the arguments from 16
    program += [op(AT_LEAST, 0x40000000, 0, 1), op(RETURN, KILL)]  # x32's calls on x86_64
    program += [op(EQUAL, CLONE3, 0, 1), op(RETURN, DENY | ENOSYS)]  # its flags lie in memory; libc falls back to clone
    for name, number in (numbers | EVERYWHERE).items():
        if name not in ("clone", "socket", "socketpair"):
            program += [op(EQUAL, number, 0, 1), op(RETURN, DENY | EPERM)]
    for name in ("socket", "socketpair"):  # (family, type, protocol): arguments at 16, 24 and 32
        allowed = [step for family in FAMILIES.values() for step in (op(EQUAL, family, 0, 1), op(RETURN, ALLOW))]
        netlink = [op(EQUAL, AF_NETLINK, 0, 3), op(LOAD, 32), op(EQUAL, NETLINK_ROUTE, 0, 1), op(RETURN, ALLOW)]
        checks = [op(LOAD, 16), *allowed, *netlink, op(RETURN, DENY | EAFNOSUPPORT)]
        program += [op(EQUAL, numbers[name], 0, len(checks)), *checks]
    program += [op(EQUAL, numbers["clone"], 0, 3), op(LOAD, 16), op(ANY_BIT, CLONE_NAMESPACES, 0, 1), op(RETURN, DENY | EPERM)]
    program.append(op(RETURN, ALLOW))
    code = ctypes.create_string_buffer(b"".join(program))
    libc("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)), 0, 0)


def read_exactly(fd: int, size: int) -> bytes:
    """So many bytes, and not one more: what stands behind them isn't for everybody."""
    found = bytearray()
    while len(found) < size and (part := os.read(fd, min(size - len(found), 1 << 20))):
        found += part
    return bytes(found)


def main(
    *,
    backend: str,
    uid: int | None,
    root: dict,
    limits: dict,
    files: list[tuple[str, int]],
    test: int | None = None,
    before: dict | None = None,
) -> None:
    """Reads the files (main.py first) from standard input, enters the sandbox, says so with one byte, and runs main.py as a program, or with the
    test of so many bytes that stands behind the files: see `sandbox_tested.py`."""
    contents = [(name, read_exactly(0, size)) for name, size in files]
    source = os.dup(0)
    if backend == "unshare":
        be_init(limits["time_s"])
        build_root(**root, disk_bytes=limits["file_mb"] << 20)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for name, soft, hard in [
        ("CORE", 0, 0),
        ("NOFILE", 64, 64),
        ("CPU", limits["cpu_s"], limits["cpu_s"] + 1),
        ("FSIZE", limits["file_mb"] << 20, limits["file_mb"] << 20),
        ("AS", limits["memory_mb"] << 20, limits["memory_mb"] << 20),
        *([("NPROC", limits["pids"], limits["pids"])] if backend != "none" else []),
    ]:
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))
    if backend != "none":
        drop_privileges(uid)
        os.mkdir("/tmp/work")
        os.chdir("/tmp/work")
    for name, content in contents:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "wb") as file:
            file.write(content)
    site.setquit()  # -S leaves exit() out, which programs use
    program = type(sys)("__main__")
    program.__file__ = "main.py"
    sys.modules["__main__"] = program
    sys.argv = ["main.py"]
    os.write(1, b"\x06")
    if test is not None:
        tested(contents[0][1], test, source, before)  # type: ignore[name-defined]  # noqa: F821
    os.close(source)
    exec(compile(contents[0][1], "main.py", "exec"), program.__dict__)
