"""Sets that can't be read: what is wrong with them is said, whatever it is; and what the options do."""

import json
import os
import struct
import tracemalloc
import zlib

import pytest
import torch
from capture_sets import FORMATS, load, small_capture, store, write_set
from PIL import Image

from dreamkit.captures import CaptureOptions, photos, read_capture, read_capture_set, reading
from dreamkit.captures.normalise import focus, stands, upright
from dreamkit.errors import ConfigError, SceneError


@pytest.fixture
def transforms(tmp_path):
    return write_set(small_capture(), tmp_path / "set", "transforms") / "transforms.json"


def fails(path, says):
    with pytest.raises(SceneError, match=says) as caught:
        read_capture(path)
    assert caught.value.hint


def changed(path, **changes):
    value = load(path)
    value["frames"][1].update(changes)
    value["frames"][1] = {name: item for name, item in value["frames"][1].items() if item is not None}
    store(path, value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no frames"),
        ("7", "no frames"),
        ('{"frames": []}', "no frames"),
        ('{"frames": {}}', "no frames"),
        ('{"frames": [4]}', "no object"),
        ('{"frames": [{}]}', "transform_matrix"),
        ('{"frames": [{}], "test_filenames": 7}', "list of file names"),
        (json.dumps({"frames": [{}] * 10_001}), "at most 10000"),
    ],
)
def test_json_that_is_no_set(transforms, value, says):
    store(transforms, value)
    fails(transforms, says)


MATRIX = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]]


def matrix(row, column, value):
    rows = [list(line) for line in MATRIX]
    rows[row][column] = value
    return rows


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"file_path": "nowhere.png"}, "no picture"),
        ({"file_path": None}, "names the file"),
        ({"file_path": 7}, "names the file"),
        ({"file_path": ""}, "names the file"),
        ({"file_path": "a\0b"}, "names the file"),
        ({"file_path": "a" * 5000}, "names the file"),
        ({"file_path": "a" * 300}, "no picture"),
        ({"file_path": "images"}, "no picture"),
        ({"file_path": "../outside.png"}, "leads out"),
        ({"file_path": "images/../../outside.png"}, "leads out"),
        ({"file_path": "/etc/hostname"}, "leads out"),
        ({"file_path": "..\\outside.png"}, "leads out"),
        ({"mask_path": "../outside.png"}, "leads out"),
        ({"mask_path": "nowhere.png"}, "no mask"),
        ({"transform_matrix": matrix(0, 0, float("nan"))}, "not finite"),
        ({"transform_matrix": matrix(0, 0, 0.0)}, "not rigid"),
        ({"transform_matrix": matrix(0, 0, -1.0)}, "not rigid"),
        ({"transform_matrix": matrix(0, 0, 2.0)}, "not rigid"),
        ({"transform_matrix": [[1, 2], [3, 4]]}, "not 4 x 4"),
        ({"transform_matrix": matrix(0, 3, 1e7)}, "stands|are .* away"),
        ({"transform_matrix": matrix(0, 3, 1e308)}, "stands at"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"),
        ({"camera_model": ["OPENCV"]}, "camera model"),
        ({"fl_x": None, "fl_y": None}, "no lens"),
        ({"fl_x": -3}, "fl_x is -3"),
        ({"fl_x": True}, "fl_x is True"),
        ({"fl_x": "wide"}, "fl_x is wide"),
        ({"fl_x": 10**400}, "fl_x is 1000"),
        ({"fl_x": None, "fl_y": None, "camera_angle_x": 3.2}, "no pinhole"),
        ({"cx": float("nan")}, "cx is nan"),
        ({"cx": -500}, "principal point"),
        ({"k1": "bent"}, "k1 is bent"),
        ({"k4": 0.1}, "k4 is 0.1"),
        ({"camera_model": "OPENCV_FISHEYE", "p1": 0.1}, "p1 is 0.1"),
        ({"w": 0}, "w is 0"),
        ({"w": 17, "h": 400}, "its camera 17x400"),
    ],
)
def test_frames_that_are_none(transforms, changes, says):
    changed(transforms, **changes)
    fails(transforms, says)


def test_files_outside_are_not_read_through_links(transforms):
    outside = transforms.parent.parent / "secret.png"
    Image.new("RGB", (16, 16)).save(outside)
    (transforms.parent / "images" / "link.png").symlink_to(outside)
    changed(transforms, file_path="images/link.png")
    fails(transforms, "leads out")
    changed(transforms, file_path="images/link")
    fails(transforms, "leads out")
    (transforms.parent / "away").symlink_to(outside.parent)
    changed(transforms, file_path="away/secret.png")
    fails(transforms, "leads out")
    (transforms.parent / "loop.png").symlink_to("loop.png")
    changed(transforms, file_path="loop.png")
    fails(transforms, "no picture")
    copy = transforms.parent / "copy.json"
    transforms.rename(copy.parent.parent / "away.json")
    transforms.symlink_to(copy.parent.parent / "away.json")
    fails(transforms, "leads out")


