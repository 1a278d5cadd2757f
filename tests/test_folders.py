import io
import os
import shutil
import tarfile
import unicodedata
import warnings
import zipfile
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import EpsImagePlugin, Image, PngImagePlugin

from noisy_student import folders, load, load_pictures


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def images_in(root: Path) -> list[str]:
    return sorted(p.name for p in root.rglob("*") if p.is_file())


def test_layout_labels_and_pixels(folder: Path, tmp_path: Path) -> None:
    (folder / "unlabeled").mkdir()
    picture(1).save(folder / "unlabeled" / "x.png")
    train, test = load(folder, tmp_path / "root", size=24)
    assert train.classes == ("cat", "dog") and (len(train), len(test)) == (13, 6)
    assert train.labels.tolist() == [0] * 6 + [1] * 6 + [-1] and train.name == "photos"
    with Image.open(folder / "train" / "dog" / "2.png") as image:
        expected = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(train.images[8].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "webp", "gif", "ppm"])
def test_formats(folder: Path, tmp_path: Path, extension: str) -> None:
    image = picture(3)
    options = {"lossless": True} if extension == "webp" else {}
    image.save(folder / "train" / "cat" / f"a.{extension}", **options)
    # "a" comes after the digits
    pixels = load(folder, tmp_path / "root")[0].images[6].permute(1, 2, 0).numpy()
    assert np.abs(pixels.astype(int) - np.asarray(image)).mean() < (
        30 if extension == "gif" else 1e-9
    )


def test_jpeg(folder: Path, tmp_path: Path) -> None:
    smooth = Image.fromarray(
        np.linspace(0, 255, 8 * 8 * 3).reshape(8, 8, 3).astype(np.uint8)
    ).resize((32, 32))
    smooth.save(folder / "train" / "cat" / "a.jpg", quality=95)
    pixels = load(folder, tmp_path / "root")[0].images[6].permute(1, 2, 0).numpy()
    assert np.abs(pixels.astype(int) - np.asarray(smooth)).mean() < 3


