"""Checkpoints: bit-exact round trips, and damage of any kind is noticed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.errors import CheckpointError, RunError
from dreamkit.runs import Run
from dreamkit.training.checkpoints import (
    FORMAT_VERSION,
    guard_interrupts,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "means": torch.randn(7, 3, generator=generator),
        "optimiser.means.exp_avg": torch.randn(7, 3, generator=generator, dtype=torch.float64),
        "visible": torch.rand(7, generator=generator) > 0.5,
        "random": generator.get_state(),
    }


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name]), name


@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__" and name.isprintable()),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    ),
    step=st.integers(0, 10**9),
    meta=st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()),
)
@settings(max_examples=40, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, shapes: dict, step: int, meta: dict) -> None:
    tensors = {name: (torch.rand(shape) * 9 - 3).to(dtype) for name, (dtype, shape) in shapes.items()}
    folder = save_checkpoint(tmp_path_factory.mktemp("run"), step, tensors, meta)
    loaded = load_checkpoint(folder)
    assert (loaded.step, loaded.meta) == (step, meta)
    assert_same(tensors, loaded.tensors)


def test_what_safetensors_alone_refuses_is_stored(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    tensors = {"base": base, "same": base, "view": base[:, 1:3], "turned": base.T, "scalar": torch.tensor(2.0)}
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, tensors)).tensors
    assert_same({name: tensor.detach() for name, tensor in tensors.items()}, loaded)


def test_generator_state_continues_the_stream(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    torch.randn(5, generator=generator)
    save_checkpoint(tmp_path, 1, {"random": generator.get_state()})
    expected = torch.randn(5, generator=generator)
    other = torch.Generator()
    other.set_state(load_latest(tmp_path)[0].tensors["random"])
    assert torch.equal(torch.randn(5, generator=other), expected)


def test_the_last_k_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 20, 100):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000100", "step-00000020"]
    checkpoint, warnings = load_latest(tmp_path)
    assert checkpoint.step == 100
    assert warnings == []
    assert_same(state(100), checkpoint.tensors)


def test_a_run_is_a_source(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", "sds", {})
    save_checkpoint(run.checkpoints, 4, state())
    assert load_latest(run)[0].step == 4


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, state(0))
    save_checkpoint(tmp_path, 3, state(1))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert_same(state(1), load_latest(tmp_path)[0].tensors)


def test_a_replacement_that_was_killed_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 3, state(0))
    folder.rename(folder.with_name(folder.name + ".replaced"))
    assert_same(state(0), load_latest(tmp_path)[0].tensors)


def damage_truncate(folder: Path) -> None:
    os.truncate(folder / "state.safetensors", 100)


def damage_flip(folder: Path) -> None:
    data = bytearray((folder / "state.safetensors").read_bytes())
    data[-1] ^= 1  # in the values: safetensors itself would load it
    (folder / "state.safetensors").write_bytes(data)


def damage_remove_state(folder: Path) -> None:
    (folder / "state.safetensors").unlink()


def damage_remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def damage_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 9'))


def damage_newer(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({"format_version": FORMAT_VERSION + 1}))


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_flip, damage_remove_state, damage_remove_manifest, damage_manifest, damage_newer],
)
def test_damage_falls_back_to_the_previous_and_says_so(tmp_path: Path, damage) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    folder = save_checkpoint(tmp_path, 2, state(2))
    damage(folder)
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)
    checkpoint, warnings = load_latest(tmp_path)
    assert_same(state(1), checkpoint.tensors)
    assert "step-00000002" in warnings[0]
    assert "Continuing from step-00000001" in warnings[1]


def test_no_good_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_latest(tmp_path)
    damage_flip(save_checkpoint(tmp_path, 1, state()))
    with pytest.raises(CheckpointError, match="None of the 1 checkpoints"):
        load_latest(tmp_path)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_mutation_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any change of bytes raises CheckpointError, or is white space that means nothing."""
    parent = tmp_path_factory.mktemp("run")
    folder = save_checkpoint(parent, 1, state())
    path = folder / data.draw(st.sampled_from(["state.safetensors", "manifest.json"]))
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    path.write_bytes(content)
    try:
        loaded = load_checkpoint(folder)
    except CheckpointError:
        pass
    else:
        assert_same(state(), loaded.tensors)
        assert loaded.step == 1
    shutil.rmtree(parent)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_state_does_not_replace_a_good_one(tmp_path: Path, value: float) -> None:
    save_checkpoint(tmp_path, 1, state())
    with pytest.raises(CheckpointError, match="means has 1 values"):
        save_checkpoint(tmp_path, 2, {"means": torch.tensor([1.0, value])})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("bad", [{"a": 1}, {"a": None}])
def test_entries_must_be_tensors(tmp_path: Path, bad: dict) -> None:
    with pytest.raises(CheckpointError, match="not a tensor"):
        save_checkpoint(tmp_path, 1, bad)


@pytest.mark.parametrize("meta", [{"a": object()}, {"a": float("nan")}])
def test_values_json_can_not_hold(tmp_path: Path, meta: dict) -> None:
    with pytest.raises(CheckpointError, match="can't be stored"):
        save_checkpoint(tmp_path, 1, state(), meta)
    assert list(tmp_path.iterdir()) == []


def test_step_and_keep_have_limits(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        save_checkpoint(tmp_path, -1, state())
    with pytest.raises(CheckpointError):
        save_checkpoint(tmp_path, 1, state(), keep=0)


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from dreamkit.errors import RunError
from dreamkit.training.checkpoints import load_latest, save_checkpoint
folder = Path(sys.argv[1])
save_checkpoint(folder, 1, {"x": torch.ones(10)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    save_checkpoint(folder, 2, {"x": torch.ones(100_000)})
except RunError as error:
    print("refused:", error.message)
print(load_latest(folder)[0].step, sorted(path.name for path in folder.iterdir()))
"""


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """safetensors writes from Rust, so the refusal is a real one: files of 64 KiB at most."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused: Could not write")
    assert done.stdout.endswith("1 ['step-00000001']\n")


def test_a_full_disk_is_a_run_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors
    import safetensors.torch

    def refuse(*_: object) -> None:
        raise safetensors.SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", refuse)
    with pytest.raises(RunError) as caught:
        save_checkpoint(tmp_path, 1, state())
    assert "disk is full" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


SAVE_LOOP = """
import itertools, sys, torch
from pathlib import Path
from dreamkit.training.checkpoints import save_checkpoint
for step in itertools.count(1):
    save_checkpoint(Path(sys.argv[1]), step // 2, {"x": torch.full((20_000,), float(step))}, {"step": step}, keep=2)
    print(step, flush=True)
"""


def test_kill_9_in_a_save_loop_always_leaves_a_loadable_checkpoint(tmp_path: Path) -> None:
    for attempt in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", SAVE_LOOP, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            first = process.stdout.readline()  # it saves now
            time.sleep(0.05 + 0.037 * attempt)
            process.send_signal(signal.SIGKILL)
            done = [int(line) for line in (first, *process.stdout) if line.endswith("\n")]
        checkpoint, warnings = load_latest(tmp_path)
        assert warnings == []
        assert checkpoint.meta["step"] >= done[-1]
        assert torch.equal(checkpoint.tensors["x"], torch.full((20_000,), float(checkpoint.meta["step"])))
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with guard_interrupts() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_the_guard_never_fires() -> None:
    seen = []

    def work() -> None:
        with guard_interrupts() as interrupt:
            seen.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