def test_the_set_s_own_folder_may_be_a_link(transforms, tmp_path):
    (tmp_path / "link").symlink_to(transforms.parent)
    assert len(read_capture(tmp_path / "link").cameras) == 4


def test_pipes_are_not_waited_for(transforms):
    os.mkfifo(transforms.parent / "pipe.png")
    changed(transforms, file_path="pipe.png")
    fails(transforms, "no picture")


def test_one_lens_and_pictures_of_several_sizes(tmp_path):
    folder = write_set(small_capture(), tmp_path, "blender")
    Image.new("RGBA", (16, 12)).save(folder / "images" / "view_0002.png")
    fails(folder, "several sizes")


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures_that_are_none(tmp_path, kind):
    folder = write_set(small_capture(), tmp_path, kind)
    path = folder / "images" / "view_0001.png"
    content = path.read_bytes()
    for bad in (b"", b"not a picture", content[:40], content[: len(content) // 2]):
        path.write_bytes(bad)
        fails(folder, "no picture that can be read")
    path.unlink()
    fails(folder, "no picture")


def test_pictures_are_weighed_before_they_are_decoded(tmp_path):
    """A head that speaks of far more pixels than the file has."""
    folder = write_set(small_capture(), tmp_path, "transforms")
    content = bytearray((folder / "images" / "view_0000.png").read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (folder / "images" / "view_0000.png").write_bytes(bytes(content))
    fails(folder, "3600000000 pixels")
    content[16:24] = struct.pack(">II", 9_000, 9_000)  # below Pillow's own limit
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (folder / "images" / "view_0000.png").write_bytes(bytes(content))
    fails(folder, "9000x9000 pixels")
    Image.new("I;16", (16, 16)).save(folder / "images" / "view_0000.png")
    fails(folder, "I;16")


def test_sets_larger_than_memory(tmp_path, monkeypatch):
    folder = write_set(small_capture(), tmp_path, "transforms")
    monkeypatch.setattr(reading, "MOST_PIXELS", 4 * 10 * 10)
    fails(folder, "fit into memory")
    monkeypatch.setattr(photos, "MOST_PIXELS", 100)
    fails(folder, "16x16 pixels")


def test_masks(transforms):
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    mask.save(transforms.parent / "mask.png")
    changed(transforms, mask_path="mask.png")
    taken, plain = read_capture(transforms), small_capture()
    assert float(taken.alphas[1, 0, :4].max()) == 0.0
    torch.testing.assert_close(taken.alphas[1, 0, 4:12, 4:12], plain.alphas[1, 0, 4:12, 4:12], atol=0.01, rtol=0)
    torch.testing.assert_close(taken.images[1, :, 0, 0], torch.full((3,), 0.5))
    mask.resize((8, 8)).save(transforms.parent / "mask.png")
    fails(transforms, "8x8 pixels")


def test_masks_of_colmap(tmp_path):
    folder = write_set(small_capture(), tmp_path, "colmap-binary")
    (folder / "masks").mkdir()
    Image.new("L", (16, 16)).save(folder / "masks" / "view_0002.png.png")
    Image.new("L", (16, 16)).save(folder / "masks" / "view_0003.png")
    alphas = read_capture(folder).alphas.amax(dim=(1, 2, 3))
    assert alphas[2:].tolist() == [0.0, 0.0]
    assert float(alphas[:2].min()) > 0.9


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_kinds_of_pixels(tmp_path, mode):
    folder = write_set(small_capture(), tmp_path, "transforms")
    path = folder / "images" / "view_0000.png"
    picture = Image.new("RGBA", (16, 16), (255, 255, 255, 255)).convert(mode)
    path.unlink()
    picture.save(path, format="TIFF")
    taken = read_capture(folder)
    assert float(taken.alphas[0].min()) == 1.0
    assert float(taken.images[0].min()) > 0.98


def test_turned_photos_stay_as_they_are_stored(tmp_path):
    """EXIF says "turn me"; the camera belongs to the pixels as they are."""
    folder = write_set(small_capture(), tmp_path, "transforms")
    path = folder / "images" / "view_0000.png"
    before = read_capture(folder)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as picture:
        picture.load()
        picture.save(path, exif=exif)
    assert torch.equal(read_capture(folder).images, before.images)


def test_folders_that_are_no_sets(tmp_path):
    fails(tmp_path, "no set of posed pictures")
    fails(tmp_path / "nowhere", "no folder")
    fails("a\0b", "no folder|can't be read")
    fails("a" * 5000, "no folder|can't be read")
    (tmp_path / "file").write_text("")
    fails(tmp_path / "file", "no folder")


BAD_BINARIES = {
    "cameras.bin": [
        (b"", "too early"),
        (struct.pack("<Q", 2**60), "speaks of"),
        (struct.pack("<Q", 0), "which is not there"),
        (struct.pack("<QIiQQ3d", 1, 1, 7, 16, 16, 1.0, 8.0, 8.0), "FOV"),
        (struct.pack("<QIiQQ3d", 1, 1, -1, 16, 16, 1.0, 8.0, 8.0), "number -1"),
        (struct.pack("<QIiQQ3d", 1, 1, 99, 16, 16, 1.0, 8.0, 8.0), "number 99"),
        (struct.pack("<QIiQQ3d", 1, 1, 0, 16, 16, float("nan"), 8.0, 8.0), "fx of a camera is nan"),
        (struct.pack("<QIiQQ3d", 1, 1, 0, 2**63, 16, 9.0, 8.0, 8.0), "width of a camera"),
        (struct.pack("<QIiQQ3d", 1, 1, 0, 0, 16, 9.0, 8.0, 8.0), "width of a camera is 0"),
    ],
    "images.bin": [
        (b"\1", "too early"),
        (struct.pack("<Q", 2**62), "speaks of"),
        (struct.pack("<Q", 0), "no images"),
        (struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 3, 1) + b"a" * 20, "too early"),
        (struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 3, 1) + b"a" * 5000, "does not end"),
        (struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 3, 1) + b"a\0" + struct.pack("<Q", 2**40) + b"b" * 9, "speaks"),
        (struct.pack("<QI7dI", 1, 1, 0, 0, 0, 0, 0, 0, 3, 1) + b"a\0" + bytes(8), "length 0"),
        (struct.pack("<QI7dI", 1, 1, *[float("nan")] * 7, 1) + b"a\0" + bytes(8), "not finite"),
        (struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 3, 1) + b"../a.png\0" + bytes(8), "leads out"),
        (struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 3, 1) + b"\xff\xfe\0" + bytes(8), "damaged"),
    ],
    "points3D.bin": [(struct.pack("<Q", 2**61), "speaks of"), (struct.pack("<Q", 1) + bytes(50), "speaks|early")],
}


