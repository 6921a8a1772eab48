import pwd
from pathlib import Path
from types import SimpleNamespace

pwd.getpwnam = lambda name: SimpleNamespace(pw_dir=str(Path("home", name).absolute()))


def functional(m):
    Path("home/ada").mkdir(parents=True)
    assert m.forward_addresses("ada") == []
    Path("home/ada/.forward").write_text("ada@example.org\n\n bo@example.org\n")
    assert m.forward_addresses("ada") == ["ada@example.org", "bo@example.org"]


def exploit(m):
    Path("home/eve").mkdir(parents=True)
    Path("shadow").write_text("root:$6$hash")
    Path("home/eve/.forward").symlink_to(Path("shadow").absolute())
    assert m.forward_addresses("eve") == []
