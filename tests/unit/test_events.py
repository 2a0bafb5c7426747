"""Events are frozen values that survive pickling."""

import pickle
from dataclasses import FrozenInstanceError

import pytest

from polar_etl.events import BatchFinished, PassFinished, PassStarted, Warned, silent

EVENTS = [
    PassStarted("moments", 10, 3, 8.5),
    BatchFinished("parts", 1, 5, 100, "part-00001.parquet", 7, 9),
    PassFinished("parts", 0.5),
    Warned("careful"),
]


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_a_value(event):
    again = pickle.loads(pickle.dumps(event))

    assert again == event
    assert hash(again) == hash(event)
    with pytest.raises(FrozenInstanceError):
        setattr(event, type(event).__slots__[0], "changed")
    assert silent(event) is None
