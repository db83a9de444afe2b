"""Images and labels as users hold them: the same data in each of their forms, or one line that says what is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import robustbench_lpm
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.registry.own_data import data_of_ones_own
from robustbench_lpm.registry.tasks import Data
from tests.attacks.test_closed_forms import Linear

GREY_LEVELS = torch.randint(0, 256, (6, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES, LABELS = GREY_LEVELS.float() / 255, torch.tensor([0, 1, 2, 0, 1, 2])
PAIRS = list(zip(IMAGES, LABELS.tolist(), strict=True))


class Examples(Dataset[Any]):
    """Examples that do not say where they end: reading beyond the last is an error of its own."""

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self.examples):
            raise RuntimeError("there is no such example")
        return self.examples[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(PAIRS)


def as_words(examples: list[Any]) -> dict[str, Any]:
    images, labels = zip(*examples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def as_lists(examples: list[Any]) -> tuple[list[Any], list[Any]]:
    return [image for image, _ in examples], [label for _, label in examples]


FORMS: dict[str, Any] = {
    "tensors": (IMAGES, LABELS),
    "a list of two": [IMAGES, LABELS],
    "float64, with gradients": (IMAGES.double().requires_grad_(), LABELS.int()),
    "arrays": (IMAGES.numpy(), LABELS.numpy().astype(np.uint8)),
    "lists": (list(IMAGES), LABELS.tolist()),
    "nested lists": (IMAGES.tolist(), LABELS.tolist()),
    "labels as floats": (IMAGES, LABELS.double()),
    "labels as scalars": (IMAGES, list(LABELS)),
    "uint8": (GREY_LEVELS, LABELS),
    "uint8, channels last": (GREY_LEVELS.permute(0, 2, 3, 1).numpy(), LABELS),
    "floats, channels last": (IMAGES.permute(0, 2, 3, 1).numpy(), LABELS),
    "a dict": {"image": IMAGES, "label": LABELS},
    "TensorDataset": TensorDataset(IMAGES, LABELS),
    "Dataset": Examples(PAIRS),
    "a Dataset of pictures": Examples(list(zip(GREY_LEVELS.permute(0, 2, 3, 1).numpy(), LABELS, strict=True))),
    "a Dataset of dicts": Examples([{"img": image, "label": label} for image, label in PAIRS]),
    "a Dataset of three": Examples([(image, label, "file.png") for image, label in PAIRS]),
    "examples": PAIRS,
    "IterableDataset": Stream(),
    "Subset": Subset(Examples([*PAIRS, *PAIRS]), range(6)),
    "DataLoader": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
    "DataLoader of lists": DataLoader(Examples(PAIRS), batch_size=4, collate_fn=as_lists),
    "DataLoader of dicts": DataLoader(Examples(PAIRS), batch_size=4, collate_fn=as_words),
    "DataLoader without batches": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=None),
    "DataLoader of a stream": DataLoader(Stream(), batch_size=4),
}  # fmt: skip


def read(data: Data) -> tuple[Tensor, list[int]]:
    examples = data.read(range(len(data)))
    return torch.stack(examples.images), examples.labels.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_the_same_data(form: str) -> None:
    told = "uint8" in form or "last" in form or "pictures" in form
    for limit in (None, 3):
        data = data_of_ones_own(FORMS[form], limit)
        images, labels = read(data)
        assert torch.equal(images, IMAGES[:limit])
        assert images.dtype == torch.float32
        assert labels == LABELS[:limit].tolist()
        assert bool(data.notes) == told


def test_images_of_several_shapes_stay_apart() -> None:
    data = data_of_ones_own(([torch.rand(1, 4, 4), torch.rand(1, 5, 3)], [0, 1]))
    assert [tuple(image.shape) for image in data.read([1, 0]).images] == [(1, 5, 3), (1, 4, 4)]


def test_channels_that_may_be_either_stay_where_they_are() -> None:
    images = np.random.default_rng(0).random((2, 3, 4, 3), dtype=np.float32)
    assert read(data_of_ones_own((images, [0, 1])))[0].shape == (2, 3, 4, 3)


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(5)])
def test_a_loader_that_shuffles_gives_one_order_and_leaves_the_generators(generator: torch.Generator | None) -> None:
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, shuffle=True, generator=generator)
    state = generator.get_state() if generator is not None else None
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), random.getstate()
        data = data_of_ones_own(loader)
        assert "shuffles" in data.notes[0]
        orders.append(read(data)[0])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
    assert torch.equal(*orders)
    assert sorted(read(data)[1]) == sorted(LABELS.tolist())
    if generator is not None and state is not None:
        assert torch.equal(generator.get_state(), state)


ONE_HOT = torch.eye(3)[LABELS]
UNEQUAL = Examples([(torch.rand(3, 4, 4), 0), (torch.rand(3, 5, 5), 0)])
BAD: list[tuple[str, Any, str]] = [
    # what it is, the data, what the line says
    ("a number", 3, "Data cannot be int"),
    ("nothing", None, "Data cannot be NoneType"),
    ("images alone", IMAGES, "Data cannot be Tensor"),
    ("three", (IMAGES, LABELS, LABELS), "not a tuple of 3"),
    ("no examples", [], "no images"),
    ("empty", (IMAGES[:0], LABELS[:0]), "no images"),
    ("without labels", Examples(list(IMAGES)), "give (images, labels)"),
    ("a dict of splits", {"train": 1, "test": 2}, "no images under pixel_values"),
    ("a dict without labels", {"image": IMAGES}, "no labels under label"),
    ("PIL", Examples([(Image.new("RGB", (4, 4)), 0)]), "ToTensor"),
    ("a list of PIL", ([Image.new("L", (4, 4))], [0]), "ToTensor"),
    ("words", (["a.png", "b.png"], [0, 1]), "images are no array of numbers"),
    ("one image", (IMAGES[0], LABELS[:1]), "images[None]"),
    ("one image and its label", (IMAGES[0], 1), "labels[None]"),
    ("no channels", (IMAGES[:, 0], LABELS), "images[:, None]"),
    ("a list without channels", (list(IMAGES[:, 0]), LABELS), "image[None]"),
    ("flat", (IMAGES.flatten(1), LABELS), "need (N, C, H, W)"),
    ("five dimensions", (IMAGES[None], LABELS), "need (N, C, H, W)"),
    ("not normalised", (IMAGES * 255, LABELS), "divide by 255"),
    ("normalised", ((IMAGES - 0.5) / 0.25, LABELS), "normalisation belongs inside the model"),
    ("rounded", (IMAGES + 0.001, LABELS), "images.clamp(0, 1)"),
    ("NaN", (IMAGES.masked_fill(IMAGES > 0.9, torch.nan), LABELS), "NaN"),
    ("infinite", (IMAGES.masked_fill(IMAGES > 0.9, torch.inf), LABELS), "infinite"),
    ("int64", (GREY_LEVELS.long(), LABELS), "Images are int64"),
    ("bool", (GREY_LEVELS > 100, LABELS), "Images are bool"),
    ("complex", (IMAGES.to(torch.complex64), LABELS), "Images are complex64"),
    ("another number", (IMAGES, LABELS[:5]), "6 images and 5 labels"),
    ("negative", (IMAGES, LABELS - 1), "label of image 0 is -1"),
    ("soft", (IMAGES, LABELS + 0.5), "label of image 0 is 0.5"),
    ("NaN labels", (IMAGES, LABELS / 0.0 * 0), "is NaN"),
    ("one-hot", (IMAGES, ONE_HOT), "one-hot, (6, 3); pass labels.argmax(1)"),
    ("one-hot, whole numbers", (IMAGES, ONE_HOT.long().numpy()), "one-hot"),
    ("one-hot by example", Examples(list(zip(IMAGES, ONE_HOT, strict=True))), "one-hot"),
    ("distributions", (IMAGES, ONE_HOT * 0.9 + 0.1 / 3), "soft"),
    ("a column", (IMAGES, LABELS[:, None]), "labels.squeeze(1)"),
    ("names", (IMAGES, ["cat"] * 6), "labels are no array of numbers"),
    ("no labels", (IMAGES, [None] * 6), "labels are no array of numbers"),
    ("complex labels", (IMAGES, LABELS * 1j), "complex"),
    ("ragged labels", (IMAGES[:2], [torch.tensor([0]), torch.tensor([0, 1])]), "differ in shape"),
    ("a dataset that fails", Examples([*PAIRS, {}]), "no images under"),
    ("a loader that fails", DataLoader(UNEQUAL, batch_size=2), "RuntimeError"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_is_no_data_is_named_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(LpmbenchError) as error:
        robustbench_lpm.evaluate(Linear(torch.ones(3, 4, 5)), "noise", data, eps=0.1)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_forms_share_a_record_and_its_notes_say_how_they_were_taken(caplog: pytest.LogCaptureFixture) -> None:
    """The same images are the same run, whatever held them."""
    model = Linear(torch.linspace(-1, 1, 60).reshape(3, 4, 5)).eval()
    labels = LABELS % 2
    plain = robustbench_lpm.evaluate(model, "noise", (IMAGES, labels), eps=0.1)
    told = robustbench_lpm.evaluate(model, "noise", TensorDataset(GREY_LEVELS, labels), eps=0.1)
    assert "divided by 255" in caplog.text
    assert told.id == plain.id
    assert any("divided by 255" in note for note in told.notes)
    assert not plain.notes
