"""What pictures show, how often they are there, and that they are decoded once."""

import os
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from noisy_student import doubles, folders, load, load_pictures


def shape() -> tuple[Image.Image, Image.Image]:
    """(an opacity, 0 to 255: a disc on a clear ground; the picture that shows: the disc black on
    white), grey, 32 x 32.
    """
    alpha = Image.new("L", (32, 32))
    ImageDraw.Draw(alpha).ellipse((6, 4, 25, 23), fill=255)
    return alpha, alpha.point(lambda value: 255 - value)


def black(mode: str) -> Image.Image:
    """All channels 0, the disc in the opacity."""
    image = Image.new(mode, (32, 32))
    image.putalpha(shape()[0])
    return image


def palette(colours: int = 4) -> Image.Image:
    """The colours are all black; 1 is the disc, 0 the ground."""
    image = shape()[0].point(lambda value: value // 255).convert("L")
    image = Image.frombytes("P", (32, 32), image.tobytes())
    image.putpalette([0, 0, 0] * colours)
    return image


# ------------------------------------------------------------------------------------- transparency


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("rgba.png", black("RGBA"), {}),
        ("la.png", black("LA"), {}),
        ("rgba.webp", black("RGBA"), {"lossless": True, "exact": True}),
        ("rgba.tiff", black("RGBA"), {}),
        ("la.tiff", black("LA"), {}),
        ("rgba.tga", black("RGBA"), {}),
        ("rgba.jp2", black("RGBA"), {}),
        ("rgba.ico", black("RGBA"), {"sizes": [(32, 32)]}),
        ("rgba.dds", black("RGBA"), {}),
        ("p.png", palette(), {"transparency": 0}),
        ("pa.png", palette(), {"transparency": bytes([0, 255])}),
        ("p.gif", palette(), {"transparency": 0}),
        ("p2.png", palette(2), {"transparency": 0}),
    ],
)
def test_what_is_transparent_is_white(
    tmp_path: Path, name: str, image: Image.Image, options: dict[str, object]
) -> None:
    image.save(tmp_path / name, **options)
    (pixels,) = load_pictures([tmp_path / name])
    assert np.array_equal(pixels.numpy(), np.broadcast_to(np.asarray(shape()[1]), (3, 32, 32)))


@pytest.mark.parametrize(
    ("colour", "mode", "clear"), [(0, "1", 1), (0, "L", 200), ((9, 0, 0), "RGB", (7, 7, 7))]
)
def test_a_single_transparent_colour_is_white(
    tmp_path: Path, colour: object, mode: str, clear: object
) -> None:
    """PNG's tRNS, of 1, 8 and 3 x 8 bits; the ground has the colour that is not shown."""
    disc = np.asarray(shape()[0]) > 0
    pixels = (
        np.where(disc[..., None], np.array(colour).reshape(-1), np.array(clear).reshape(-1))
        .astype(np.uint8)
        .squeeze()
    )
    image = Image.fromarray(pixels * 255).convert("1") if mode == "1" else Image.fromarray(pixels)
    assert image.mode == mode
    image.save(tmp_path / "a.png", transparency=clear)
    (found,) = load_pictures([tmp_path / "a.png"])
    expected = np.where(disc[..., None], np.array(colour).reshape(-1), 255)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.broadcast_to(expected, (32, 32, 3)))


