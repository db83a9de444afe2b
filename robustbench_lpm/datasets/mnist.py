"""MNIST and Fashion-MNIST, from their original IDX files: in torchvision's directories, Debian's or any other."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustbench_lpm.datasets.images import ImageSet, from_arrays
from robustbench_lpm.datasets.splits import check_split, data_root, hold_out, missing, torchvision_command
from robustbench_lpm.errors import LpmbenchError

SIDE = 28
CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True)
class _Collection:
    """A dataset in MNIST's four files. pins: file name -> sha256 of its array.

    MNIST's descendants use the same file names and shapes, so only the content tells which dataset a file belongs to.
    """

    name: str
    torchvision: str  # the class there; its files are in DIR/<class>/raw
    classes: tuple[str, ...]
    pins: dict[str, str]
    package: str = ""  # of Debian
    package_folder: Path | None = None


MNIST = _Collection(
    name="mnist",
    torchvision="MNIST",
    classes=tuple("0123456789"),
    pins={
        "train-images-idx3-ubyte": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "train-labels-idx1-ubyte": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "t10k-images-idx3-ubyte": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "t10k-labels-idx1-ubyte": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
)
FASHION_MNIST = _Collection(
    name="fashion-mnist",
    torchvision="FashionMNIST",
    classes=CLOTHES,
    pins={
        "train-images-idx3-ubyte": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "train-labels-idx1-ubyte": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "t10k-images-idx3-ubyte": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "t10k-labels-idx1-ubyte": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    },
    package="dataset-fashion-mnist",
    package_folder=Path("/usr/share/datasets/fashion-mnist"),
)


def mnist(*, data: Path | None, split: str, folder: Path, validation: int = 5000) -> ImageSet:
    """28 x 28 handwritten digits in file order; validation is the last 5000 of the 60000 training images.

    Source: LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998.
    """
    return _split(MNIST, data, split, validation)


def fashion_mnist(*, data: Path | None, split: str, folder: Path, validation: int = 5000) -> ImageSet:
    """28 x 28 pictures of clothes in file order; validation is the last 5000 of the 60000 training images.

    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv 1708.07747, 2017.
    """
    return _split(FASHION_MNIST, data, split, validation)


def read_all_digits(data: Path | None) -> Arrays:
    """All of MNIST, (70000, 28, 28) and (70000,): the training file, then the test file."""
    pixels, labels = zip(*(_arrays(MNIST, data, prefix) for prefix in ("train", "t10k")), strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


def _split(collection: _Collection, data: Path | None, split: str, validation: int) -> ImageSet:
    check_split(collection.name, split)
    pixels, labels = _arrays(collection, data, "t10k" if split == "test" else "train")
    images = from_arrays(pixels, labels, collection.classes)
    return images if split == "test" else hold_out(collection.name, images, split, validation)


def _arrays(collection: _Collection, data: Path | None, prefix: str) -> Arrays:
    """The images (N, 28, 28) and labels (N,) of two files. Raises LpmbenchError for missing, damaged or other files."""
    images, labels = _find(collection, data, (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"))
    return _checked(collection, images, 16).reshape(-1, SIDE, SIDE), _checked(collection, labels, 8)


def _find(collection: _Collection, data: Path | None, names: tuple[str, str]) -> list[Path]:
    root = data_root(data)
    places = [root / collection.torchvision / "raw", root]
    commands = [torchvision_command(collection.torchvision, root)]
    if collection.package and collection.package_folder:
        commands.append(f"apt install {collection.package}")
        if data is None:  # a directory given by the user is never replaced by another
            places.insert(1, collection.package_folder)
    for place in places:
        found = [path for name in names if (path := _plain_or_packed(place / name))]
        if len(found) == len(names):
            return found
    raise missing(collection.name, f"{names[0]}(.gz) with {names[1]}(.gz)", places, commands)


def _plain_or_packed(path: Path) -> Path | None:
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def _checked(collection: _Collection, path: Path, header: int) -> NDArray[np.uint8]:
    """The array in an IDX file, flat. Its sha256 shows that it is complete, so the header is skipped unread."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise LpmbenchError(f"{path} cannot be read: {error}") from None
    if hashlib.sha256(content[header:]).hexdigest() != collection.pins[path.name.removesuffix(".gz")]:
        raise LpmbenchError(
            f"{path} is not the file of dataset '{collection.name}', or is damaged: its content differs."
        )
    return np.frombuffer(content, np.uint8, offset=header)
