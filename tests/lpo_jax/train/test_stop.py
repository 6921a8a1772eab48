"""Signals that ask a run to stop."""

import os
import signal

import pytest

from lpo_jax.train.stop import StopRequest


def test_the_first_signal_asks_and_a_second_interrupt_ends():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers like to say it twice
        assert stop.reached(2) and stop.reached(3)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
