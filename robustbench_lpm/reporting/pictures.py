"""Pictures of stored examples (image, amplified perturbation, attacked image, predictions), and the contact sheet of a
dataset."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.protocol.ranking import CONTROL
from robustbench_lpm.records.runs import Picture, RunRecord
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

THUMBNAIL = 160  # pixels; larger images are averaged down for the gallery
STEPS = (1, 2, 5)
# No formulas: a model may be called $\frac.
STYLE: Any = {"text.parse_math": False, "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "lpmbench"}
PICTURE = (8.4, 3.5)  # inches
GAP, CAPTION = 4, 12  # pixels of a contact sheet
ClassNames = Mapping[int, str] | Sequence[str] | None  # by label
Prediction = tuple[int, int, int]  # the class that most draws predict; by how many draws, of how many


@dataclass(frozen=True)
class Example:
    """One stored example of a run."""

    picture: Picture
    label: int
    clean: Prediction
    attacked: Prediction

    @property
    def misclassified(self) -> bool:
        """Right in most draws before the attack, and not after it."""
        return self.clean[0] == self.label != self.attacked[0]

    @property
    def amplified(self) -> tuple[int, NDArray[np.float32]]:
        """A factor, and the perturbation times that factor: (C, H, W) around mid-grey, in [0, 1]."""
        perturbation = self.picture.adversarial - self.picture.clean
        factor = amplification(float(np.abs(perturbation).max()))
        return factor, np.clip(0.5 + factor * perturbation, 0, 1).astype(np.float32)


def class_name(label: int, class_names: ClassNames) -> str:
    """A label by its name, or its number where there is none; both where labels share a name."""
    return telling(class_names).get(label, str(label))


def named(prediction: Prediction, class_names: ClassNames) -> str:
    """A predicted label, by name if there is one, and the share of draws if there is more than one."""
    label, votes, draws = prediction
    name = class_name(label, class_names)
    return f"{name} ({votes} of {draws} draws)" if draws > 1 else name


def telling(class_names: ClassNames) -> dict[int, str]:
    """The names, by label, that differ from the number."""
    named = class_names.items() if isinstance(class_names, Mapping) else enumerate(class_names or ())
    names = {label: plain(name) for label, name in named}
    labels = Counter(names.values())
    return {
        label: name if labels[name] == 1 else f"{name} ({label})"
        for label, name in names.items()
        if name not in ("", str(label))
    }


def amplification(largest: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, ... that keeps `largest` within half the range of grey values."""
    factors = [step * 10**power for power in range(5) for step in STEPS]
    return max((factor for factor in factors if factor * largest <= 0.5), default=1) if largest > 0 else 1


def examples(record: RunRecord) -> list[Example]:
    """The stored examples of a run, in the order of its outcomes."""
    rows, found = {int(index): row for row, index in enumerate(record.outcomes["index"])}, []
    for picture in record.pictures():
        row = rows[picture.index]
        clean, attacked = _prediction(record.clean_predictions[row]), _prediction(record.predictions[row])
        found.append(Example(picture, int(record.labels[row]), clean, attacked))
    return found


def _prediction(draws: NDArray[np.int64]) -> Prediction:
    labels, votes = np.unique(draws, return_counts=True)
    return int(labels[votes.argmax()]), int(votes.max()), len(draws)


def attack_picture(record: RunRecord, position: int = 0, class_names: ClassNames = None) -> bytes:
    """A PNG of the stored example at `position` (from 0): original | amplified perturbation | adversarial.

    class_names: instead of those in the record.
    """
    with drawing(PICTURE) as figure:
        _draw_attack(figure, record, position, class_names)
        return saved(figure)


def attack_figure(record: RunRecord, position: int = 0, class_names: ClassNames = None) -> Figure:
    """What `attack_picture` shows, before it is a file."""
    with drawing(PICTURE) as figure:
        _draw_attack(figure, record, position, class_names)
        return figure


