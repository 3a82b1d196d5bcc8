"""Files that grow with a stream: they play at every moment, hold what went in, and explain what went wrong."""

import resource
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest
import torch

from dreamkit.errors import ConfigError, RunError
from dreamkit.video.stream_file import StreamFile, check_name


def ramp(count, height=32, width=48):
    """Frames whose grey says their number."""
    return [torch.full((height, width, 3), 8 * number, dtype=torch.uint8) for number in range(count)]


def read_frames(path):
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    size = next(reader)["size"]
    return [torch.frombuffer(bytearray(data), dtype=torch.uint8).view(size[1], size[0], 3) for data in reader]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_come_back(tmp_path, suffix):
    path = tmp_path / "new" / f"film{suffix}"
    with StreamFile(path, 12) as file:
        for frame in ramp(30):
            file.add(frame)
    back = read_frames(path)
    assert len(back) == 30
    for number, frame in enumerate(back):
        assert abs(float(frame.float().mean()) - 8 * number) < 3


def test_odd_sides_are_extended_and_the_same_frames_give_the_same_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        with StreamFile(tmp_path / name, 12) as file:
            for frame in ramp(5, 31, 33):
                file.add(frame)
    assert read_frames(tmp_path / "a.mp4")[0].shape == (32, 34, 3)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_killed_writer_leaves_a_file_that_plays(tmp_path, suffix):
    path = tmp_path / f"film{suffix}"
    script = f"""
        import os, signal, torch
        from dreamkit.video.stream_file import StreamFile
        file = StreamFile({str(path)!r}, 12)
        for number in range(30):
            file.add(torch.full((32, 48, 3), 8 * number, dtype=torch.uint8))
        print(file._encoder.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    wait_for_end(int(done.stdout))
    assert len(read_frames(path)) == 30


def test_half_a_file_plays(tmp_path):
    # As a power cut leaves it: fragments of a second, the last one torn.
    path = tmp_path / "film.mp4"
    with StreamFile(path, 4) as file:
        for frame in ramp(30):
            file.add(frame + torch.randint(0, 8, frame.shape, generator=torch.Generator().manual_seed(0)).byte())
    whole = path.read_bytes()
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(whole[: len(whole) // 2])
    assert 8 <= len(read_frames(torn)) <= 20


def wait_for_end(pid):
    """The encoder sees its input end and finishes the file by itself."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(60)


def add_noise(file):
    """Frames that don't compress, until the file will have no more."""
    for _ in range(3000):
        file.add(torch.randint(0, 256, (256, 256, 3), dtype=torch.uint8))


def test_a_full_disk_is_explained(tmp_path):
    full = tmp_path / "full.mp4"
    full.symlink_to("/dev/full")
    file = StreamFile(full, 12)
    with pytest.raises(RunError, match="No space left on device") as caught:
        add_noise(file)
    assert "disk is full" in caught.value.hint
    with pytest.raises(RunError, match="No space left"):
        file.close()
    file.close()  # a second time says nothing


def test_a_file_that_grows_too_large_is_explained(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = StreamFile(tmp_path / "film.mp4", 12)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(RunError, match="File too large"):
            add_noise(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with pytest.raises(RunError):
            file.close()


def test_what_went_wrong_first_is_told(tmp_path):
    def fail():
        with StreamFile(tmp_path / "film.mp4", 12) as file:
            file.add(ramp(1)[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(read_frames(tmp_path / "film.mp4")) == 1


def test_names_sizes_and_places_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"film.gif is no .mp4 or .mkv"):
        check_name("film.gif")
    with pytest.raises(ConfigError, match="Frames a second is 0"):
        StreamFile(tmp_path / "film.mp4", 0)
    (tmp_path / "there.mp4").mkdir()
    with pytest.raises(RunError, match=r"Could not write .*there.mp4"):
        StreamFile(tmp_path / "there.mp4", 12)
    with StreamFile(tmp_path / "film.mp4", 12) as file:
        file.add(ramp(1)[0])
        with pytest.raises(ConfigError, match=r"shape is \[16, 16, 3\]"):
            file.add(ramp(1, 16, 16)[0])