def test_modes(folder: Path, tmp_path: Path) -> None:
    """Grey, 1-bit, palette, alpha, CMYK and 16-bit pictures show what they showed."""
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    made = {
        "L": Image.fromarray(grey),
        "1": Image.fromarray(grey > 127),
        "P": Image.fromarray(grey).convert("P"),
        "LA": Image.fromarray(grey).convert("LA"),
        "RGBA": Image.fromarray(grey).convert("RGBA"),
        "CMYK": Image.fromarray(grey).convert("CMYK"),
        "16": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    for name, image in made.items():
        image.save(folder / "train" / "cat" / f"m{name}.{'tiff' if name == 'CMYK' else 'png'}")
    train, _ = load(folder, tmp_path / "root")
    for name, pixels in zip(sorted(f"m{n}" for n in made), train.images[6:], strict=False):
        expected = 255 * (grey > 127) if name == "m1" else grey
        assert np.array_equal(pixels.numpy(), np.broadcast_to(expected, (3, 32, 32))), name


def test_16_bit_pgm(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    (tmp_path / "a.pgm").write_bytes(b"P5 32 32 65535\n" + (grey.astype(">u2") * 257).tobytes())
    (pixels,) = load_pictures([tmp_path / "a.pgm"])
    assert np.array_equal(pixels.numpy(), np.broadcast_to(grey, (3, 32, 32)))


def test_a_format_that_a_plugin_adds_later_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ID", "OPEN"):  # as pillow_heif does for the pictures of iPhones
        monkeypatch.setattr(Image, name, type(getattr(Image, name))(getattr(Image, name)))
    Image.register_open(
        "NEW",
        lambda fp, _: PngImagePlugin.PngImageFile(io.BytesIO(fp.read()[3:])),
        lambda start: start.startswith(b"NEW"),
    )
    picture(4).save(tmp_path / "a.png")
    (tmp_path / "a.new").write_bytes(b"NEW" + (tmp_path / "a.png").read_bytes())
    assert torch.equal(*load_pictures([tmp_path / "a.png", tmp_path / "a.new"]))


def test_palette_with_an_opacity_for_each_colour_is_read_without_a_warning(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(grey).convert("P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (pixels,) = load_pictures([tmp_path / "a.png"])
    on_white = 255 - (255.0 - grey) * grey / 255  # each grey has itself as its opacity
    assert np.abs(pixels.numpy() - on_white).max() <= 1


def test_exif_orientation(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: to be shown rotated 90 degrees clockwise
    picture(5).save(folder / "train" / "cat" / "a.png", exif=exif)
    pixels = load(folder, tmp_path / "root")[0].images[6].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, np.rot90(np.asarray(picture(5)), -1))


def test_without_test_folder_a_fifth_is_held_out(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "test")
    train, test = load(folder, tmp_path / "root", test_fraction=0.34)
    assert torch.bincount(test.labels).tolist() == [2, 2] and torch.bincount(
        train.labels
    ).tolist() == [4, 4]
    again = load(folder, tmp_path / "root", test_fraction=0.34)[1]
    assert again.fingerprint == test.fingerprint


def test_cached_and_decoded_again_when_it_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(folder, tmp_path / "root")
    with monkeypatch.context() as patch:
        patch.setattr(folders, "_decode_into", lambda *a: pytest.fail("decoded again"))
        assert load(folder, tmp_path / "root")[0].fingerprint == first[0].fingerprint
    for module, name, value in (
        (folders, "DECODER", folders.DECODER + 1),
        (PIL, "__version__", "0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            patch.setattr(folders, "_decode_into", lambda *a: "decoded again")
            with pytest.raises(OSError, match="decoded again"):
                load(folder, tmp_path / "root")
    assert load(folder, tmp_path / "root", size=24)[0].images.shape[2:] == (24, 24)
    picture(9).save(folder / "train" / "cat" / "0.png")
    assert load(folder, tmp_path / "root")[0].fingerprint != first[0].fingerprint
    assert not [name for name in images_in(tmp_path / "root") if "partial" in name]


@pytest.mark.parametrize("seed", range(30))
def test_damaged_cache_is_made_again(folder: Path, tmp_path: Path, seed: int, evil: bytes) -> None:
    first = load(folder, tmp_path / "root")[0].fingerprint
    (cache,) = (tmp_path / "root" / "cache").iterdir()
    content, rng = bytearray(cache.read_bytes()), np.random.default_rng(seed)
    place = int(rng.integers(len(content)))
    if seed % 3 == 0:
        content = content[:place]
    elif seed == 1:
        content = bytearray(evil)
    else:
        content[place] ^= int(rng.integers(1, 256))
    cache.write_bytes(content)
    assert load(folder, tmp_path / "root")[0].fingerprint == first


@pytest.mark.parametrize("change", [(b'"I64"', b'"F64"'), (b'"U8"', b'"I8"')])
def test_cache_of_another_type_is_made_again(
    folder: Path, tmp_path: Path, change: tuple[bytes, bytes]
) -> None:
    first = load(folder, tmp_path / "root")[0]
    (cache,) = (tmp_path / "root" / "cache").iterdir()
    assert change[0] in cache.read_bytes()
    cache.write_bytes(cache.read_bytes().replace(*change))
    found = load(folder, tmp_path / "root")[0]
    assert found.fingerprint == first.fingerprint and (found.images.dtype, found.labels.dtype) == (
        torch.uint8,
        torch.int64,
    )


def test_same_name_size_and_time_is_not_the_same_picture(folder: Path, tmp_path: Path) -> None:
    path = folder / "train" / "cat" / "a.bmp"
    picture(1).save(path)
    times = path.stat()
    first = load(folder, tmp_path / "root")[0].fingerprint
    picture(2).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load(folder, tmp_path / "root")[0].fingerprint != first
    other = shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    picture(1).save(other / "train" / "cat" / "a.bmp")
    assert load(other, tmp_path / "root")[0].fingerprint == first


# ----------------------------------------------------------------------------------------- archives


SUFFIXES = [".zip", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2"]


def pack(folder: Path, path: Path, inside: str = "") -> Path:
    """An archive of a folder, its layout at the top or one folder down."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, f"{inside}{file.relative_to(folder).as_posix()}")
    else:
        with tarfile.open(path, f"w:{path.suffix.removeprefix('.').replace('tar', '')}") as tar:
            for file in files:
                tar.add(file, f"{inside}{file.relative_to(folder).as_posix()}")
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("inside", ["", "photos/"])
def test_archive_is_the_folder(folder: Path, tmp_path: Path, suffix: str, inside: str) -> None:
    archive = pack(folder, tmp_path / f"photos{suffix}", inside)
    found, expected = load(archive, tmp_path / "root"), load(folder, tmp_path / "root")
    assert [part.fingerprint for part in found] == [part.fingerprint for part in expected]
    assert found[0].name == "photos"


def test_cached_archive_is_not_unpacked_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(folder, tmp_path / "photos.tar.xz")
    first = load(archive, tmp_path / "root")
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("unpacked again"))
    assert [part.fingerprint for part in load(archive, tmp_path / "root")] == [
        part.fingerprint for part in first
    ]


def check_damaged_archive(archive: Path, content: bytes, root: Path, expected: list[str]) -> bool:
    """One sentence that names it, or the very same images; whether it was refused."""
    archive.write_bytes(content)
    try:
        found = load(archive, root)
    except (OSError, ValueError) as error:
        assert str(archive) in str(error) and "\n" not in str(error)
        return True
    assert [part.fingerprint for part in found] == expected
    return False


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_archive_cut_or_zeroed_anywhere_loses_no_image(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    archive = pack(folder, tmp_path / f"photos{suffix}")
    expected, content = (
        [part.fingerprint for part in load(archive, tmp_path / "root")],
        archive.read_bytes(),
    )
    refused = 0
    for place in range(0, len(content), 1024 if suffix == ".tar" else 701):
        refused += check_damaged_archive(archive, content[:place], tmp_path / "root", expected)
        refused += check_damaged_archive(
            archive,
            content[:place] + bytes(512) + content[place + 512 :],
            tmp_path / "root",
            expected,
        )
    assert refused > 20


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s != ".tar"])
def test_altered_archive_of_pictures_without_checksums(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    """A PNG has checksums of its own, a BMP has none: here the archive's must tell. (A plain .tar
    has none either.)
    """
    for png in list(folder.rglob("*.png")):
        with Image.open(png) as image:
            image.save(png.with_suffix(".bmp"))
        png.unlink()
    archive = pack(folder, tmp_path / f"photos{suffix}")
    expected, content = (
        [part.fingerprint for part in load(archive, tmp_path / "root")],
        archive.read_bytes(),
    )
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(30):
        altered = bytearray(content)
        altered[int(rng.integers(len(altered)))] ^= int(rng.integers(1, 256))
        refused += check_damaged_archive(archive, bytes(altered), tmp_path / "root", expected)
    assert refused > 15


def linked(kind: bytes, target: str) -> tarfile.TarInfo:
    link = tarfile.TarInfo(f"train/cat/{kind.decode()}.png")
    link.type, link.linkname = kind, target
    return link


@pytest.mark.parametrize("target", ["../../etc/passwd", "/etc/passwd"])
def test_hard_link_out_of_an_archive_is_refused(folder: Path, tmp_path: Path, target: str) -> None:
    with tarfile.open(pack(folder, tmp_path / "photos.tar"), "a") as tar:
        tar.addfile(linked(tarfile.LNKTYPE, target))
    with pytest.raises(OSError, match=r"is not a sound archive .*not found"):
        load(tmp_path / "photos.tar", tmp_path / "root")


def test_hard_links_count_towards_the_limit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(pack(folder, tmp_path / "photos.tar"), "a") as tar:
        for _ in range(100):
            tar.addfile(linked(tarfile.LNKTYPE, "train/cat/0.png"))
    monkeypatch.setattr(
        folders,
        "MAX_ARCHIVE_BYTES",
        10 * sum(path.stat().st_size for path in folder.rglob("*.png")) // 5,
    )
    with pytest.raises(OSError, match="unpacks to more than"):
        load(tmp_path / "photos.tar", tmp_path / "root")


@pytest.mark.parametrize(
    "name", ["../../escaped.png", "train/../../../escaped.png", "/tmp/noisy-student-escaped.png"]
)
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_hostile_members_write_nothing_outside(
    folder: Path, tmp_path: Path, name: str, suffix: str
) -> None:
    content = io.BytesIO()
    picture(0).save(content, "png")
    archive = pack(folder, tmp_path / f"photos{suffix}")
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "a") as packed:
            packed.writestr(name, content.getvalue())
    else:
        with tarfile.open(archive, "a") as tar:
            up = tarfile.TarInfo(name)
            up.size = content.tell()
            content.seek(0)
            tar.addfile(up, content)
            for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.FIFOTYPE, "")):
                tar.addfile(linked(kind, target))
    before = {p for p in tmp_path.rglob("*")}
    try:
        assert len(load(archive, tmp_path / "root")[0]) == 12
    except ValueError as error:
        assert "train" in name and "lies in no class's folder" in str(error)
    assert all(p.is_relative_to(tmp_path / "root") for p in {*tmp_path.rglob("*")} - before)
    outside = [
        *tmp_path.parent.glob("escaped.png"),
        *tmp_path.parent.parent.glob("escaped.png"),
        Path("/tmp/noisy-student-escaped.png"),
    ]
    assert not any(path.exists() for path in outside)


def test_postscript_is_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(0).save(folder / "train" / "cat" / "0.png", "EPS")
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was run")
    )
    with pytest.raises(OSError, match=r"cannot be read: train/cat/0\.png"):
        load(folder, tmp_path / "root")


def test_link_out_of_the_folder_is_not_followed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(0).save(tmp_path / "secret.png")
    (folder / "train" / "cat" / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "unlabeled").symlink_to(folder / "test")
    for _ in range(2):  # said each time, the images cached or not
        assert len(load(folder, tmp_path / "root")[0]) == 12
        assert (
            "not used: 2 links to folders, or out of it, train/cat/link.png first"
            in capsys.readouterr().out
        )


def test_hard_links_in_an_archive_are_pictures(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "cat" / "6.png").hardlink_to(folder / "train" / "cat" / "0.png")
    train, _ = load(pack(folder, tmp_path / "photos.tar"), tmp_path / "root")
    assert len(train) == 13 and torch.equal(train.images[0], train.images[6])


def test_one_name_in_two_unicode_forms_is_one_class(folder: Path, tmp_path: Path) -> None:
    for part, form in {"train": "NFD", "test": "NFC"}.items():
        (folder / part / "cat").rename(folder / part / unicodedata.normalize(form, "고양이"))
    train, test = load(folder, tmp_path / "root")
    assert train.classes == ("dog", unicodedata.normalize("NFC", "고양이")) and (
        len(train),
        len(test),
    ) == (12, 6)


@pytest.mark.parametrize(
    "encoding, name", [("utf-8", "고양이"), ("euc_kr", "고양이"), ("cp437", "pâté")]
)
def test_class_name_in_a_zip_that_does_not_say_how_it_is_written(
    folder: Path, tmp_path: Path, encoding: str, name: str
) -> None:
    written = name.encode(encoding)
    for part in ("train", "test"):
        (folder / part / "cat").rename(folder / part / ("K" * len(written)))
    archive = pack(folder, tmp_path / "photos.zip")
    # zipfile itself would mark the name as UTF-8
    archive.write_bytes(archive.read_bytes().replace(b"K" * len(written), written))
    train, test = load(archive, tmp_path / "root")
    assert sorted(train.classes) == sorted(("dog", name)) and (len(train), len(test)) == (12, 6)


def test_two_files_of_one_name_in_two_unicode_forms_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    for form in ("NFD", "NFC"):
        picture(0).save(folder / "train" / "cat" / f"{unicodedata.normalize(form, '개')}.png")
    with pytest.raises(ValueError, match="two files called train/cat/"):
        load(folder, tmp_path / "root")


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"two\nlines.png"])
def test_name_that_cannot_be_printed_is_refused(folder: Path, tmp_path: Path, name: bytes) -> None:
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / os.fsdecode(name))
    with pytest.raises(
        ValueError, match="a name that is not UTF-8, or holds a control character: 'train/cat/"
    ) as caught:
        load(folder, tmp_path / "root")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("top", ["", "./", "photos/"])
def test_a_file_beside_the_folders_of_an_archive(folder: Path, tmp_path: Path, top: str) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.writestr(f"{top}{path.relative_to(folder).as_posix()}", path.read_bytes())
        archive.writestr("LICENSE.txt", "free")
    assert len(load(tmp_path / "photos.zip", tmp_path / "root")[0]) == 12


def test_bombs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (9000, 9000)).save(folder / "train" / "cat" / "bomb.png")
    with pytest.raises(OSError, match=r"train/cat/bomb.png \(9000 x 9000 pixels are more than"):
        load(folder, tmp_path / "root")
    monkeypatch.setattr(folders, "MAX_ARCHIVE_BYTES", 5000)
    with pytest.raises(OSError, match="unpacks to more than 5,000 bytes"):
        load(pack(folder, tmp_path / "photos.zip"), tmp_path / "root")


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_unreadable_picture_is_named_and_left_out_only_if_asked(
    folder: Path, tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "train" / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(
        OSError,
        match=r"an image that cannot be read: train/cat/3\.png \([^,]*\); mend it, or pass "
        r"skip_unreadable=True",
    ):
        load(folder, tmp_path / "root")
    assert images_in(tmp_path / "root") == [] if (tmp_path / "root").exists() else True
    for _ in range(2):  # said each time, decoded or cached
        assert len(load(folder, tmp_path / "root", skip_unreadable=True)[0]) == 11
        assert "train/cat/3.png" in capsys.readouterr().out


def test_unreadable_pictures_are_named_up_to_ten(folder: Path, tmp_path: Path) -> None:
    for i in range(12):
        (folder / "train" / "cat" / f"x{i:02}.png").write_bytes(b"no picture")
        if i in (1, 11):
            with pytest.raises(
                OSError, match=f"holds {i + 1} images that cannot be read: .*; mend them"
            ) as caught:
                load(folder, tmp_path / "root")
            named = [f"x{j:02}.png" in str(caught.value) for j in range(i + 1)]
            assert named == [True] * min(i + 1, 10) + [False] * (i + 1 - 10) and (
                "and 2 more" in str(caught.value)
            ) == (i == 11)


def test_what_windows_puts_beside_pictures_is_passed_over(folder: Path, tmp_path: Path) -> None:
    for name in ("train/cat/Thumbs.db", "train/cat/desktop.ini", "train/desktop.ini"):
        (folder / name).write_bytes(b"no picture")
    plain, packed = (
        load(folder, tmp_path / "root")[0],
        load(pack(folder, tmp_path / "photos.zip"), tmp_path / "root")[0],
    )
    assert len(plain) == 12 and torch.equal(plain.images, packed.images)


@pytest.mark.parametrize("part", ["test", "unlabeled"])
def test_a_part_that_cannot_be_read_is_not_replaced(
    folder: Path, tmp_path: Path, part: str
) -> None:
    shutil.rmtree(folder / part, ignore_errors=True)
    (folder / part / "cat").mkdir(parents=True)
    (folder / part / "cat" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=rf"no readable image in {part}/"):
        load(folder, tmp_path / "root", skip_unreadable=True)


def test_a_folder_that_cannot_be_listed_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "train" / "cat" / "more").mkdir()
    for name in (".hidden", "lost+found"):
        (folder / name).mkdir()
    listed = os.scandir

    def scandir(path: str) -> object:  # tests may run as root, who can read all
        if Path(path).name in ("more", ".hidden", "lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(
        OSError, match=r"train/cat/more cannot be read \(Permission denied\): make it readable"
    ):
        load(folder, tmp_path / "root")
    (folder / "train" / "cat" / "more").rmdir()
    assert len(load(folder, tmp_path / "root")[0]) == 12


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load(folder, root)
        assert str(folder) in str(caught.value) and not root.exists()

    (folder / "train" / "fox").mkdir()
    refused("class without images: fox")
    (folder / "train" / "fox").rmdir()
    picture(0).save(folder / "train" / "loose.png")
    refused(r"lies in no class's folder: train/loose\.png")
    (folder / "train" / "loose.png").unlink()
    (folder / "train" / "dog").rename(folder / "test" / "fox")
    refused("only the class 'cat'|classes in test/ that train/ lacks")
    shutil.rmtree(folder / "train" / "cat")
    refused("no classes in train/: put each class's images into train/<class>/")


def test_class_in_test_only(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "test" / "dog", folder / "test" / "fox")
    with pytest.raises(ValueError, match="classes in test/ that train/ lacks: fox"):
        load(folder, tmp_path / "root")


def test_folder_that_is_no_part_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "test", folder / "val")
    train, test = load(folder, tmp_path / "root")
    assert (len(train), len(test)) == (12, 6) and "not used: val/" in capsys.readouterr().out


def test_layout_one_folder_down_beside_another(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "test", folder.parent / "other" / "test")
    with pytest.raises(ValueError, match="has no classes in train/"):
        load(folder.parent, tmp_path / "root")
    assert "not used: other/, photos/" in capsys.readouterr().out


def test_part_in_capitals_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train").rename(folder / "Train")
    shutil.rmtree(folder / "test")
    with pytest.raises(ValueError, match="has no classes in train/"):
        load(folder, tmp_path / "root")
    assert "not used: Train/ (the parts are train/" in capsys.readouterr().out


def test_long_korean_name(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / ("가" * 80))
    assert load(tmp_path / ("가" * 80), tmp_path / "root")[0].name == "가" * 80


def test_neither_folder_nor_archive(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="neither a folder nor an archive"):
        load(tmp_path / "notes.txt", tmp_path)


def test_folder_named_like_a_data_set_does_not_pass_for_it(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "cifar10")
    assert load(tmp_path / "cifar10", tmp_path / "root")[0].title == "cifar10-folder"


def test_single_pictures_are_read_as_those_of_a_folder(folder: Path, tmp_path: Path) -> None:
    train, _ = load(folder, tmp_path / "root", size=24)
    paths = [folder / "train" / "dog" / "2.png", folder / "train" / "cat" / "0.png"]
    assert torch.equal(load_pictures((path for path in paths), size=24), train.images[[8, 0]])
    paths[1].write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"0\.png cannot be read \(no format that Pillow reads\)"):
        load_pictures(paths)
    with pytest.raises(ValueError, match="is one path"):
        load_pictures(str(paths[0]))


def test_32_bit_pictures_are_refused_not_clipped(tmp_path: Path) -> None:
    for mode, dtype in {"I": np.int32, "F": np.float32}.items():
        Image.fromarray(np.full((32, 32), 70_000, dtype)).save(tmp_path / f"{mode}.tiff")
        with pytest.raises(OSError, match=f"its {mode} pixels of 32 bits have no fixed range"):
            load_pictures([tmp_path / f"{mode}.tiff"])


def test_unlabelled_may_be_written_with_two_ls(folder: Path, tmp_path: Path) -> None:
    (folder / "unlabelled").mkdir()
    picture(1).save(folder / "unlabelled" / "x.png")
    assert len(load(folder, tmp_path / "root")[0]) == 13
