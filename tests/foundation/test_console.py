"""Bars whose clock goes on, and bars that end."""

import io
import os
import threading

import pytest
from tqdm import tqdm

from foundation import console
from foundation.errors import UserError


class Screen(io.StringIO):
    """A terminal that counts how often something is drawn after `last` was."""

    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal, self.drawn, self.often = terminal, 0, threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        if "waiting" in text:
            self.drawn += 1
            if self.drawn == 5:
                self.often.set()
        return super().write(text)


def test_a_bar_is_drawn_anew_while_nothing_is_done(monkeypatch):
    monkeypatch.setattr(console, "BEAT_S", 0.001)
    screen = Screen(terminal=True)
    with console.ticking(tqdm(total=2, desc="waiting", file=screen)) as bar:
        assert screen.often.wait(60), screen.getvalue()
        bar.update()
    drawn = screen.drawn
    assert bar.disable and not any("tick" in thread.name for thread in threading.enumerate()), "it is closed, and so is its clock"
    assert screen.drawn == drawn


def test_a_log_has_lines_only_where_something_was_done(monkeypatch):
    monkeypatch.setattr(console, "BEAT_S", 0.001)
    started = threading.active_count()
    screen = Screen(terminal=False)
    with console.ticking(tqdm(total=2, desc="waiting", file=screen)):
        assert threading.active_count() <= started + 1  # tqdm's own monitor
    assert screen.drawn <= 2


def test_an_error_closes_it():
    with pytest.raises(KeyError), console.ticking(tqdm(total=2, file=Screen(terminal=True))) as bar:
        raise KeyError
    assert bar.disable


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_waited_for_stands_on_a_terminal_alone_and_goes_away(monkeypatch, terminal):
    monkeypatch.setattr(console, "BEAT_S", 0.001)
    screen = Screen(terminal)
    with console.waiting("waiting for JAX", screen):
        assert not terminal or screen.often.wait(60)
    said = screen.getvalue()
    assert ("waiting for JAX: 00:00" in said) == terminal and not said.rpartition("\r")[0].rpartition("\r")[2].strip()


@pytest.mark.parametrize(("error", "shown"), [(KeyError, "noise\n"), (UserError, ""), (KeyboardInterrupt, "")])
def test_what_libraries_say_is_shown_where_it_may_explain_an_error(error, shown, capfd):
    def fail():
        os.write(2, b"noise\n")
        raise error

    with pytest.raises(error), console.captured_stderr():
        fail()
    assert capfd.readouterr().err == shown
