"""What all tests of objectives share."""

import pytest


@pytest.fixture(autouse=True)
def run_on_one_thread(one_thread: None) -> None:
    """All of them."""
