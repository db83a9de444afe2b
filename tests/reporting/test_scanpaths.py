"""Pictures of where a model looks: they open, they move, and they show what was seen where it was seen."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageSequence

from robustbench_lpm.reporting import scanpaths
from robustbench_lpm.reporting.scanpaths import Scanpath, Scene

RING = np.array([[r * np.cos(a), r * np.sin(a)] for r in (0.1, 0.5) for a in np.linspace(0, 2 * np.pi, 9)[:-1]])


def make_scene(
    *, glimpses: int = 3, shape: tuple[int, int, int] = (1, 32, 32), with_cells: bool = True, far: float = 1.0,
    names: tuple[str, ...] = (),
) -> Scene:  # fmt: skip
    rng = np.random.default_rng(0)
    cells = RING if with_cells else np.zeros((0, 2))

    def look(label: int) -> Scanpath:
        return Scanpath(
            rng.random(shape, np.float32),
            (far * rng.uniform(-1, 1, (glimpses, 2))).astype(np.float32),
            np.full(glimpses, label),
            np.full(glimpses, 0.75, np.float32),
            rng.random((glimpses, len(cells), shape[0]), np.float32),
        )

    return Scene(7, 0, look(0), look(1), cells, "ramlpm under $pgd_", "Shown: draw 1 of 20.", names)


CASES = [
    {},
    {"glimpses": 1, "with_cells": False},
    {"glimpses": 9, "shape": (3, 224, 160), "far": 3.0},
    {"names": ("$a_{very} long name of a class that no column holds", "b")},
]


@pytest.mark.parametrize("case", CASES)
def test_a_picture_and_a_gif_that_moves_and_loops(case: dict) -> None:
    scene = make_scene(**case)
    picture = Image.open(BytesIO(scanpaths.scanpath_picture(scene)))
    assert picture.format == "PNG"
    assert picture.width > 1000
    animation = Image.open(BytesIO(scanpaths.scanpath_animation(scene)))
    assert (animation.format, getattr(animation, "n_frames", 1)) == ("GIF", len(scene.clean.labels))
    if len(scene.clean.labels) > 1:
        assert animation.info["loop"] == 0
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(animation)]
        assert durations == [scanpaths.FRAME_MS] * (len(durations) - 1) + [scanpaths.LAST_FRAME_MS]


def test_the_same_scene_gives_the_same_bytes() -> None:
    scene = make_scene()
    assert scanpaths.scanpath_picture(scene) == scanpaths.scanpath_picture(scene)
    assert scanpaths.scanpath_animation(scene) == scanpaths.scanpath_animation(scene)


def test_right_answers_are_green_and_stay_green_in_the_gif() -> None:
    scene = make_scene()
    assert (scene.colour(scene.clean, 0), scene.colour(scene.attacked, 0)) == (scanpaths.RIGHT, scanpaths.WRONG)
    frame = np.asarray(Image.open(BytesIO(scanpaths.scanpath_animation(scene))).convert("RGB")).astype(int)
    for colour in (scanpaths.RIGHT, scanpaths.WRONG, scanpaths.REACH):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(frame - wanted).max(axis=-1) < 12).sum() > 20


def test_what_is_seen_lies_at_the_fixation_and_nothing_beyond_the_retina() -> None:
    fixation = np.array([0.4, -0.2], np.float32)
    values = np.linspace(0, 0.5, len(RING), dtype=np.float32)[:, None]
    side = 200
    picture = scanpaths.what_is_seen(RING, values, fixation, side)
    assert picture.shape == (side, side)
    for cell, value in zip(RING, values[:, 0], strict=True):
        x, y = ((0.98 * cell + fixation + 1) / 2 * side).astype(int)
        assert picture[y, x] == pytest.approx(value)
    assert picture[-1, 0] == scanpaths.UNSEEN
    assert scanpaths.what_is_seen(RING, values.repeat(3, 1), fixation, 9).shape == (9, 9, 3)


@pytest.mark.parametrize(("glimpses", "columns"), [(1, 1), (6, 6), (7, 4), (10, 5), (20, 5)])
def test_small_pictures_stand_in_rows_of_equal_length(glimpses: int, columns: int) -> None:
    assert scanpaths._columns(make_scene(glimpses=glimpses)) == columns
