import hashlib
import io
import pickle
import socketserver
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import get_sampling
from sklearn.datasets import load_digits
from torchvision import datasets

from noisy_student import Images, Split, load, split
from noisy_student.data import data_key, hold_out
from noisy_student.sources import _as_jpeg


def labelled(labels: list[int], classes: int, unknown: int = 0) -> Images:
    y = torch.tensor(labels + [-1] * unknown)
    pixels = (
        torch.arange(len(y)).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).to(torch.uint8).contiguous()
    )
    return Images(pixels, y, tuple(map(str, range(classes))), "made")


# ---------------------------------------------------------------------------------- named data sets


def test_digits_are_scikit_learns_enlarged() -> None:
    train, test = load("digits")
    assert (len(train), len(test)) == (1300, 497)
    digits = load_digits()
    # where the 32 output pixels lie among the 8; NumPy holds the edge values beyond
    at = (np.arange(32) + 0.5) / 4 - 0.5
    weights = np.stack([np.interp(at, np.arange(8), row) for row in np.eye(8)], 1)
    large = (weights @ digits.images @ weights.T * 255 / 16).round()
    ours = torch.cat([train.images, test.images]).numpy()
    assert np.array_equal(ours, ours[:, :1].repeat(3, 1))
    expected = {
        (image.astype(np.uint8).tobytes(), int(label))
        for image, label in zip(large, digits.target, strict=True)
    }
    found = {
        (image[0].tobytes(), int(y))
        for image, y in zip(ours, torch.cat([train.labels, test.labels]), strict=True)
    }
    assert found == expected


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which a loopback server hands out its files."""
    folder = tmp_path / "served"
    folder.mkdir()
    with socketserver.ThreadingTCPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(folder))
    ) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def serve_cifar10(
    server: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    images: np.ndarray,
    labels: np.ndarray,
    test: int,
    classes: Sequence[str],
) -> None:
    """Serves an archive in CIFAR-10's official layout. images: uint8, N x 3 x 32 x 32; the last
    ``test`` of them are the test set."""
    folder, address = server
    members = {"batches.meta": pickle.dumps({"label_names": list(classes)})}
    train = len(labels) - test
    parts = [*np.array_split(np.arange(train), 5), np.arange(train, len(labels))]
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, part in zip(names, parts, strict=True):
        batch = {"data": images[part].reshape(-1, 3072), "labels": labels[part].tolist()}
        members[name] = pickle.dumps(batch)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (folder / "cifar.tar.gz").write_bytes(packed.getvalue())
    for name, value in {
        "url": f"{address}cifar.tar.gz",
        "tgz_md5": md5(packed.getvalue()),
        "train_list": [[f"data_batch_{i}", md5(members[f"data_batch_{i}"])] for i in range(1, 6)],
        "test_list": [["test_batch", md5(members["test_batch"])]],
        "meta": {
            "filename": "batches.meta",
            "key": "label_names",
            "md5": md5(members["batches.meta"]),
        },
    }.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)


@pytest.fixture
def cifar10(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Serves 100 training and 20 test images as CIFAR-10; returns the former, N x 32 x 32 x 3."""
    images = np.random.default_rng(0).integers(0, 256, (120, 3, 32, 32), dtype=np.uint8)
    serve_cifar10(server, monkeypatch, images, np.arange(120) % 10, 20, "abcdefghij")
    return images[:100].transpose(0, 2, 3, 1)


def test_cifar10_is_downloaded_once(
    cifar10: np.ndarray, server: tuple[Path, str], tmp_path: Path
) -> None:
    train, test = load("cifar10", tmp_path / "root")
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), cifar10)
    assert (len(train), len(test)) == (100, 20) and train.labels[:12].tolist() == [*range(10), 0, 1]
    assert train.classes == tuple("abcdefghij") and train.title == "CIFAR-10"
    (server[0] / "cifar.tar.gz").unlink()
    assert load("cifar10", tmp_path / "root")[0].fingerprint == train.fingerprint


