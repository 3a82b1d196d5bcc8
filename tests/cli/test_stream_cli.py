"""`dreamkit stream` and `dreamkit bench stream`, in this process and killed in one of their own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest
import torch

from dreamkit.cli.main import main
from dreamkit.cli.preview import Preview, TerminalPreview, WindowPreview, half_blocks, open_preview

pytestmark = pytest.mark.usefixtures("one_thread")
STREAM = ["stream", "a red cube rolling", "--model", "tiny-random"]


def read_frames(path):
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    next(reader)
    return list(reader)


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def stream_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("dreamkit-stream")]


def test_a_stream_is_written_and_measured(tmp_path, capsys):
    out = tmp_path / "film.mp4"
    words = ["--frames", "14", "--switch", "6:a blue ball", "--switch", "9:a cone", "--camera", "orbit"]
    assert main([*STREAM, *words, "--out", str(out), "--json", "--overlap", "on"]) == 0
    result = last_json(capsys)
    assert len(read_frames(out)) == 14
    assert result["out"] == str(out)
    assert result["frames"] == 14
    numbers = ("denoise_fps", "end_to_end_fps", "first_frame_s", "chunk_ms_first", "chunk_ms_last", "peak_rss_mb")
    assert all(result[name] > 0 for name in numbers)
    assert set(result["drift"]) == {"colour", "contrast", "sharpness"}
    assert not stream_threads()


def test_the_same_seed_gives_the_same_file(tmp_path):
    for name in ("a.mkv", "b.mkv"):
        assert main([*STREAM, "--frames", "7", "--seed", "3", "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()


def test_the_file_is_named_after_the_prompt(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*STREAM, "--frames", "1"]) == 0
    assert (tmp_path / "outputs" / "a-red-cube-rolling.mp4").is_file()
    assert "outputs/a-red-cube-rolling.mp4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frames", "0"], "--frames is 0"),
        (["--switch", "120:a ball"], "--switch 120:'a ball' comes too late: the video has 120 frames"),
        (["--switch", "a ball"], "--switch 'a ball' is not understood"),
        (["--switch", "5: "], "prompt is empty"),
        (["--switch-by", "magic"], "'magic' is not known"),
        (["--camera", "zoom"], "'zoom' is not known"),
        (["--camera", "BAD.csv"], "BAD.csv, line 1 has 3 numbers"),
        (["--tracks", "BAD.json"], "frame 0, point 0 is [0.5, 2]"),
        (["--chunk", "12"], "A chunk of 12 frames does not fit into a window of 9"),
        (["--size", "big"], "--size 'big' is not understood"),
        (["--size", "18x16"], "multiples of"),
        (["--sparsity", "keep=2"], "The sparsity's keep is 2.0"),
        (["--sparsity", "half"], "The sparsity 'half' is not understood"),
        (["--out", "film.gif"], "film.gif is no .mp4 or .mkv"),
        (["--model", "nothing"], "There is no folder 'nothing'"),
        (["--overlap", "maybe"], "'maybe' is not known"),
        (["--fps", "0"], "--fps is 0"),
        (["--guidance", "nan"], "--guidance is nan"),
        (["--preview"], "no window and no terminal"),
        (["--model", "tiny-wan-random", "--camera", "static"], "knows no cameras"),
    ],
)
def test_mistakes_are_explained(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    (tmp_path / "BAD.csv").write_text("1,2,3\n")
    (tmp_path / "BAD.json").write_text("[[[0.5, 2]]]")
    assert main([*STREAM, *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.mp4"))
    assert not stream_threads()


def test_an_empty_prompt_is_a_mistake(capsys):
    assert main(["stream", " ", "--model", "tiny-random"]) == 2
    assert "empty" in capsys.readouterr().err


def test_a_full_disk_in_mid_stream_is_explained(tmp_path, capsys):
    full = tmp_path / "full.mp4"
    full.symlink_to("/dev/full")
    words = ["--endless", "--size", "32x32", "--overlap", "on", "--json", "--out", str(full)]
    assert main([*STREAM, *words]) == 2
    captured = capsys.readouterr()
    assert "No space left on device" in captured.err
    assert "disk is full" in json.loads(captured.out.splitlines()[-1])["hint"]
    assert not stream_threads()


def start(out, *words):
    command = [sys.executable, "-m", "dreamkit.cli.main", *STREAM, "--out", str(out), "--fps", "4", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A background job is born deaf to Ctrl-C.
    deaf = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    signal.signal(signal.SIGINT, deaf)
    deadline = time.monotonic() + 120
    while (not out.exists() or out.stat().st_size < 5_000) and process.poll() is None:
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.05)
    return process


def test_a_killed_stream_leaves_a_file_that_plays(tmp_path):
    out = tmp_path / "film.mp4"
    process = start(out, "--endless")
    encoders = encoders_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    for encoder in encoders:
        encoder.wait(60)
    assert process.returncode == -9
    assert len(read_frames(out)) >= 4


def test_ctrl_c_ends_an_endless_stream_well(tmp_path):
    out = tmp_path / "film.mp4"
    process = start(out, "--endless", "--json", "--overlap", "on")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    result = json.loads(output.splitlines()[-1])
    assert abs(len(read_frames(out)) - result["frames"]) <= 1  # it may have come between reading and writing


def encoders_of(pid):
    import psutil

    return psutil.Process(pid).children(recursive=True)


# The benchmark -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny-random", "tiny-wan-random"])
def test_the_benchmark_prints_its_numbers(capsys, model):
    assert main(["bench", "stream", "--model", model, "--frames", "20", "--json", "--overlap", "off"]) == 0
    result = last_json(capsys)
    wanted = {
        "machine", "model", "parameters", "size", "device", "precision", "overlap", "cache_mb", "frames", "denoise_fps",
        "end_to_end_fps", "first_frame_s", "chunk_ms_first", "chunk_ms_last", "peak_rss_mb",
    }  # fmt: skip
    assert wanted <= set(result)
    assert result["frames"] == 20
    assert result["overlap"] is False
    assert result["size"] == [16, 16]
    assert (result["sparsity"], result["blocks_computed"]) == ("dense", 1.0)


def test_the_benchmark_of_a_sparse_student(capsys):
    words = ["bench", "stream", "--model", "tiny-random", "--frames", "20", "--json", "--overlap", "off"]
    assert main([*words, "--sparsity", "keep=0.25,block=8"]) == 0
    result = last_json(capsys)
    assert (result["sparsity"], result["blocks_computed"]) == ("keep=0.25,block=8,dense_layers=0", 0.5667)
    assert main([*words, "--sparsity", "mass=0.5"]) == 0
    assert last_json(capsys)["blocks_computed"] is None


def test_the_benchmark_explains_a_missing_model(capsys):
    assert main(["bench", "stream", "--model", "nothing-random"]) == 2
    assert "no folder 'nothing-random'" in capsys.readouterr().err


# Previews ------------------------------------------------------------------------------------------------------------


def test_half_blocks_show_two_pixels_a_character():
    pixels = torch.zeros(4, 3, 3, dtype=torch.uint8)
    pixels[0, 0] = torch.tensor([1, 2, 3])
    pixels[1, 0] = torch.tensor([4, 5, 6])
    lines = half_blocks(pixels, 80, 24)
    assert len(lines) == 2
    assert lines[0].startswith("\x1b[38;2;1;2;3m\x1b[48;2;4;5;6m▀")
    assert [line.count("▀") for line in lines] == [3, 3]


@pytest.mark.parametrize(("columns", "rows"), [(20, 24), (80, 5), (1, 1)])
def test_half_blocks_fit_the_terminal_and_keep_proportions(columns, rows):
    lines = half_blocks(torch.zeros(480, 832, 3, dtype=torch.uint8), columns, rows)
    width = lines[0].count("▀")
    assert len(lines) <= max(rows, 1)
    assert width <= columns
    if width > 4:
        assert 2 * len(lines) / width == pytest.approx(480 / 832, rel=0.2)


class Terminal:
    def __init__(self, is_terminal=True):
        self.text = ""
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_terminal_is_drawn_in_place(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    terminal = Terminal()
    preview = open_preview(1000, "title", terminal)
    assert isinstance(preview, TerminalPreview)
    for _ in range(2):
        preview.show(torch.zeros(4, 4, 3, dtype=torch.uint8), "frame 1")
    preview.close()
    assert terminal.text.startswith("\x1b[?25l")
    assert terminal.text.count("\x1b[3A") == 1  # two lines of blocks and one of text
    assert terminal.text.endswith("\x1b[?25h")


def test_frames_are_shown_no_faster_than_they_play():
    now, shown = [0.0], []

    class Recorder(Preview):
        def draw(self, pixels, status):
            shown.append(now[0])

        def close(self):
            pass

    def sleep(seconds):
        now[0] += seconds

    preview = Recorder(10, lambda: now[0], sleep)
    for cost in (0.0, 0.0, 0.0, 0.35, 0.0, 0.0):
        now[0] += cost
        preview.show(torch.zeros(2, 2, 3), "")
    assert shown == pytest.approx([0.0, 0.1, 0.2, 0.55, 0.65, 0.75])


def test_a_window_enlarges_and_its_closing_is_ctrl_c(monkeypatch):
    log = {}

    class Root:
        def title(self, text):
            log["title"] = text

        def protocol(self, name, action):
            log[name] = action

        def update(self):
            log["updates"] = log.get("updates", 0) + 1

        def destroy(self):
            log["destroyed"] = True

    class Label:
        def __init__(self, root):
            pass

        def pack(self):
            pass

        def configure(self, image):
            log["image"] = image

    fake = types.ModuleType("tkinter")
    fake.Tk, fake.Label, fake.PhotoImage = Root, Label, lambda data, format: data
    monkeypatch.setitem(sys.modules, "tkinter", fake)
    monkeypatch.setenv("DISPLAY", ":0")
    preview = open_preview(1000, "title", Terminal(False))
    assert isinstance(preview, WindowPreview)
    preview.show(torch.full((64, 32, 3), 7, dtype=torch.uint8), "frame 3")
    assert log["image"] == b"P6 224 448 255 " + bytes([7]) * (224 * 448 * 3)
    assert log["title"] == "frame 3"
    log["WM_DELETE_WINDOW"]()
    with pytest.raises(KeyboardInterrupt):
        preview.show(torch.zeros(64, 32, 3, dtype=torch.uint8), "")
    preview.close()
    assert log["destroyed"]


def test_a_trained_student_is_streamed_as_its_folder_says(monkeypatch):
    from dreamkit.cli.stream import Stream, stream_config
    from dreamkit.video import students
    from dreamkit.video.sparse_attention import Sparsity
    from dreamkit.video.stream_config import StreamConfig

    student = types.SimpleNamespace(name="folder", autoencoder=types.SimpleNamespace(temporal_factor=1))
    trained = StreamConfig(size=(32, 32), chunk=2, window=5, sink=1, shift=3.0, sparsity=Sparsity(keep=0.3))
    monkeypatch.setattr(students, "read_stream_config", lambda folder: trained)
    config = stream_config(Stream("a cube", window=6), student, fps=20)
    assert (config.size, config.chunk, config.window, config.sink, config.shift) == ((32, 32), 2, 6, 1, 3.0)
    assert (config.fps, config.snapshot_mb, config.sparsity) == (20, 0, Sparsity(keep=0.3))
    assert stream_config(Stream("a cube", sparsity="dense"), student).sparsity is None
    monkeypatch.setattr(students, "read_stream_config", lambda folder: None)
    assert stream_config(Stream("a cube"), student) == StreamConfig(snapshot_mb=0)
