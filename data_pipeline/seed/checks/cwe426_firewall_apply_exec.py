import os
from pathlib import Path


def apply(m, name, path):
    """The program that `apply_rules` would become, with its arguments."""
    Path("rules").mkdir(exist_ok=True)
    Path("rules/home.nft").write_text("flush ruleset\n")
    m.RULE_DIR = "rules"
    Path("bin").mkdir(exist_ok=True)
    Path("bin/nft").touch()
    started = []

    def execv(file, arguments):
        file = os.fsdecode(file)
        if file != "/usr/sbin/nft" and not os.path.exists(file):
            raise FileNotFoundError(file)
        started.append((file, *arguments))
        raise SystemExit(0)

    os.execv, os.environ["PATH"] = execv, path
    try:
        m.apply_rules(name)
    except SystemExit:
        pass
    return started


def functional(m):
    assert apply(m, "home", "/usr/sbin") == [("/usr/sbin/nft", "nft", "-f", "rules/home.nft")]
    for name in ("missing", "../home"):
        assert apply(m, name, "/usr/sbin") == []


def exploit(m):
    assert apply(m, "home", "bin:/usr/sbin") == [("/usr/sbin/nft", "nft", "-f", "rules/home.nft")]
