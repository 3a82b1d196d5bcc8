"""A backend that is not there is the user's mistake, not a traceback."""

import pytest

from dreamkit.errors import BackendError
from dreamkit.scenes.rendering import check_backend


def test_an_unknown_backend_is_named_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMKIT_BACKEND", "vulkan")
    with pytest.raises(BackendError, match="vulkan") as caught:
        check_backend()
    assert "reference" in caught.value.message
    assert "doctor" in (caught.value.hint or "")


def test_the_reference_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMKIT_BACKEND", "reference")
    check_backend()
