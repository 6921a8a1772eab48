"""What a user can mend is one line."""

import errno

import pytest

from foundation.errors import DataError, run_command


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("x: wrong"), "p: error: x: wrong"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "p: error: No space left on device; make room and repeat the command: what is finished stays",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "p: error: a/b: No such file or directory"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory\n  more"),
            "p: error: a device is out of memory (RESOURCE_EXHAUSTED: Out of memory): ",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, line, capsys):
    def fail():
        raise error

    assert run_command("p", fail) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(line)


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), OSError("no number"), KeyError("x")])
def test_faults_of_ours_keep_their_traceback(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        run_command("p", fail)
