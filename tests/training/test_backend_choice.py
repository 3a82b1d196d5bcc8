"""A backend that is not there is the user's mistake, not a traceback."""

from pathlib import Path

import pytest

from dreamkit.errors import BackendError
from dreamkit.scenes.rendering import check_backend
from dreamkit.training.generate import GenerateOptions, generate


def test_an_unknown_backend_is_named_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMKIT_BACKEND", "vulkan")
    with pytest.raises(BackendError, match="vulkan") as caught:
        check_backend()
    assert "reference" in caught.value.message
    assert "doctor" in (caught.value.hint or "")


def test_the_reference_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMKIT_BACKEND", "reference")
    check_backend()


def test_a_missing_backend_leaves_no_run_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMKIT_BACKEND", "vulkan")
    with pytest.raises(BackendError, match="vulkan"):
        generate(GenerateOptions("a red mug", out=str(tmp_path / "outputs")))
    assert not (tmp_path / "outputs").exists()
