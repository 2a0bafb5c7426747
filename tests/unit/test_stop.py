"""The first reason to stop is kept and raised between two batches."""

import pytest

from polar_etl.errors import InterruptedRunError, RunFailedError, TerminatedRunError
from polar_etl.memory import PeakSampler
from polar_etl.stop import Stop


def test_nothing_is_asked_at_first():
    stop = Stop()

    assert not stop.requested
    stop.check()


@pytest.mark.parametrize(
    ("ask", "error"), [("interrupt", InterruptedRunError), ("terminate", TerminatedRunError)]
)
def test_a_signal_is_raised_at_the_next_check(ask, error):
    stop = Stop()
    getattr(stop, ask)()

    assert stop.requested
    for _ in range(2):
        with pytest.raises(error) as caught:
            stop.check()
        assert type(caught.value) is error


def test_the_first_reason_stays():
    stop = Stop()
    stop.terminate()
    stop.interrupt()

    with pytest.raises(TerminatedRunError):
        stop.check()


def test_a_crossed_memory_limit_stops_the_run():
    stop, sampler = Stop(), PeakSampler(1)
    sampler.sample()
    stop.watch(sampler)

    with pytest.raises(RunFailedError, match="memory limit"):
        stop.check()


def test_a_limit_that_holds_stops_nothing():
    stop, sampler = Stop(), PeakSampler(2**60)
    sampler.sample()
    stop.watch(sampler)

    assert not stop.requested
