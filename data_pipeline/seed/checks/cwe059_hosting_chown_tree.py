import os
import pwd
from pathlib import Path
from types import SimpleNamespace

changed = []


def chown(path, uid, gid, *, dir_fd=None, follow_symlinks=True):
    """Records what would change its owner, by inode."""
    changed.append((os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks).st_ino, uid, gid))


def give(m):
    pwd.getpwnam = lambda name: {"ada": SimpleNamespace(pw_uid=1500, pw_gid=1501)}[name]
    os.chown = chown
    return m.give_site("site", "ada")


def functional(m):
    Path("site/images").mkdir(parents=True)
    Path("site/index.html").write_text("hello")
    Path("site/images/a.png").write_text("")
    expected = {(path.stat().st_ino, 1500, 1501) for path in Path("site").rglob("*")}
    assert give(m) == 3 and set(changed) == expected


def exploit(m):
    Path("site").mkdir()
    Path("shadow").write_text("root:x")
    Path("site/index.html").symlink_to(Path("shadow").absolute())
    give(m)
    assert os.stat("shadow").st_ino not in [inode for inode, *_ in changed]