SHARED = Path(__file__).parents[2] / "shared" / "cifar10"  # where there is one: CIFAR-10 as files


def test_jpeg_copy_has_the_bytes_and_pixels_of_its_files(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 originals, and the files that another program made of them long before this one."""
    pytest.importorskip("jpeglib")
    if not (SHARED / "originals.npz").exists():
        pytest.skip("needs the JPEG copy's files")
    with np.load(SHARED / "originals.npz") as found:
        order = np.lexsort((found["index"], found["part"] == "test"))  # the official one, by class
        part, label, index, images = (found[k][order] for k in ("part", "label", "index", "images"))
    classes = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    names = [f"{p}/{classes[c]}/{i:04d}.jpg" for p, c, i in zip(part, label, index, strict=True)]
    wanted = set(names)
    with tarfile.open(SHARED / "cifar10-jpeg.tar.xz") as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.name in wanted}
    for made, name in zip(_as_jpeg(images.transpose(0, 2, 3, 1)), names, strict=True):
        assert made == files[name], name
        path = tmp_path / "cifar10-jpeg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
    serve_cifar10(server, monkeypatch, images, label, int((part == "test").sum()), classes)
    ours = data_key(*load("cifar10-jpeg", tmp_path / "root"))
    assert ours == data_key(*load(tmp_path / "cifar10-jpeg", tmp_path / "root"))


def test_jpeg_copy_is_that_of_its_files(
    cifar10: np.ndarray, server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order, names, labels and pixels: the key is that of a folder of files saved one by one."""
    jpeglib = pytest.importorskip("jpeglib")
    before = jpeglib.version.get()
    train, test = load("cifar10-jpeg", tmp_path / "root")
    for part, data in zip(("train", "test"), load("cifar10", tmp_path / "root"), strict=True):
        for c, name in enumerate("abcdefghij"):
            folder = tmp_path / "cifar10-jpeg" / part / name
            folder.mkdir(parents=True)
            chosen = data.images[data.labels == c].permute(0, 2, 3, 1).numpy()
            for number, pixels in enumerate(chosen):
                with jpeglib.version("9d"):
                    picture = jpeglib.from_spatial(pixels)
                    picture.samp_factor = ((2, 2), (1, 1), (1, 1))
                    picture.write_spatial(str(folder / f"{number:04d}.jpg"), qt=75)
    ours = data_key(train, test)
    assert ours == data_key(*load(tmp_path / "cifar10-jpeg", tmp_path / "root"))
    assert train.title == "CIFAR-10 (JPEG copy)"
    assert jpeglib.version.get() == before, "the process's version came back"
    assert train.labels.tolist() == [c for c in range(10) for _ in range(10)] and len(test) == 20
    monkeypatch.setitem(sys.modules, "jpeglib", None)
    (server[0] / "cifar.tar.gz").unlink()
    (tmp_path / "root" / datasets.CIFAR10.filename).unlink()
    again = data_key(*load("cifar10-jpeg", tmp_path / "root"))
    assert again == ours, "made once: then neither the package nor the archive is needed"


def test_jpeg_copy_is_saved_at_quality_75_with_half_the_chroma() -> None:
    pytest.importorskip("jpeglib")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    pillows = io.BytesIO()
    Image.fromarray(pixels[0]).save(pillows, "JPEG", quality=75, subsampling="4:2:0")
    with Image.open(io.BytesIO(_as_jpeg(pixels)[0])) as ours, Image.open(pillows) as theirs:
        assert ours.quantization == theirs.quantization
        assert get_sampling(ours) == get_sampling(theirs) == 2


def test_jpeg_copy_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jpeglib", None)
    with pytest.raises(ValueError, match=r"package jpeglib.*: run pip install -e '.\[jpeg\]'"):
        load("cifar10-jpeg", tmp_path)
    assert not list(tmp_path.iterdir()), "said before anything is fetched"


def test_archive_put_there_by_hand_needs_no_network(
    cifar10: np.ndarray, server: tuple[Path, str], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (server[0] / "cifar.tar.gz").rename(root / datasets.CIFAR10.filename)
    assert len(load("cifar10", root)[0]) == 100


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_damaged_archive_is_named(
    cifar10: np.ndarray, server: tuple[Path, str], tmp_path: Path, damage: str
) -> None:
    root, content = tmp_path / "root", (server[0] / "cifar.tar.gz").read_bytes()
    root.mkdir()
    archive = root / datasets.CIFAR10.filename
    archive.write_bytes(
        content[:5000] if damage == "cut" else content[:3000] + b"xxxx" + content[3004:]
    )
    with pytest.raises(
        OSError, match=r"cifar-10-python.tar.gz is damaged: its md5 is not .*; delete it"
    ):
        load("cifar10", root)


def test_no_network(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server[1]}absent.tar.gz")
    with pytest.raises(
        OSError,
        match=r"CIFAR-10 could not be fetched \(.*\): "
        r"put cifar-10-python.tar.gz into .*'digits' or a folder",
    ):
        load("cifar10", tmp_path / "root")
    assert [path.suffix for path in (tmp_path / "root").rglob("*.*")] == [".lock"]


def test_no_network_and_nothing_can_be_removed(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only disk: the advice is given all the same."""

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server[1]}absent.tar.gz")
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="CIFAR-10 could not be fetched"):
        load("cifar10", tmp_path / "root")


def test_interrupted_download_leaves_nothing(
    cifar10: np.ndarray, server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(url: str, root: str, filename: str, md5: str) -> None:
        (Path(root) / filename).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets.cifar, "download_and_extract_archive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("cifar10", tmp_path / "root")
    assert len(load("cifar10", tmp_path / "root")[0]) == 100


def test_download_of_something_else(
    cifar10: np.ndarray, server: tuple[Path, str], tmp_path: Path
) -> None:
    (server[0] / "cifar.tar.gz").write_bytes(b"<html>log in to this network first</html>")
    with pytest.raises(OSError, match="could not be fetched"):
        load("cifar10", tmp_path / "root")
    assert not (tmp_path / "root" / datasets.CIFAR10.filename).exists()


def test_svhn_extra_is_unlabelled(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = server
    rng, parts, pixels = np.random.default_rng(0), {}, {}
    for name, count in {"train": 30, "extra": 40, "test": 20}.items():
        pixels[name] = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        scipy.io.savemat(
            folder / f"{name}.mat", {"X": pixels[name], "y": (np.arange(count) % 10 + 1)[:, None]}
        )
        parts[name] = [
            f"{address}{name}.mat",
            f"{name}_32x32.mat",
            md5((folder / f"{name}.mat").read_bytes()),
        ]
    monkeypatch.setattr(datasets.SVHN, "split_list", parts)
    train, test = load("svhn", tmp_path / "root")
    assert train.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]  # SVHN writes 0 as 10
    assert train.labels[30:].tolist() == [-1] * 40 and (len(train), len(test)) == (70, 20)
    assert np.array_equal(train.images[30:].numpy(), pixels["extra"].transpose(3, 2, 0, 1))
    assert len(split(train, 20).unlabeled) == 50


def test_unknown_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown data set 'cifar-10'; did you mean cifar10"):
        load("cifar-10")
    with pytest.raises(FileNotFoundError, match="does not exist: give a folder"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match="size=8 is not"):
        load("digits", size=8)


# ---------------------------------------------------------------------------------------- the split


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_split_properties(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 5))
    rest = data.draw(st.lists(st.integers(0, classes - 1), max_size=80))
    train = labelled([*range(classes), *rest], classes, unknown=data.draw(st.integers(0, 5)))
    known, seed = classes + len(rest), data.draw(st.integers(0, 2**31))
    small, large = sorted(data.draw(st.lists(st.integers(classes, known), min_size=2, max_size=2)))
    a, b = split(train, small, seed), split(train, large, seed)
    assert len(a.labeled) == small
    # disjoint and complete
    assert sorted(torch.cat([a.labeled, a.unlabeled]).tolist()) == list(range(len(train)))
    assert torch.equal(b.labeled[:small], a.labeled)  # nested
    assert torch.equal(a.resize(train, large).labeled, b.labeled)
    assert (train.labels[a.labeled] >= 0).all()
    for c in range(classes):
        share = small * float((train.labels == c).sum()) / known
        count = int((train.labels[a.labeled] == c).sum())
        assert count >= 1 and abs(count - share) < classes
    assert torch.equal(split(train, small, seed).labeled, a.labeled)
    whole, drawn = (
        torch.bincount(labels, minlength=classes)
        for labels in (train.labels[train.labels >= 0], train.labels[a.labeled])
    )
    low, high = (drawn - 0.5).where(drawn > 1, 0) / whole, (drawn + 0.5) / whole
    assert low.max() <= high.min() + 1e-6, (
        "one share fits all classes to within half an image (Webster)"
    )


def test_equal_classes_have_equal_shares() -> None:
    train = labelled([i % 10 for i in range(2000)], 10)
    for count in (10, 200, 500):
        assert (
            torch.bincount(train.labels[split(train, count).labeled]).tolist() == [count // 10] * 10
        )
    assert len(split(train, 0.25).labeled) == 500
    assert not torch.equal(split(train, 200, 0).labeled, split(train, 200, 1).labeled)


def test_hold_out_is_stratified_and_apart() -> None:
    train = labelled([i % 4 for i in range(200)], 4, unknown=7)
    rest, test = hold_out(train, 0.2)
    assert (
        torch.bincount(test.labels).tolist() == [10] * 4
        and len(rest) == 167
        and (rest.labels[-7:] == -1).all()
    )
    assert not set(rest.images[:160, 0, 0, 0].tolist()) & set(test.images[:, 0, 0, 0].tolist())
    with pytest.raises(
        ValueError, match=r"a test set of 4 images would take every one of class 1: add some"
    ):
        hold_out(labelled([0] * 20 + [1], 2), 0.2)


@pytest.mark.parametrize(
    ("labeled", "message"),
    [
        (201, "201 labelled images wanted"),
        (3, "fewer than the 4 classes"),
        (0.0, "not a fraction"),
        (1.5, "not a fraction"),
    ],
)
def test_impossible_split(labeled: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(labelled([i % 4 for i in range(200)], 4), labeled)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_that_would_repeat_another_is_refused(seed: int) -> None:
    """torch's generator takes 32 bits: of 2**32 it would draw what it draws of 0."""
    with pytest.raises(
        ValueError, match=f"seed={seed} is not a whole number from 0 to 4,294,967,295"
    ):
        split(labelled([0, 1] * 4, 2), 4, seed)


def test_saved_split_comes_back(tmp_path: Path) -> None:
    train = labelled([i % 4 for i in range(200)], 4)
    drawn = split(train, 40, 3)
    drawn.save(tmp_path / "deep" / "split.npz")
    back = Split.load(tmp_path / "deep" / "split.npz", train)
    assert back.key == drawn.key and torch.equal(back.labeled, drawn.labeled)
    assert (
        Split(drawn.labeled.flip(0), drawn.unlabeled, drawn.seed, drawn.fingerprint).key
        != drawn.key
    )
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["split.npz"]
    with pytest.raises(ValueError, match="belongs to other data"):
        Split.load(tmp_path / "deep" / "split.npz", labelled([i % 4 for i in range(100)], 4))
    with pytest.raises(FileNotFoundError, match="does not exist: make the split"):
        Split.load(tmp_path / "absent.npz", train)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_split_is_refused(tmp_path: Path, seed: int) -> None:
    """A byte altered, or the end cut off, at a random place: refused, or, where the byte says
    nothing, equal.
    """
    train, rng = labelled([i % 4 for i in range(200)], 4), np.random.default_rng(seed)
    drawn, path = split(train, 40, 3), tmp_path / "split.npz"
    drawn.save(path)
    content = bytearray(path.read_bytes())
    place = int(rng.integers(len(content)))
    if seed % 2:
        content = content[:place]
    else:
        content[place] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    try:
        found = Split.load(path, train)
    except ValueError as error:
        assert "make it again with split()" in str(error) or "other data" in str(error)
    else:
        assert (
            seed % 2 == 0
            and torch.equal(found.labeled, drawn.labeled)
            and torch.equal(found.unlabeled, drawn.unlabeled)
        )


def test_pickle_in_place_of_a_split_is_not_executed(tmp_path: Path, evil: bytes) -> None:
    (tmp_path / "split.npz").write_bytes(evil)
    with pytest.raises(ValueError, match="is not a split"):
        Split.load(tmp_path / "split.npz", labelled([0, 1, 0, 1], 2))


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(4, dtype=torch.int32),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([0, 1, -2, 0]),
    ],
)
def test_labels_that_do_not_fit_their_images_are_refused(labels: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"for 4 images: give one torch\.int64 for each, from 0 to 1, or -1"
    ):
        Images(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), labels, ("a", "b"), "x")