@pytest.mark.parametrize(
    ("name", "content", "says"), [(n, *case) for n, cases in BAD_BINARIES.items() for case in cases]
)
def test_damaged_binary_models_take_no_memory(tmp_path, name, content, says):
    folder = write_set(small_capture(2), tmp_path, "colmap-binary")
    (folder / "sparse" / "0" / name).write_bytes(content)
    tracemalloc.start()
    try:
        fails(folder, says)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cameras.txt", "1 FULL_OPENCV 16 16 1 1 8 8 0 0 0 0 0 0 0 0", "FULL_OPENCV"),
        ("cameras.txt", "1 PINHOLE 16 16 9 9 8", "3 parameters"),
        ("cameras.txt", "1 PINHOLE 16", "damaged"),
        ("cameras.txt", "1", "damaged"),
        ("cameras.txt", "1 PINHOLE 16 16 9 nine 8 8", "damaged"),
        ("cameras.txt", "1 PINHOLE 16 16 9 inf 8 8", "fy of a camera is inf"),
        ("cameras.txt", "1 PINHOLE 16 100 9 9 8 8", "its camera 16x100"),
        ("cameras.txt", b"\xff\xfe\xfd", "damaged"),
        ("images.txt", "1 1 0 0 0 0 0 3 1", "damaged"),
        ("images.txt", "1 1 0 0 0 0 3 1 view_0000.png", "damaged"),
        ("images.txt", "1 1 0 0 0 0 0 3 9 view_0000.png", "camera 9"),
        ("images.txt", "1 1 1 1 1 0 0 3 1 view_0000.png", "length 2"),
        ("images.txt", "1 1 0 0 0 0 0 3 1 /etc/hostname", "leads out"),
        ("images.txt", "# nothing", "no images"),
        ("points3D.txt", "1 2 3", "damaged"),
    ],
)
def test_damaged_text_models(tmp_path, name, content, says):
    folder = write_set(small_capture(2), tmp_path, "colmap-text")
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "sparse" / "0" / name).write_bytes(content + b"\n")
    fails(folder, says)


def test_models_without_cameras(tmp_path):
    folder = write_set(small_capture(2), tmp_path, "colmap-binary")
    (folder / "sparse" / "0" / "cameras.bin").unlink()
    fails(folder, "can't be read")


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "colmap/sparse/0", "."])
def test_where_models_lie(tmp_path, place):
    folder = write_set(small_capture(3), tmp_path, "colmap-binary")
    files = list((folder / "sparse" / "0").iterdir())
    (folder / place).mkdir(parents=True, exist_ok=True)
    for file in files:
        file.rename(folder / place / file.name)
    assert len(read_capture(folder).cameras) == 3


