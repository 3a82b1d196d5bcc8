"""The choice of a backend, by argument, environment, dtype and what is installed."""

from __future__ import annotations

import logging

import pytest
import torch
from dreamkit_kernels import backend_report, dispatch
from dreamkit_kernels.gaussian_rasterize import Settings, rasterize
from rasterize_scenes import cast_gaussians, cast_view, make_gaussians, make_view

SINGLE, DOUBLE = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
OPERATION = "gaussian_rasterize"


@pytest.fixture(autouse=True)
def no_preference(monkeypatch):
    monkeypatch.delenv(dispatch.BACKEND_VARIABLE, raising=False)


@pytest.fixture
def no_native(monkeypatch):
    monkeypatch.setattr(dispatch, "_load_native", lambda: (None, "the native extension can't be imported (gone)"))
    dispatch._log_once.cache_clear()
    yield
    dispatch._log_once.cache_clear()


needs_native = pytest.mark.skipif(dispatch._load_native()[0] is None, reason=dispatch._load_native()[1])


@needs_native
def test_native_for_single_precision_and_the_reference_for_double():
    assert dispatch.choose_backend(OPERATION, None, SINGLE) == "native"
    assert dispatch.choose_backend(OPERATION, None, DOUBLE) == "reference"
    assert dispatch.choose_backend(OPERATION, "reference", SINGLE) == "reference"


@needs_native
def test_argument_before_environment(monkeypatch):
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "reference")
    assert dispatch.choose_backend(OPERATION, None, SINGLE) == "reference"
    assert dispatch.choose_backend(OPERATION, "native", SINGLE) == "native"
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "native")
    assert dispatch.choose_backend(OPERATION, None, DOUBLE) == "reference"  # a preference, not an order
    with pytest.raises(ValueError, match=r"backend 'native' takes float32 tensors on the CPU, got torch\.float64"):
        dispatch.choose_backend(OPERATION, "native", DOUBLE)


def test_unknown_backend_names_where_it_came_from(monkeypatch):
    with pytest.raises(ValueError, match="one of reference, native, gsplat, triton for gaussian_rasterize, got 'gpu'"):
        dispatch.choose_backend(OPERATION, "gpu", SINGLE)
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "cuda")
    with pytest.raises(ValueError, match="DREAMKIT_BACKEND must be one of"):
        dispatch.choose_backend(OPERATION, None, SINGLE)


@pytest.mark.usefixtures("no_native")
def test_missing_extension_falls_to_the_reference_and_says_so_once(caplog):
    gaussians = cast_gaussians(make_gaussians(3), torch.float32)
    view = cast_view(make_view(1, 8, 8), torch.float32)
    with caplog.at_level(logging.WARNING, logger="dreamkit.kernels"):
        first = rasterize(gaussians, view).image
        second = rasterize(gaussians, view, Settings(backend="reference")).image
        rasterize(gaussians, view)
    assert torch.equal(first, second)
    assert len(caplog.records) == 1
    assert "many times slower: the native extension can't be imported (gone)" in caplog.text
    with pytest.raises(RuntimeError, match=r"backend 'native' is not available: .*gone"):
        rasterize(gaussians, view, Settings(backend="native"))


@pytest.mark.usefixtures("no_native")
def test_report_gives_the_reason():
    report = {status.name: status for status in backend_report()}
    assert report["reference"].available
    assert not report["native"].available
    assert "gone" in report["native"].reason


@needs_native
def test_report_names_the_instruction_set():
    native = next(status for status in backend_report() if (status.name, status.operation) == ("native", OPERATION))
    assert dispatch.native_module().instruction_set() in native.reason
