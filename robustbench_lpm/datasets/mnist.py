"""MNIST and Fashion-MNIST, from their original files: torchvision's folders, Debian's, or wherever they lie."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustbench_lpm.datasets.idx import find_idx, read_idx
from robustbench_lpm.datasets.images import ImageSet, from_arrays
from robustbench_lpm.datasets.splits import check_split, data_root, hold_out, missing, torchvision_command
from robustbench_lpm.errors import LpmbenchError


@dataclass(frozen=True)
class Collection:
    """One data set in MNIST's four files. `pins`: file name -> sha256 of its array.

    The files of MNIST and of all its descendants have the same names and shapes, so only their content tells which
    data set they are; without the pins, fashion read as digits would give a number like any other.
    """

    name: str
    torchvision: str  # the class there; its files lie in DIR/<class>/raw
    classes: tuple[str, ...]
    pins: dict[str, str]
    package: str = ""  # of Debian
    package_folder: Path | None = None


MNIST = Collection(
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
FASHION_MNIST = Collection(
    name="fashion-mnist",
    torchvision="FashionMNIST",
    classes=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
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
    return read_collection(MNIST, data, split, validation)


def fashion_mnist(*, data: Path | None, split: str, folder: Path, validation: int = 5000) -> ImageSet:
    """28 x 28 pictures of clothes in file order; validation is the last 5000 of the 60000 training images.

    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv 1708.07747, 2017.
    """
    return read_collection(FASHION_MNIST, data, split, validation)


def read_collection(collection: Collection, data: Path | None, split: str, validation: int) -> ImageSet:
    """A split of the collection, its files found and checked. Raises LpmbenchError if they are missing or others."""
    check_split(collection.name, split)
    prefix = "t10k" if split == "test" else "train"
    names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    pixels, labels = (_checked(path, collection) for path in _find(collection, data, names))
    images = from_arrays(pixels, labels, collection.classes)
    return images if split == "test" else hold_out(collection.name, images, split, validation)


def _find(collection: Collection, data: Path | None, names: tuple[str, str]) -> list[Path]:
    root = data_root(data)
    places = [root / collection.torchvision / "raw", root]
    commands = [torchvision_command(collection.torchvision, root)]
    if collection.package and collection.package_folder:
        commands.append(f"apt install {collection.package}")
        if data is None:  # a folder that was asked for is never passed over for another
            places.insert(1, collection.package_folder)
    for place in places:
        found = [path for name in names if (path := find_idx(place, name))]
        if len(found) == len(names):
            return found
    raise missing(collection.name, f"{names[0]}(.gz) with {names[1]}(.gz)", places, commands)


def _checked(path: Path, collection: Collection) -> NDArray[np.uint8]:
    array = read_idx(path)
    if hashlib.sha256(array.tobytes()).hexdigest() != collection.pins[path.name.removesuffix(".gz")]:
        raise LpmbenchError(f"{path} is not the file of data set '{collection.name}': its content differs.")
    return array


def read_all_digits(data: Path | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """All of MNIST, (70000, 28, 28) and (70000,): the training file, then the test file."""
    parts = []
    for prefix in ("train", "t10k"):
        names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        parts.append([_checked(path, MNIST) for path in _find(MNIST, data, names)])
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return pixels, labels
