"""Signals are noted, for training to stop at the end of its step."""

import os
import signal
from collections.abc import Iterator

import pytest

from common.stop_request import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_is_noted_and_kills_nobody(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    with StopRequest() as stop:
        os.kill(os.getpid(), signum)
        assert stop.signum == signum
    assert signal.getsignal(signum) == signal.SIG_DFL


def test_a_second_interrupt_ends_the_process() -> None:
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signum == 0