def test_images_changed_in_place_have_another_fingerprint() -> None:
    """By torch, or by NumPy on the same memory, which torch does not see: else a run of them is
    stored as that of the sound ones.
    """
    train, pixels = labelled([0, 1, 0, 1], 2), np.zeros((4, 3, 16, 16), np.uint8)
    drawn, first, shared = (
        split(train, 2),
        train.fingerprint,
        Images(torch.from_numpy(pixels), train.labels, train.classes, "made"),
    )
    train.images.zero_()
    assert train.fingerprint == shared.fingerprint != first
    with pytest.raises(ValueError, match="belongs to other data"):
        drawn.resize(train, 3)
    pixels[0] = 1
    assert shared.fingerprint != train.fingerprint
    train.labels[0] = 1
    assert data_key(train, train) != data_key(shared, shared)


def test_fingerprint_says_everything() -> None:
    base = labelled([0, 1, 0, 1], 2)
    pixels = base.images.clone()
    pixels[0, 0, 0, 0] += 1
    others = [
        Images(pixels, base.labels, base.classes, "made"),
        Images(base.images, 1 - base.labels, base.classes, "made"),
        Images(base.images, base.labels, ("a", "b"), "made"),
        Images(base.images.view(4, 3, 8, 32), base.labels, base.classes, "made"),
    ]
    assert len({i.fingerprint for i in [base, *others]}) == 5
    assert labelled([0, 1, 0, 1], 2).fingerprint == base.fingerprint
    assert (
        len({data_key(*pair) for pair in ((base, base), (base, others[0]), (others[0], base))}) == 3
    ), "of both, in their order"


def test_digits_are_those_of_the_committed_rows() -> None:
    """Pixels, labels, and which of them are held out."""
    rows = pd.read_csv(Path(__file__).parent.parent / "results" / "digits.csv")
    assert set(rows.data) == {data_key(*load("digits"))}


def test_cifar100_is_another_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hundred:
        filename, tgz_md5, classes = "cifar-100-python.tar.gz", "", list(map(str, range(100)))

        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.data, self.targets = np.full((100, 32, 32, 3), train, np.uint8), list(range(100))

    monkeypatch.setattr(datasets, "CIFAR100", Hundred)
    monkeypatch.setattr(datasets, "CIFAR10", None)
    train, test = load("cifar100", tmp_path)
    assert (train.title, len(train.classes), int(train.images.min()), int(test.images.max())) == (
        "CIFAR-100",
        100,
        1,
        0,
    )