def png(
    path: Path, depth: int, colour: int, rows: bytes, size: tuple[int, int], clear: bytes = b""
) -> None:
    """A PNG by its specification, for depths that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", clear) if clear else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("depth", "colour", "row", "clear", "expected"),
    [
        (2, 0, bytes([0b00_01_10_11]), b"\0\1", [0, 255, 170, 255]),
        (4, 0, bytes([0x03, 0xF6]), b"\0\3", [0, 255, 255, 102]),
        (16, 0, b"\0\0\x12\x34\xff\xff\x80\0", b"\x12\x34", [0, 255, 255, 128]),
        (
            16,
            2,
            b"\0\0" * 3 + b"\x12\x34" * 3 + b"\xff\xff" * 3 + b"\x80\0" * 3,
            b"\x12\x34" * 3,
            [0, 255, 255, 128],
        ),
    ],
)
def test_a_transparent_value_of_other_depths(
    tmp_path: Path, depth: int, colour: int, row: bytes, clear: bytes, expected: list[int]
) -> None:
    png(tmp_path / "a.png", depth, colour, (b"\0" + row) * 16, (4, 16), clear)
    image = np.empty((3, 16, 16), np.uint8)
    assert not isinstance(folders._decode_into(image, tmp_path / "a.png", 16), str)
    as_is = Image.fromarray(np.tile(np.array(expected, np.uint8), (16, 1))).resize(
        (16, 16), Image.Resampling.BILINEAR
    )
    assert np.array_equal(image, np.broadcast_to(np.asarray(as_is), (3, 16, 16)))


def test_half_transparent_colours_are_mixed_with_white(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (32, 32, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    (pixels,) = load_pictures([tmp_path / "a.png"])
    opacity = rgba[..., 3:] / 255
    assert (
        np.abs(
            pixels.permute(1, 2, 0).numpy() - (rgba[..., :3] * opacity + 255 * (1 - opacity))
        ).max()
        <= 1
    )


def test_associated_opacity_of_tiff(tmp_path: Path) -> None:
    """There the colours are multiplied by the opacity already: those of a half opaque red are half
    as large.
    """
    tiff = Image.new("RGBA", (32, 32), (128, 0, 0, 128))
    tiff.save(tmp_path / "a.tiff")
    content = (tmp_path / "a.tiff").read_bytes()
    extra = (338).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    assert content.count(extra + b"\2") == 1
    # 2: not associated
    (tmp_path / "a.tiff").write_bytes(content.replace(extra + b"\2", extra + b"\1"))
    (pixels,) = load_pictures([tmp_path / "a.tiff"])
    assert (pixels[0] >= 254).all() and (pixels[1:].int() - 127).abs().max() <= 1


# ------------------------------------------------------------------------------------------ 16 bits


def ramp(bits: int, to: int = 255) -> np.ndarray:
    """uint16, 32 x 32, from 0 to ``to`` of 255 of what so many bits hold."""
    return (np.linspace(0, to, 1024).reshape(32, 32).round() * 2 ** (bits - 8)).astype(np.uint16)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_sixteen_bits_have_one_scale_for_all_pictures(
    folder: Path, tmp_path: Path, bits: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The brightest is in the test set, and stays brighter than the others by what it was."""
    for name, to in {"train/cat/a.png": 100, "train/cat/b.tiff": 50, "test/dog/a.png": 255}.items():
        Image.fromarray(ramp(bits, to)).save(folder / name)
    for _ in range(2):  # decoded and cached
        train, test = load(folder, tmp_path / "root")
        for image, to in ((train.images[6], 100), (train.images[7], 50), (test.images[6], 255)):
            assert np.array_equal(image.numpy(), np.broadcast_to(ramp(8, to), (3, 32, 32)))
        said = (
            f"3 16-bit pictures, test/dog/a.png first, are read as of {bits} bits, "
            f"since none is brighter than {255 * 2 ** (bits - 8):,}"
        )
        assert (said in capsys.readouterr().out) == (bits < 16) and train.bits == test.bits == bits
    (alone,) = load_pictures([folder / "train" / "cat" / "a.png"], bits=bits)
    assert torch.equal(alone, train.images[6])
    load_pictures([folder / "train" / "cat" / "a.png"])
    assert f"are read as of {min(16, bits - 1)} bits" in capsys.readouterr().out
    with pytest.raises(ValueError, match="bits=7 is not a whole number from 8 to 16"):
        load_pictures([folder / "train" / "cat" / "a.png"], bits=7)


def test_eight_bit_pictures_beside_them_are_as_they_were(folder: Path, tmp_path: Path) -> None:
    plain = load(folder, tmp_path / "root")[0]
    Image.fromarray(ramp(12)).save(folder / "train" / "cat" / "a.png")
    assert torch.equal(
        load(folder, tmp_path / "root")[0].images[[*range(6), *range(7, 13)]], plain.images
    )


