"""Scanpaths: the fixations of a glimpsing model on an image before and after an attack, as a picture, an animation, and
a file of fixations that the page draws over its pictures.

`lpmbench report --scanpaths` runs the models once and writes the file; making the page again needs no model.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.records.runs import read_json, write_atomically
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.pictures import class_name, displayable, drawing, saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = Path("json") / "scanpaths.json"
SCHEMA_VERSION = 1
RIGHT, WRONG = "#1b7f4b", "#c0392b"
UNSEEN = 0.93  # the grey of places outside the retina
REACH, PATH, DARK = "#2f9bff", "#ffffff", "#101418"
SIDE = 240  # pixels of the drawing of what a glimpse sees
FRAME_MS, LAST_FRAME_MS = 900, 2600


@dataclass(frozen=True)
class Scanpath:
    """One run on one image: T fixations, and the prediction after each."""

    image: NDArray[np.float32]  # (C, H, W) in [0, 1]
    fixations: NDArray[np.float32]  # (T, 2) as (x, y); the image is [-1, 1]², y down
    labels: NDArray[np.int64]  # (T,)
    confidences: NDArray[np.float32]  # (T,) in [0, 1]
    seen: NDArray[np.float32]  # (T, n, C), the value of each of the retina's n cells in [0, 1]


@dataclass(frozen=True)
class Scene:
    """Two runs on the same noise: on an image and on its adversarial example."""

    index: int
    label: int
    clean: Scanpath
    attacked: Scanpath
    cells: NDArray[np.float64]  # (n, 2), the cells of the retina around a fixation; n may be 0
    headline: str  # the model, the attack and its budget
    footnote: str = ""  # which draw is shown, and the predictions of the others
    class_names: tuple[str, ...] = ()

    @property
    def panels(self) -> tuple[tuple[str, Scanpath], tuple[str, Scanpath]]:
        """Both runs with their titles."""
        return ("clean", self.clean), ("adversarial", self.attacked)

    @cached_property
    def outlines(self) -> NDArray[np.float64]:
        """The border of the retina around a fixation, (points, 2), closed; empty for a retina without cells."""
        from scipy.spatial import ConvexHull

        if len(self.cells) < 3:
            return np.zeros((0, 2))
        vertices = ConvexHull(self.cells).vertices
        return self.cells[[*vertices, vertices[0]]]

    def said(self, path: Scanpath, t: int) -> str:
        """The prediction after glimpse t (from 0), and its probability."""
        return f"{class_name(int(path.labels[t]), self.class_names)} ({100 * path.confidences[t]:.0f} %)"

    def colour(self, path: Scanpath, t: int) -> str:
        """Green where the model was right."""
        return RIGHT if path.labels[t] == self.label else WRONG


def scanpath_picture(scene: Scene) -> bytes:
    """A PNG: both images with their numbered fixations, and below them each glimpse with the prediction after it."""
    with drawing((10.4, 1.1 + 4.75 + _strip_height(scene)), dpi=120) as figure:
        parts: Any = figure.subfigures(2, 1, height_ratios=(4.75, _strip_height(scene)))
        limit = _limit(scene)
        for axes, (title, path) in zip(parts[0].subplots(1, 2), scene.panels, strict=True):
            _show(axes, path.image, limit)
            _draw_path(axes, path.fixations, len(path.fixations))
            _title(axes, scene, title, path, len(path.labels) - 1)
        for half, (_, path) in zip(parts[1].subfigures(1, 2), scene.panels, strict=True):
            _draw_strip(half, scene, path)
        figure.suptitle(_heading(scene), fontsize=11)
        figure.supxlabel(_legend(scene), fontsize=8, color="0.35")
        return saved(figure)


def scanpath_animation(scene: Scene) -> bytes:
    """A looping GIF: a frame for each glimpse, with the path so far, the outline of the retina and the glimpse."""
    frames = [_frame(scene, t) for t in range(len(scene.clean.labels))]
    palette = _palette(frames)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer, durations = BytesIO(), [FRAME_MS] * (len(reduced) - 1) + [LAST_FRAME_MS]
    reduced[0].save(
        buffer, "GIF", save_all=True, append_images=reduced[1:], duration=durations, loop=0, optimize=False, disposal=1
    )
    return buffer.getvalue()


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """One palette for all frames, because changing palettes flicker.

    Most colours come from the images; markers and text have too few pixels to get any, so theirs are set.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    together = Image.fromarray(np.vstack([np.asarray(frame) for frame in frames]))
    drawn: list[tuple[float, ...]] = [to_rgb(colour) for colour in (REACH, RIGHT, WRONG, DARK, PATH, str(UNSEEN))]
    drawn += [tuple((share + 1) / 2 for share in to_rgb(colour)) for colour in (RIGHT, WRONG)]  # the edges of letters
    drawn += [colormaps["YlOrRd"](0.12 + 0.68 * step / 23)[:3] for step in range(24)]
    found = together.quantize(256 - len(drawn), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    colours = (found.getpalette() or [])[: 3 * (256 - len(drawn))]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours + [round(255 * share) for colour in drawn for share in colour])
    return palette


