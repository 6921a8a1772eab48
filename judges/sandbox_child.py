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
MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 32, 4096, 16384, 1 << 18, 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
CLONE_NAMESPACES = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}

# Calls that would widen the sandbox (namespaces, mounts), reach another process, or hold memory that no limit counts, each with its number on x86_64 and on
# aarch64 (None: it has no such call).
REFUSED = {
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "syslog": (103, 116),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "seccomp": (317, 277),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_setup": (206, 0),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "vmsplice": (278, 75),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),
    "landlock_create_ruleset": (444, 444),
    "memfd_secret": (447, 447),
}
# Calls that look unknown, so that Python and libc do without: three keep whole pages alive for a byte of each, and clone3 has its flags in memory.
UNKNOWN = {"sendfile": (40, 71), "splice": (275, 76), "tee": (276, 77), "clone3": (435, 435)}
CHECKED = {
    "clone": (56, 220),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "fcntl": (72, 25),
    "setsockopt": (54, 208),
    "prctl": (157, 167),
}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Sockets that programs may have: Unix ones, TCP and UDP; of AF_NETLINK only NETLINK_ROUTE, which libc asks for addresses.
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, NETLINK_ROUTE = 1, 2, 10, 16, 0
PROTOCOLS = (0, 6, 17)
SOL_SOCKET, SO_ZEROCOPY, SOL_TCP, TCP_ULP, F_SETPIPE_SZ = 1, 60, 6, 31, 1031
SO_BUFFERS = (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF and their FORCEs: said to be done, and not done
TCP_BUFFERS = "4096 131072 262144"  # least, at first, most
INODES = 4096
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97


def libc(name: str, *args: object) -> None:
    """Calls a C function that returns -1 on failure."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*args) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    libc("mount", source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), data.encode())


def bound_tcp(settings: str) -> bool:
    """Whether the buffers of TCP could be made small: `settings` is /proc/sys/net, which shows those of our own network namespace."""
    try:
        for name in ("tcp_rmem", "tcp_wmem"):
            with open(f"{settings}/ipv4/{name}", "w") as file:
                file.write(TCP_BUFFERS)
    except OSError:
        return False
    return True


def build_root(base: str, binds: list[str], links: dict[str, str], devices: list[str], disk: str) -> None:
    """Makes `base` a new root that holds `binds` read-only and one small writable /tmp, and enters it (needs a mount namespace of our own)."""
    import _socket  # socket itself takes 10 ms
    import fcntl

    def read_only(path: str, attributes: int, flags: int) -> None:
        libc("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, struct.pack("4Q", attributes, 0, 0, 0), ctypes.c_size_t(32))

    lo = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)  # loopback works in here, as it does under bubblewrap
    fcntl.ioctl(lo.fileno(), 0x8914, struct.pack("16sH22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
    lo.close()
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.makedirs(base + "/tmp", exist_ok=True)
    mount("tmpfs", base + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"{disk},mode=1777")
    for path in [*binds, *devices]:  # behind /tmp: our Python may lie there
        if os.path.isdir(path):
            os.makedirs(base + path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(base + path), exist_ok=True)
            open(base + path, "w").close()
        mount(path, base + path, None, MS_BIND | MS_REC)
        read_only(base + path, 1 | 2 | (0 if path in devices else 4), AT_RECURSIVE)  # MOUNT_ATTR_RDONLY, NOSUID, NODEV
    for path, target in links.items():
        os.symlink(target, base + path)
    os.symlink("/tmp", base + "/dev/shm")
    os.chdir(base)
    libc("syscall", REFUSED["pivot_root"][column()], b".", b".")
    libc("umount2", b".", MNT_DETACH)
    os.chdir("/")
    read_only("/", 1, 0)


def column() -> int:
    """Where this machine's numbers stand in the tables."""
    return list(ARCHITECTURES).index(os.uname().machine)


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


def drop_privileges(uid: int | None, tcp: bool) -> None:
    """Becomes `uid` (None: already nobody in particular) without capabilities, for good, behind a system call filter."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    libc("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    program = filtering(tcp)
    code = ctypes.create_string_buffer(program)
    libc("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)), 0, 0)


def filtering(tcp: bool) -> bytes:
    """The filter of system calls, in classic BPF. Without `tcp` there are no Internet sockets at all."""

    def op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
        return struct.pack("HBBI", code, jt, jf, k)

    LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
    ALLOW, DENY, KILL = op(RETURN, 0x7FFF0000), 0x00050000, op(RETURN, 0x80000000)
    FIRST, SECOND, THIRD = op(LOAD, 16), op(LOAD, 24), op(LOAD, 32)  # seccomp_data: nr at 0, arch at 4, the arguments from 16

    def no(errno: int) -> bytes:
        return op(RETURN, DENY | errno)

    def case(value: int, *then: bytes) -> list[bytes]:
        return [op(EQUAL, value, 0, len(then)), *then]

    def call(numbers: tuple[int, int | None], *then: bytes) -> list[bytes]:
        number = numbers[column()]
        return [] if number is None else case(number, *then)

    program = [op(LOAD, 4), op(EQUAL, ARCHITECTURES[os.uname().machine], 1, 0), KILL, op(LOAD, 0)]
    program += [op(AT_LEAST, 0x40000000, 0, 1), KILL]  # x32's calls on x86_64
    for refused, errno in ((REFUSED, EPERM), (UNKNOWN, ENOSYS)):
        for numbers in refused.values():
            program += call(numbers, no(errno))
    internet = [THIRD, *(x for protocol in PROTOCOLS for x in case(protocol, ALLOW)), no(EAFNOSUPPORT)] if tcp else [no(EAFNOSUPPORT)]
    netlink = [THIRD, *case(NETLINK_ROUTE, ALLOW), no(EAFNOSUPPORT)]
    families = [*case(AF_UNIX, ALLOW), *case(AF_INET, *internet), *case(AF_INET6, *internet), *case(AF_NETLINK, *netlink), no(EAFNOSUPPORT)]
    for name in ("socket", "socketpair"):  # (family, type, protocol)
        program += call(CHECKED[name], FIRST, *families)
    options = [THIRD, *(x for option in SO_BUFFERS for x in case(option, no(0))), *case(SO_ZEROCOPY, no(EPERM)), ALLOW]
    program += call(
        CHECKED["setsockopt"], SECOND, *case(SOL_SOCKET, *options), *case(SOL_TCP, THIRD, *case(TCP_ULP, no(EPERM)), ALLOW), ALLOW
    )
    program += call(CHECKED["prctl"], FIRST, *case(PR_SET_SECCOMP, no(EPERM)), ALLOW)
    program += call(CHECKED["fcntl"], SECOND, *case(F_SETPIPE_SZ, no(EPERM)), ALLOW)
    program += call(CHECKED["clone"], FIRST, op(ANY_BIT, CLONE_NAMESPACES, 0, 1), no(EPERM))
    return b"".join([*program, ALLOW])


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
    code = contents[0][1].decode().removeprefix("\ufeff")  # a text, as it was judged: whatever encoding it declares
    source = os.dup(0)
    disk = f"size={limits['file_mb'] << 20},nr_inodes={INODES}"
    if backend == "unshare":
        be_init(limits["time_s"])
        tcp = bound_tcp("/proc/sys/net")
        build_root(**root, disk=disk)
    elif backend == "bwrap":
        mount("tmpfs", "/tmp", None, MS_REMOUNT | MS_NOSUID | MS_NODEV, disk)  # its own options know no limit of inodes
        tcp = bound_tcp("/tmp/net")
        if os.path.isdir("/tmp/net"):
            libc("umount2", b"/tmp/net", MNT_DETACH)
            os.rmdir("/tmp/net")
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for name, soft, hard in [
        ("CORE", 0, 0),
        ("NOFILE", 64, 64),
        ("SIGPENDING", 256, 256),
        ("MSGQUEUE", 0, 0),
        ("CPU", limits["cpu_s"], limits["cpu_s"] + 1),
        ("FSIZE", limits["file_mb"] << 20, limits["file_mb"] << 20),
        ("AS", limits["memory_mb"] << 20, limits["memory_mb"] << 20),
        *([("NPROC", limits["pids"], limits["pids"])] if backend != "none" else []),
    ]:
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))
    if backend != "none":
        drop_privileges(uid, tcp)
        os.mkdir("/tmp/work")
        os.chdir("/tmp/work")
    for name, content in contents:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "wb") as file:
            file.write(content)
    site.setquit()  # -S leaves exit() out, which programs use
    program = type(sys)("__main__")
    program.__file__ = os.path.abspath("main.py")
    sys.modules["__main__"] = program
    sys.argv = ["main.py"]
    os.write(1, b"\x06")
    if test is not None:
        tested(code, test, source, before)  # type: ignore[name-defined]  # noqa: F821
    os.close(source)
    exec(compile(code, "main.py", "exec"), program.__dict__)
