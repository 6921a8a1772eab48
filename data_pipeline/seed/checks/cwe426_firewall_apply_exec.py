import os

started = []


def apply(m, name):
    os.makedirs("rules", exist_ok=True)
    with open("rules/office.nft", "w") as file:
        file.write("flush ruleset")
    m.RULE_DIR = "rules"
    m.os.execv = m.os.execvp = lambda path, args: started.append((path, args))
    m.apply_rules(name)


def functional(m):
    apply(m, "office")
    assert started[0][1] == ["nft", "-f", os.path.join("rules", "office.nft")]
    for name in ("../office", "home"):
        try:
            apply(m, name)
        except SystemExit:
            continue
        raise AssertionError(name)


def exploit(m):
    apply(m, "office")
    assert os.path.isabs(started[0][0])
