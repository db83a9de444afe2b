"""Where a model looks: pictures and animations, and the file of fixations that the page draws."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from robustbench_lpm import reporting
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.reporting import scanpaths
from robustbench_lpm.reporting.scanpaths import Gaze, Scanpath, Scene

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
    {"glimpses": 9, "shape": (3, 64, 40)},
    {"with_cells": False},
    {"far": 3.0, "names": ("$a_{very} long name of a class that no column holds", "b")},
]


@pytest.mark.parametrize("case", CASES)
def test_a_picture(case: dict) -> None:
    picture = Image.open(BytesIO(scanpaths.scanpath_picture(make_scene(**case))))
    assert picture.format == "PNG"
    assert picture.width > 1000


@pytest.mark.parametrize("case", [{"glimpses": 1}, {"glimpses": 2, "with_cells": False}])
def test_a_gif_that_moves_and_loops_and_is_always_the_same(case: dict) -> None:
    scene = make_scene(**case)
    content = scanpaths.scanpath_animation(scene)
    assert content == scanpaths.scanpath_animation(scene)
    animation = Image.open(BytesIO(content))
    assert (animation.format, getattr(animation, "n_frames", 1)) == ("GIF", len(scene.clean.labels))
    if len(scene.clean.labels) > 1:
        assert animation.info["loop"] == 0
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(animation)]
        assert durations == [scanpaths.FRAME_MS] * (len(durations) - 1) + [scanpaths.LAST_FRAME_MS]


def test_right_answers_are_green_and_stay_green_in_the_gif() -> None:
    scene = make_scene(glimpses=2)
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
def test_small_pictures_are_in_rows_of_equal_length(glimpses: int, columns: int) -> None:
    assert scanpaths._columns(make_scene(glimpses=glimpses)) == columns


def test_fixations_that_are_written_are_read(tmp_path: Path) -> None:
    one = Gaze("a" * 64, 3, 1, [(0.0, -0.5), (1.25, 1.0)], [(0.0, -0.5), (-1.0, 0.125)])
    scanpaths.write([one], tmp_path)
    assert scanpaths.read(tmp_path) == {("a" * 64, 3): one}
    assert scanpaths.read(tmp_path / "elsewhere") == {}


ENTRY = '{"record": "a", "index": 0, "draw": 0, "clean": [[0, %s]], "adversarial": []}'


@pytest.mark.parametrize(
    ("version", "entry"), [(2, ""), (1, '{"record": "a"}'), (1, ENTRY % '"<b>"'), (1, ENTRY % "NaN")]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, version: int, entry: str) -> None:
    (tmp_path / scanpaths.FILE).parent.mkdir()
    (tmp_path / scanpaths.FILE).write_text(f'{{"schema_version": {version}, "scanpaths": [{entry}]}}')
    with pytest.raises(LpmbenchError, match="no file of scanpaths"):
        scanpaths.read(tmp_path)


def test_a_scanpath_is_drawn_over_its_pictures_and_told_in_words(make, tmp_path: Path) -> None:
    record, other = make("ram", stored=1, draws=4), make("cnn", stored=1)
    scanpaths.write([Gaze(record.id, 0, 2, [(0.0, 0.0), (0.5, -0.25)], [(0.0, 0.0), (-1.0, 1.0)])], tmp_path)
    html = reporting.write_report([record, other], tmp_path)[-1].read_text()
    clean, attacked = re.findall(r'<svg class="path".*?</svg>', html)
    told = "Fixations, left to right and top to bottom from -1 to 1: 1 at (0.00, 0.00), 2 at (0.50, -0.25)"
    assert f'aria-label="{told}"' in clean
    assert '<circle cx="-1.000" cy="1.000"' in attacked
    assert html.count("gaze of draw 3") == 1