def test_colours_of_twelve_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pillow reads the upper 8 of 16 bits: 16 levels are left, over the whole range, and it is
    said.
    """
    row = b"".join(int(value).to_bytes(2, "big") * 3 for value in ramp(12).ravel()[:1024:32])
    png(tmp_path / "a.png", 16, 2, (b"\0" + row) * 32, (32, 32))
    (pixels,) = load_pictures([tmp_path / "a.png"])
    expected = np.tile(ramp(12).ravel()[:1024:32] / 4095 * 255, (32, 1))
    assert np.abs(pixels.numpy() - expected).max() <= 17 and pixels.max() == 255
    assert "1 16-bit pictures" in (said := capsys.readouterr().out) and "read as of 12 bits" in said


# ------------------------------------------------------------------------------------------ doubles


def test_pictures_that_are_there_twice(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two test pictures in train/, one of them in unlabeled/ too, one picture in two classes."""
    (folder / "unlabeled").mkdir()
    plain = load(folder, tmp_path / "root")[0]
    assert "twice" not in capsys.readouterr().out
    for i in range(2):
        with Image.open(folder / "test" / "cat" / f"{i}.png") as image:
            image.save(folder / "train" / "cat" / f"x{i}.bmp")  # equal pixels, not equal bytes
    shutil.copy(folder / "test" / "cat" / "0.png", folder / "unlabeled")
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "train" / "dog" / "x.png")
    for _ in range(2):  # decoded and cached
        train, test = load(folder, tmp_path / "root")
        said = capsys.readouterr().out
        assert (
            len(train) == 16
            and said.count("\n") == 1
            and "2 of train/ and 1 of unlabeled/ are test pictures too" in said
        )
        assert (
            "train/cat/x0.bmp (the same as test/cat/0.png) first: the score is too good" in said
            and "drop_test_doubles=True" in said
        )
        assert (
            "1 in two classes, train/cat/0.png (the same as train/dog/x.png) first: one of the "
            "labels is wrong" in said
        )
    kept, same = load(folder, tmp_path / "root", drop_test_doubles=True)
    assert torch.equal(kept.images[:12], plain.images) and torch.equal(
        kept.images[12], plain.images[0]
    )
    assert kept.labels.tolist() == [0] * 6 + [1] * 7 and same.fingerprint == test.fingerprint
    assert "first: left out" in capsys.readouterr().out


def test_doubles_across_a_held_out_part(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "test")
    for path in [*folder.rglob("*.png")]:
        shutil.copy(path, path.with_name(f"x{path.name}"))
    train, test = load(folder, tmp_path / "root", test_fraction=0.25)
    shared = {image.numpy().tobytes() for image in test.images} & {
        image.numpy().tobytes() for image in train.images
    }
    assert shared and f"{len(shared)} of train/ are test pictures too" in capsys.readouterr().out
    kept, _ = load(folder, tmp_path / "root", test_fraction=0.25, drop_test_doubles=True)
    assert not shared & {image.numpy().tobytes() for image in kept.images} and len(kept) == len(
        train
    ) - len(shared)


def test_no_class_is_dropped(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "test" / "dog")
    shutil.copytree(folder / "train" / "dog", folder / "test" / "dog")
    with pytest.raises(
        ValueError,
        match=f"{folder}: without doubles of test pictures no training picture of the class dog "
        "is left",
    ):
        load(folder, tmp_path / "root", drop_test_doubles=True)
    with pytest.raises(
        ValueError, match="drop_test_doubles is for a folder or archive of images, not for digits"
    ):
        load("digits", drop_test_doubles=True)


def scene(seed: int) -> Image.Image:
    """A smooth picture, unlike those of other seeds."""
    few = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(few).resize((32, 32), Image.Resampling.BICUBIC)


def test_hash_is_that_of_the_library() -> None:
    imagehash = pytest.importorskip("imagehash")
    images = torch.from_numpy(np.stack([np.asarray(scene(seed)) for seed in range(50)])).permute(
        0, 3, 1, 2
    )
    expected = np.stack([imagehash.dhash(scene(seed), 8).hash.ravel() for seed in range(50)])
    assert np.array_equal(doubles.difference_hashes(images).numpy() > 0, expected)


