from pathlib import Path


def functional(m):
    m.SPOOL = "."
    first = m.log_job("7", "started")
    second = m.log_job(7, "done")
    text = Path("job-7.log").read_text()
    assert len(text) == first + second
    assert [line.split(" ", 2)[2] for line in text.splitlines()] == ["started", "done"]


def exploit(m):
    m.SPOOL = "."
    Path("crontab").write_text("@daily backup\n")
    Path("job-7.log").symlink_to("crontab")
    try:
        m.log_job(7, "started")
    except OSError:
        pass
    assert Path("crontab").read_text() == "@daily backup\n"
