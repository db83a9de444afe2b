"""Examples keep what belongs together together, and never squeeze unequal shapes into one batch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_lpm.datasets.examples import Examples, batches_by_shape, read_examples
from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.errors import LpmbenchError
from tests.datasets.image_samples import noise_image

SHAPES = [(6, 4), (5, 5), (6, 6), (4, 6), (5, 3), (6, 2)]  # (width, height); as squares: 6, 5, 6, 6, 5, 6


@pytest.fixture
def image_set() -> ImageSet:
    return ImageSet(
        labels=np.arange(6) * 10 % 7,
        classes=(),
        read=lambda position: noise_image(position, *SHAPES[position]),
        fingerprint=lambda position: hashlib.sha256(bytes([position])).hexdigest(),
    )


def test_examples_come_as_asked_for(image_set: ImageSet) -> None:
    examples = read_examples(image_set, [4, 0, 4], "original", 1.0, 3)
    assert (len(examples), examples.indices) == (3, [4, 0, 4])
    assert examples.labels.tolist() == image_set.labels[[4, 0, 4]].tolist()
    assert examples.labels.dtype == torch.int64
    assert [pixels.shape[-1] for pixels in examples.images] == [5, 6, 5]
    assert examples.fingerprints == [image_set.fingerprint(index) for index in (4, 0, 4)]
    assert torch.equal(examples.images[0], examples.images[2])


def test_labels_are_a_copy(image_set: ImageSet) -> None:
    read_examples(image_set, range(6), 4, 1.0, 3).labels.zero_()
    assert image_set.labels.any()


def test_no_examples_make_no_batches(image_set: ImageSet) -> None:
    examples = read_examples(image_set, [], 4, 1.0, 3)
    assert (len(examples), examples.labels.shape, list(batches_by_shape(examples))) == (0, (0,), [])


@pytest.mark.parametrize("index", [-1, 6])
def test_positions_that_do_not_exist_are_told(image_set: ImageSet, index: int) -> None:
    with pytest.raises(LpmbenchError, match=f"no example {index}: the split holds 6"):
        read_examples(image_set, [0, index], 4, 1.0, 3)


def test_equal_shapes_make_one_batch(image_set: ImageSet) -> None:
    (batch,) = batches_by_shape(read_examples(image_set, range(6), 4, 1.0, 3))
    assert (batch.images.shape, batch.masks) == ((6, 3, 4, 4), None)


def test_unequal_shapes_are_grouped(image_set: ImageSet) -> None:
    batches = list(batches_by_shape(read_examples(image_set, range(6), "original", 1.0, 3)))
    assert [batch.positions for batch in batches] == [[0, 2, 3, 5], [1, 4]]
    assert [tuple(batch.images.shape) for batch in batches] == [(4, 3, 6, 6), (2, 3, 5, 5)]


def test_an_unpadded_image_among_padded_ones_may_change_everywhere(image_set: ImageSet) -> None:
    examples = read_examples(image_set, range(6), "original", 1.0, 3)
    first, _ = batches_by_shape(examples)
    assert first.masks is not None
    assert first.masks.shape == (4, 1, 6, 6)
    assert examples.masks[2] is None
    assert first.masks[1].all()
    assert first.masks.sum((1, 2, 3)).tolist() == [24, 36, 24, 12]


@settings(deadline=None)
@given(sides=st.lists(st.integers(1, 4), max_size=12), batch_size=st.none() | st.integers(1, 5))
def test_every_example_is_in_exactly_one_batch(sides: list[int], batch_size: int | None) -> None:
    examples = Examples(
        images=[torch.full((1, side, side), float(position)) for position, side in enumerate(sides)],
        labels=torch.arange(len(sides)),
        masks=[None] * len(sides),
        indices=[100 + position for position in range(len(sides))],
        fingerprints=[""] * len(sides),
        classes=(),
    )
    batches = list(batches_by_shape(examples, batch_size))
    assert sorted(position for batch in batches for position in batch.positions) == list(range(len(sides)))
    for batch in batches:
        assert 0 < len(batch) <= (batch_size or len(sides))
        assert batch.images[:, 0, 0, 0].tolist() == batch.labels.tolist() == batch.positions
        assert [index - 100 for index in batch.indices] == batch.positions
