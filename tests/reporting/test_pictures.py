"""Stored examples are shown with the right labels and an honest factor."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from robustbench_lpm import reporting
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.reporting import pictures

FACTORS = [(0.0, 1), (1.0, 1), (0.5, 1), (0.25, 2), (0.1, 5), (2 / 255, 50), (8 / 255, 10), (1e-9, 50000)]


@pytest.mark.parametrize(("largest", "factor"), FACTORS)
def test_amplification_stays_within_the_range_of_greys(largest, factor):
    assert pictures.amplification(largest) == factor


def test_the_amplified_perturbation_is_not_clipped(make):
    example = pictures.examples(make(stored=1))[0]
    assert example.amplified - 0.5 == pytest.approx(example.factor * example.perturbation, abs=1e-6)


def test_the_prediction_is_that_of_most_draws(make):
    right = [[True, True, True, False]] + [[False, False, False, True]] * 39
    first, second = pictures.examples(make(robust=right, draws=4, stored=2, clean=1.0))
    assert (first.attacked.label, first.attacked.votes, first.fooled) == (0, 3, False)
    assert (second.attacked.label, second.attacked.votes, second.fooled) == (2, 3, True)
    assert second.attacked.named(["a", "b", "c"]) == "c (3 of 4 draws)"
    assert second.attacked.named(["a"]) == "2 (3 of 4 draws)"


NAMES = [
    ({3: "cat"}, "cat"),
    ({4: "dog"}, "3"),
    ({}, "3"),
    (None, "3"),
    (["a", "b", "c", "d"], "d"),
    (["a"], "3"),
    ({3: "3"}, "3"),
    ({3: " "}, "3"),
    ({3: "two\nlines\x1b"}, "two lines\ufffd"),
    ({3: "crane", 8: "crane", 4: "cat"}, "crane (3)"),  # a bird and a machine
]


@pytest.mark.parametrize(("names", "shown"), NAMES)
def test_a_class_goes_by_its_name_or_its_number(names, shown):
    assert pictures.class_name(3, names) == shown


def test_names_that_say_no_more_than_the_number_are_left_out():
    assert pictures.telling({0: "0", 1: "one", 2: ""}) == {1: "one"}
    assert pictures.telling(tuple("0123456789")) == {}


def test_the_picture_of_a_record_takes_the_names_that_it_tells(make):
    named, bare = make(stored=1, class_names={0: "coat", 1: "shirt"}), make(stored=1)
    assert reporting.attack_picture(named) == reporting.attack_picture(bare, 0, ["coat", "shirt"])
    assert reporting.attack_picture(named) != reporting.attack_picture(bare)
    assert reporting.attack_picture(named, 0, {}) == reporting.attack_picture(bare)


@pytest.mark.parametrize(("shape", "names"), [((1, 8, 8), None), ((3, 12, 10), [f"$class_{i}" for i in range(10)])])
def test_attack_picture_is_a_png_that_does_not_change(make, shape, names):
    record = make("a $model_ <b>", stored=2, shape=shape)
    png = reporting.attack_picture(record, 1, names)
    assert Image.open(BytesIO(png)).format == "PNG"
    assert png == reporting.attack_picture(record, 1, names)
    assert png != reporting.attack_picture(record, 0, names)


@pytest.mark.parametrize("position", [-1, 2])
def test_a_position_that_is_not_stored_is_an_error(make, position):
    with pytest.raises(LpmbenchError, match=r"stores 2 example"):
        reporting.attack_picture(make(stored=2), position)


@pytest.mark.parametrize(("shape", "size"), [((1, 8, 8), (8, 8)), ((3, 400, 200), (80, 160))])
def test_thumbnails_hold_the_pixels_of_small_images_and_reduce_large_ones(shape, size):
    image = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    uri = pictures.data_uri(image)
    picture = Image.open(BytesIO(b64decode(uri.removeprefix("data:image/png;base64,"))))
    assert picture.size == size
    if shape[0] == 1:
        assert np.array_equal(np.asarray(picture), np.round(image[0] * 255).astype(np.uint8))


def test_the_gallery_prefers_the_smallest_eps_that_fools(make):
    strong, weak = make(eps=16 / 255, robust=0.0, stored=1), make(eps=1 / 255, robust=1.0, stored=1)
    middle = make(eps=8 / 255, robust=0.0, stored=1)
    records = [strong, weak, middle]
    ((record, example),) = pictures.gallery(records, reporting.table(records), 8)
    assert record.eps == middle.eps
    assert example.fooled