def _draw_attack(figure: Figure, record: RunRecord, position: int, class_names: ClassNames) -> None:
    stored = examples(record)
    if not 0 <= position < len(stored):
        raise LpmbenchError(f"{record.folder_name} stores {len(stored)} example(s); there is none at {position}.")
    example = stored[position]
    factor, amplified = example.amplified
    names = record.class_names if class_names is None else class_names
    budget = f"{cells.norm(record.threat)} eps {cells.eps(record.eps, record.threat)}"
    panels = (
        ("original", example.picture.clean, f"predicted: {named(example.clean, names)}"),
        (f"perturbation × {factor}", amplified, budget),
        ("adversarial", example.picture.adversarial, f"predicted: {named(example.attacked, names)}"),
    )
    for axes, (title, image, caption) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.imshow(displayable(image), vmin=0, vmax=1, cmap="gray", interpolation="nearest")
        axes.set_title(title)
        axes.set_xlabel(caption, wrap=True)
        axes.set(xticks=[], yticks=[])
    truth = class_name(example.label, names)
    figure.suptitle(f"{plain(record.model)} under {plain(record.attack)}, true class: {truth}")


@contextmanager
def drawing(size: tuple[float, float], dpi: int = 144, style: Mapping[str, Any] | None = None) -> Iterator[Figure]:
    """An empty figure, (width, height) in inches; the same whatever the user's matplotlibrc says."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | dict(style or {}))
        yield Canvas(figsize=size, dpi=dpi, layout="constrained")


def saved(figure: Figure, kind: str = "png", **options: Any) -> bytes:
    """A figure as a PNG or SVG that names neither the library's version nor the date."""
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date" if kind == "svg" else "Software": None}, **options)
    return buffer.getvalue()


def displayable(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, H, W) as matplotlib and Pillow want it: (H, W) if it has one channel, else (H, W, C)."""
    return image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)


def data_uri(image: NDArray[np.float32]) -> str:
    """An image (C, H, W) in [0, 1] as a PNG inside a data: address, averaged down to thumbnail size."""
    from PIL import Image

    pixels = Image.fromarray(np.round(np.clip(displayable(image), 0, 1) * 255).astype(np.uint8))
    pixels.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=None)
    buffer = BytesIO()
    pixels.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"


def gallery(records: Sequence[RunRecord], runs: pd.DataFrame, limit: int) -> list[tuple[RunRecord, Example]]:
    """At most `limit` stored examples: per model and attack the one misclassified at the smallest eps, models taking
    turns.

    Controls and the probes of audits are left out.
    """
    shown = set(runs.loc[(runs["knowledge"] != CONTROL) & ~runs["probe"], "record"])
    best: dict[tuple[str, str, str], tuple[tuple[bool, float], RunRecord, Example]] = {}
    for record in (record for record in records if record.id in shown):
        if stored := examples(record):
            example = next((e for e in stored if e.misclassified), stored[0])
            key, merit = (record.model, record.dataset, record.attack), (not example.misclassified, record.eps)
            best[key] = min(best.get(key, (merit, record, example)), (merit, record, example), key=lambda one: one[0])
    by_model: dict[str, list[tuple[RunRecord, Example]]] = {}
    for (model, _, _), (_, record, example) in sorted(best.items(), key=lambda item: item[0]):
        by_model.setdefault(model, []).append((record, example))
    turns: list[Any] = list(chain.from_iterable(zip_longest(*by_model.values())))
    return [entry for entry in turns if entry is not None][:limit]


def contact_sheet(images: NDArray[np.uint8], labels: NDArray[np.integer], columns: int = 12) -> bytes:
    """A PNG of grey images (N, H, W), 0 to 255, in rows of so many, each with its label below."""
    from PIL import Image, ImageDraw

    count, height, width = images.shape
    rows = -(-count // columns)
    sheet = Image.new("L", (columns * (width + GAP) + GAP, rows * (height + GAP + CAPTION) + GAP), 90)
    pen = ImageDraw.Draw(sheet)
    for position in range(count):
        row, column = divmod(position, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + GAP + CAPTION)
        sheet.paste(Image.fromarray(images[position]), (left, top))
        pen.text((left + width // 2, top + height + 1), str(int(labels[position])), fill=255, anchor="ma")
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