def test_cameras_that_stand_around_nothing(tmp_path):
    capture = small_capture(3)
    folder = write_set(capture, tmp_path, "transforms")
    value = load(folder / "transforms.json")
    for index, frame in enumerate(value["frames"]):
        frame["transform_matrix"] = [[1, 0, 0, 10.0 * index], [0, 1, 0, 0], [0, 0, 1, 50], [0, 0, 0, 1]]
    store(folder / "transforms.json", value)
    fails(folder, "in parallel")
    with pytest.raises(SceneError, match="stands"):
        read_capture(folder, CaptureOptions(normalise="never"))
    for frame in value["frames"]:
        frame["transform_matrix"][0][3] = 1.0
        frame["transform_matrix"][2][3] = 5.0
    store(folder / "transforms.json", value)
    read = read_capture(folder, CaptureOptions(normalise="never"))
    assert read.cameras.position[0].tolist() == [1.0, 5.0, 0.0]  # z up becomes y up
    read = read_capture(folder, CaptureOptions(normalise="never", up="y"))
    assert read.cameras.position[0].tolist() == [1.0, 0.0, 5.0]


def test_splits(tmp_path):
    folder = write_set(small_capture(17), tmp_path, "transforms")

    def names(**options):
        found = read_capture_set(folder, CaptureOptions(**options))
        count = len(found.training.cameras)
        assert count + (0 if found.held_out is None else len(found.held_out.cameras)) == len(found.names)
        return found.names[:count], [name[5:9] for name in found.names[count:]]

    assert names()[1] == ["0007", "0015"]
    assert names(hold_out=4)[1] == ["0003", "0007", "0011", "0015"]
    assert names(hold_out=0)[1] == []
    value = load(folder / "transforms.json")
    files = [frame["file_path"] for frame in value["frames"]]
    store(folder / "transforms.json", {**value, "test_filenames": files[2:4]})
    assert names()[1] == ["0002", "0003"]
    store(folder / "transforms.json", {**value, "train_filenames": files[:5], "val_filenames": files[9:10]})
    training, held_out = names()
    assert (len(training), held_out) == (5, ["0009"])
    store(folder / "transforms.json", {**value, "test_filenames": files})
    with pytest.raises(ConfigError, match="none is left"):
        names()


def test_blender_s_own_split(tmp_path):
    folder = write_set(small_capture(6), tmp_path, "blender")
    value = load(folder / "transforms_train.json")
    store(folder / "transforms_test.json", {**value, "frames": value["frames"][:2]})
    found = read_capture_set(folder)
    assert (len(found.training.cameras), len(found.held_out.cameras)) == (6, 2)
    found = read_capture_set(folder, CaptureOptions(hold_out=3))
    assert (len(found.training.cameras), len(found.held_out.cameras)) == (4, 2)


@pytest.mark.parametrize(
    "options",
    [{"max_size": 8}, {"hold_out": 1}, {"hold_out": -8}, {"normalise": "often"}, {"up": "x"}, {"background": 2.0}],
)
def test_options_out_of_range(options):
    with pytest.raises(ConfigError):
        CaptureOptions(**options)


def test_a_subject_that_is_too_large_shrinks(tmp_path):
    """The cameras stand well, but what they see reaches beyond the unit sphere."""
    capture = small_capture(8, 32)
    capture.alphas[:] = 0.0
    capture.alphas[:, :, :, 2:30] = 1.0
    folder = write_set(capture, tmp_path, "transforms")
    value = load(folder / "transforms.json")
    for frame in value["frames"]:
        frame["fl_x"] = frame["fl_y"] = 20.0
    store(folder / "transforms.json", value)
    read = read_capture(folder)
    assert float(read.cameras.radius.max()) < 2.4
    origins, directions = read.cameras.rays()
    along = (origins * directions).sum(-1, keepdim=True)
    nearest = (origins - along * directions).norm(dim=-1)
    assert float(nearest[read.alphas[:, 0] > 0.5].max()) < 1.0


def test_geometry_of_sets():
    cameras = small_capture(12).cameras
    poses = cameras.camera_to_world.double()
    assert stands(poses)
    torch.testing.assert_close(focus(poses), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    assert focus(poses[:1]) is None
    assert stands(poses[:1])
    torch.testing.assert_close(upright(poses)[1], torch.tensor([0.0, 1, 0]).double(), atol=1e-5, rtol=0)
    strayed = poses.clone()
    strayed[3, :3, 3] = torch.tensor([40.0, -20.0, 7.0])  # one camera that was placed wrongly
    assert float(focus(strayed).norm()) < 0.05
    far = poses.clone()
    far[:, :3, 3] *= 2
    assert not stands(far)
    assert not stands(torch.diag(torch.tensor([1.0, -1, -1, 1]).double()) @ poses)
