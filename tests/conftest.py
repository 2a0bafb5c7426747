"""Hypothesis profiles, and the folder of test data that is too large to commit."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=60, database=None, **_CALM)
settings.register_profile("ci", max_examples=200, derandomize=True, **_CALM)
settings.register_profile("nightly", max_examples=5_000, print_blob=True, **_CALM)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder that `POLAR_ETL_TEST_DATA` names, or `shared/data` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("POLAR_ETL_TEST_DATA", beside))