def _frame(scene: Scene, t: int) -> Image.Image:
    rows = 2 if len(scene.cells) else 1
    with drawing((7.4, 1.0 + 3.5 * rows), dpi=100) as figure:
        grid = figure.subplots(rows, 2, squeeze=False)
        limit = _limit(scene)
        for column, (title, path) in enumerate(scene.panels):
            _show(grid[0, column], path.image, limit)
            _draw_path(grid[0, column], path.fixations, t + 1)
            outline = path.fixations[t] + scene.outlines
            grid[0, column].plot(*outline.T, color=REACH, linewidth=1.6, zorder=2)
            _title(grid[0, column], scene, title, path, t)
            if rows == 2:
                _show_seen(grid[1, column], scene, path, t, limit)
                grid[1, column].set_xlabel(f"what glimpse {t + 1} sees", color="0.35")
        figure.suptitle(f"{_heading(scene)}\nglimpse {t + 1} of {len(path.labels)}", fontsize=10)
        return Image.open(BytesIO(saved(figure))).convert("RGB")


def _heading(scene: Scene) -> str:
    truth = class_name(scene.label, scene.class_names)
    return f"{plain(scene.headline)}   |   image {scene.index}, true class: {truth}"


def _legend(scene: Scene) -> str:
    words = "The square is the first fixation, which the model does not choose. Green answers are right, red are wrong."
    saw = "Small pictures: what each glimpse saw; light grey is beyond the retina. " if len(scene.cells) else ""
    return f"{words}\n{saw}{plain(scene.footnote)}"


def _limit(scene: Scene) -> float:
    """Half the width of the window: the image, and more where a fixation left it, the same for both images."""
    farthest = max(float(np.abs(path.fixations).max()) for _, path in scene.panels)
    return max(1.0, min(farthest + 0.06, 1.6))


def _show(axes: Axes, image: NDArray[np.float32], limit: float, picture: NDArray[Any] | None = None) -> None:
    """Draw an image, or a picture of a glimpse, in normalised coordinates; pixels of small images stay squares."""
    rows, columns = image.shape[-2:]
    smooth = "nearest" if picture is None and max(rows, columns) <= 128 else "antialiased"
    shown = np.clip(displayable(image), 0, 1) if picture is None else picture
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(-1, 1, 1, -1), interpolation=smooth)
    axes.set(xlim=(-limit, limit), ylim=(limit, -limit), xticks=[], yticks=[], aspect=rows / columns)
    axes.set_facecolor("0.86")
    axes.spines[:].set_color("0.7")


def _draw_path(axes: Axes, fixations: NDArray[np.float32], shown: int) -> None:
    """The first `shown` fixations as numbered markers, light to dark in time, joined by a line.

    A square is the first, a halo the current one.
    """
    from matplotlib import colormaps
    from matplotlib.patheffects import Normal, Stroke

    halo = [Stroke(linewidth=4.5, foreground=DARK), Normal()]
    axes.plot(*fixations[:shown].T, color=PATH, linewidth=2, path_effects=halo, zorder=3, solid_joinstyle="round")
    many = len(fixations) > 8
    for t, (x, y) in enumerate(fixations[:shown]):
        shade = colormaps["YlOrRd"](0.12 + 0.68 * t / max(1, len(fixations) - 1))
        style: dict[str, Any] = {"marker": "s" if t == 0 else "o", "s": 130 if many else 210, "zorder": 4 + t}
        if t == shown - 1:
            axes.scatter(x, y, **style | {"s": style["s"] * 1.9, "color": "white", "edgecolor": DARK})
        axes.scatter(x, y, **style, color=shade, edgecolor=DARK, linewidth=1.1)
        ink = "white" if t > 0.6 * len(fixations) else DARK
        text: dict[str, Any] = {"ha": "center", "va": "center_baseline", "weight": "bold", "clip_on": True}
        axes.text(x, y, str(t + 1), fontsize=6.5 if many else 8.5, color=ink, zorder=4 + t, **text)


