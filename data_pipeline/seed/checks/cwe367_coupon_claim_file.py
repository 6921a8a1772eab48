from pathlib import Path


def functional(m):
    m.CLAIMS = "."
    assert m.claim_coupon("12", "ada") is True and m.claim_coupon(12, "bo") is False
    assert Path("12.claim").read_text() == "ada\n"


def exploit(m):
    def late_open(path, mode):
        Path(path).write_text("ada\n")  # another worker was faster by a moment
        return open(path, mode)

    m.CLAIMS, m.open = ".", late_open
    assert m.claim_coupon(12, "bo") is False
    assert Path("12.claim").read_text() == "ada\n"