def test_nearly_equal_pictures_are_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recompressed, and brighter; not another picture."""
    for name, seed in {"train/cat/a.png": 1, "train/dog/b.png": 2, "test/dog/c.png": 3}.items():
        scene(seed).save(folder / name)
    scene(1).save(folder / "test" / "cat" / "a.jpg", quality=75)
    scene(2).point(lambda value: min(255, value + 5)).save(folder / "test" / "dog" / "b.png")
    load(folder, tmp_path / "root")
    said = (
        "2 of the test pictures are nearly equal to one of training, "
        "test/cat/a.jpg (to train/cat/a.png) first"
    )
    assert said in capsys.readouterr().out


# ---------------------------------------------------------------------------------------- the cache


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each picture was decoded."""
    seen, real = Counter[str](), folders._decode_into

    def counting(image: np.ndarray, source: Path | bytes, *arguments: int) -> str | int | None:
        seen[source.name if isinstance(source, Path) else "packed"] += 1
        return real(image, source, *arguments)

    monkeypatch.setattr(folders, "_decode_into", counting)
    return seen


def caches(root: Path) -> int:
    return len(list((root / "cache").iterdir()))


def test_a_folder_that_holds_its_own_cache_is_decoded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decoded: Counter[str]
) -> None:
    """`cd folder; python -m noisy_student --data .`, which puts data/, runs/ and out/ there."""
    monkeypatch.chdir(folder)
    found = set()
    for i in range(4):
        found.add(load(".")[0].fingerprint)
        (folder / "out").mkdir(exist_ok=True)
        (folder / "out" / f"{i}.png").touch()
    assert len(found) == 1 and decoded.total() == 18 and caches(folder / "data") == 1


def test_a_touched_file_replaces_the_cache(
    folder: Path, tmp_path: Path, decoded: Counter[str]
) -> None:
    for i in range(3):
        os.utime(folder / "train" / "cat" / "0.png", (i, i))
        load(folder, tmp_path / "root")
    assert decoded.total() == 3 * 18 and caches(tmp_path / "root") == 1
    load(folder, tmp_path / "root", size=24)
    assert caches(tmp_path / "root") == 2
    shutil.move(folder, tmp_path / "elsewhere" / folder.name)
    load(tmp_path / "elsewhere" / folder.name, tmp_path / "root")
    assert caches(tmp_path / "root") == 3


def test_a_set_with_a_gap_is_cached(
    folder: Path, tmp_path: Path, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "train" / "cat" / "3.png").write_bytes(b"no picture")
    first = load(folder, tmp_path / "root", skip_unreadable=True)[0]
    decoded.clear()
    assert load(folder, tmp_path / "root", skip_unreadable=True)[0].fingerprint == first.fingerprint
    assert decoded == {"3.png": 1}, "tried again: a disk or a network may have been away"
    with pytest.raises(
        OSError, match=r"an image that cannot be read: train/cat/3\.png \(no format"
    ):
        load(folder, tmp_path / "root")
    (folder / "train" / "cat" / "3.png").write_bytes(
        (folder / "train" / "cat" / "0.png").read_bytes()
    )
    assert len(load(folder, tmp_path / "root")[0]) == len(first) + 1


def test_a_picture_that_was_out_of_reach_is_read_when_it_is_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = folders._decode_into
    with monkeypatch.context() as patch:
        patch.setattr(
            folders,
            "_decode_into",
            lambda image, source, *more: (
                "away" if source.name == "3.png" else real(image, source, *more)
            ),
        )
        assert len(load(folder, tmp_path / "root", skip_unreadable=True)[0]) == 10
    assert len(load(folder, tmp_path / "root", skip_unreadable=True)[0]) == 12


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_images_are_in_memory_once(folder: Path, tmp_path: Path) -> None:
    """Beside what is mapped, while they are decoded; not at all afterwards."""
    (folder / "unlabeled").mkdir()
    scene(0).save(folder / "unlabeled" / "0.png")
    for i in range(1, 400):
        (folder / "unlabeled" / f"{i}.png").hardlink_to(folder / "unlabeled" / "0.png")
    script = (
        "import sys, threading, time; from noisy_student import load, folders; seen = [0]\n"
        "def now(): return next(int(l.split()[1]) for l in open('/proc/self/status') if "
        "l.startswith('RssAnon'))\n"
        "def watch():\n    while True: seen[0] = max(seen[0], now()); time.sleep(0.001)\n"
        "folders.near_doubles = lambda *a: []\n"
        "before = now(); threading.Thread(target=watch, daemon=True).start()\n"
        "data = load(sys.argv[1], sys.argv[2], size=512); print(seen[0] - before, now() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tmp_path / "root")],
        capture_output=True,
        text=True,
        check=True,
    )
    most, left = (int(word) * 1024 for word in done.stdout.split()[-2:])
    once = 418 * 3 * 512**2
    assert most < 1.3 * once and left < 0.3 * once