def _title(axes: Axes, scene: Scene, title: str, path: Scanpath, t: int) -> None:
    said = "\n".join(textwrap.wrap(scene.said(path, t), 40))
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_title(f"says {said}", loc="right", color=scene.colour(path, t), weight="bold", fontsize=10)


def _columns(scene: Scene) -> int:
    """How many small pictures fit side by side, with the predictions below them."""
    longest = max(len(scene.said(path, t)) for _, path in scene.panels for t in range(len(path.labels)))
    glimpses, most = len(scene.clean.labels), 6 if longest <= 12 else 5
    return -(-glimpses // -(-glimpses // most))  # rows of equal length


def _strip_height(scene: Scene) -> float:
    rows = -(-len(scene.clean.labels) // _columns(scene))
    return rows * (1.3 if len(scene.cells) else 0.5)


def _draw_strip(figure: Any, scene: Scene, path: Scanpath) -> None:
    """Below an image, each glimpse with the prediction after it."""
    columns = _columns(scene)
    rows = -(-len(path.labels) // columns)
    grid: Sequence[Axes] = figure.subplots(rows, columns, squeeze=False).flat
    figure.get_layout_engine().set(w_pad=0.06)
    for t, axes in enumerate(grid):
        if t >= len(path.labels):
            axes.set_axis_off()
            continue
        if len(scene.cells):
            _show_seen(axes, scene, path, t)
        else:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        axes.set_title(str(t + 1), fontsize=8, pad=2, color="0.35")
        said = "\n".join(textwrap.wrap(scene.said(path, t), 13)[:3])
        axes.set_xlabel(said, fontsize=7.5, labelpad=2, color=scene.colour(path, t), weight="bold")


def _show_seen(axes: Axes, scene: Scene, path: Scanpath, t: int, limit: float = 1.0) -> None:
    _show(axes, path.image, limit, what_is_seen(scene.cells, path.seen[t], path.fixations[t], SIDE))


def what_is_seen(
    cells: NDArray[np.float64], values: NDArray[np.float32], fixation: NDArray[np.float32], side: int
) -> NDArray[np.float64]:
    """A glimpse as a picture of the image's square, (side, side) or (side, side, 3), in [0, 1].

    Every pixel takes the value of the cell nearest to it, which shows how coarse the retina is there; pixels beyond
    the retina are light grey.

    Args:
        cells (n, 2) around the fixation (2,), normalised; values (n, C).
    """
    from scipy.spatial import ConvexHull, KDTree

    centres = (np.arange(side) * 2 + 1) / side - 1
    pixels = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2) - fixation
    _, nearest = KDTree(cells).query(pixels)
    borders = ConvexHull(cells).equations  # unit normals and offsets: at most 0 inside
    beyond = (pixels @ borders[:, :2].T + borders[:, 2]).max(axis=1) > 0
    picture = np.clip(values[nearest].astype(np.float64), 0, 1)
    picture[beyond] = UNSEEN
    return picture.reshape((side, side) if picture.shape[1] == 1 else (side, side, -1))


@dataclass(frozen=True)
class Gaze:
    """The fixations of one draw on an example before and after the attack, on the same noise."""

    record: str
    index: int  # of the example
    draw: int  # of the grader, from 0
    clean: Sequence[tuple[float, float]]  # T fixations (x, y); the image is [-1, 1]², y down
    adversarial: Sequence[tuple[float, float]]


def write(gazes: Iterable[Gaze], out: Path) -> Path:
    """Write the file below `out`; its path."""
    ordered = sorted(gazes, key=lambda gaze: (gaze.record, gaze.index))
    content = {"schema_version": SCHEMA_VERSION, "scanpaths": [asdict(gaze) for gaze in ordered]}
    write_atomically(out / FILE, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return out / FILE


def read(out: Path) -> dict[tuple[str, int], Gaze]:
    """The file below `out`, by record and example; empty where there is none. Raises LpmbenchError for another file."""
    if not (out / FILE).is_file():
        return {}
    content = read_json(out / FILE)
    try:
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {content['schema_version']}")
        found = []
        for entry in content["scanpaths"]:
            clean, adversarial = ([(float(x), float(y)) for x, y in entry[name]] for name in ("clean", "adversarial"))
            if not np.isfinite([*clean, *adversarial]).all():
                raise ValueError("a fixation is no number")
            found.append(Gaze(str(entry["record"]), int(entry["index"]), int(entry["draw"]), clean, adversarial))
    except (KeyError, TypeError, ValueError) as error:
        raise LpmbenchError(
            f"{out / FILE} is no file of scanpaths: {error}; `lpmbench report --scanpaths` makes one."
        ) from None
    return {(gaze.record, gaze.index): gaze for gaze in found}