def test_what_a_large_set_takes_is_said_first(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    need = 18 * 3 * 32 * 32
    monkeypatch.setattr(folders, "LARGE_BYTES", need - 1)
    with monkeypatch.context() as patch:
        patch.setattr(
            shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(need, 1, need - 1)
        )  # type: ignore[attr-defined]
        patch.setattr(folders, "_decode_into", lambda *_: pytest.fail("decoded"))
        with pytest.raises(
            OSError,
            match=rf"18 pictures of 32 x 32 take {need:,} bytes on disk, and .* has {need - 1:,} "
            r"free: make room",
        ):
            load(folder, tmp_path / "root")
    assert (
        f"18 pictures of 32 x 32 take {need:,} bytes of memory, and as many on disk in "
        f"{tmp_path / 'root' / 'cache'}" in capsys.readouterr().out
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            np, "empty", lambda *_: (_ for _ in ()).throw(MemoryError("Unable to allocate 1 TiB"))
        )
        with pytest.raises(
            MemoryError,
            match=rf"^the pictures of {folder} do not fit into memory: "
            r"give a smaller size than 32, or fewer",
        ):
            load(folder, tmp_path / "root")


# -------------------------------------------------------------------------------- what else is said


@pytest.mark.parametrize("packed", [False, True])
def test_hidden_class_folders_are_named(
    folder: Path, tmp_path: Path, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "train" / "cat", folder / "train" / ".fox")
    (folder / "train" / ".DS_Store").touch()
    source = (
        Path(shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path, "photos"))
        if packed
        else folder
    )
    train, _ = load(source, tmp_path / "root")
    said = capsys.readouterr().out
    assert (
        train.classes == ("cat", "dog")
        and "not used: hidden folders, train/.fox/: rename what is a class" in said
        and "DS" not in said
    )


def test_test_pictures_without_a_class(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()
    scene(0).save(folder / "test" / "0.jpg")
    with pytest.raises(
        ValueError,
        match=r"no class's folder: test/0\.jpg; put each class's test images into test/<class>/, "
        r"and those of no known class, which cannot be scored, into unlabeled/",
    ):
        load(folder, tmp_path / "root")


def test_a_phones_large_picture_is_read(tmp_path: Path) -> None:
    """108 million pixels, decoded at an eighth of their size; the same in a file that must be held
    whole are refused.
    """
    Image.new("L", (12_000, 9_000), 77).save(tmp_path / "a.jpg")
    Image.new("L", (12_000, 9_000), 77).save(tmp_path / "b.jpg", progressive=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own, of a bomb
        (pixels,) = load_pictures([tmp_path / "a.jpg"])
    assert (pixels == 77).all()
    with pytest.raises(OSError, match="12000 x 9000 pixels are more than 64,000,000"):
        load_pictures([tmp_path / "b.jpg"])
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(OSError, match=r"exceeds limit of 512000000 pixels"):
        content = bytearray((tmp_path / "a.jpg").read_bytes())
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = (60_000).to_bytes(2, "big") * 2
        (tmp_path / "c.jpg").write_bytes(content)
        load_pictures([tmp_path / "c.jpg"])
    assert before == Image.MAX_IMAGE_PIXELS


def test_pillows_limit_is_back_when_two_threads_have_decoded() -> None:
    before, inside, leave = Image.MAX_IMAGE_PIXELS, Event(), Event()

    def other() -> None:
        with folders._large_jpegs():
            inside.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        with folders._large_jpegs():
            done = pool.submit(other)
            together = inside.wait(0.2)
        leave.set()
        done.result()
    assert before == Image.MAX_IMAGE_PIXELS and not together


def test_a_tilde_is_the_home_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(load("~/photos", "~/root")[0]) == 12 and caches(tmp_path / "root") == 1
    assert len(load_pictures(["~/photos/train/cat/0.png"])) == 1
