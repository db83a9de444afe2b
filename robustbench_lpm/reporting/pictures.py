"""Show stored examples: the image, its amplified perturbation, the attacked image, and what was predicted."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustbench_lpm.budgets import format_eps
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.records.runs import Picture, RunRecord
from robustbench_lpm.reporting import cells, tables
from robustbench_lpm.reporting.escaping import plain

if TYPE_CHECKING:
    import pandas as pd

THUMBNAIL = 160  # pixels; larger images are averaged down for the gallery
STEPS = (1, 2, 5)
ClassNames = Mapping[int, str] | Sequence[str] | None  # by label


@dataclass(frozen=True)
class Prediction:
    """What most draws said of an image, and how many of how many did."""

    label: int
    votes: int
    draws: int

    def named(self, class_names: ClassNames) -> str:
        """The label, by name if there is one, and the share of draws unless there was but one."""
        name = class_name(self.label, class_names)
        return f"{name} ({self.votes} of {self.draws} draws)" if self.draws > 1 else name


@dataclass(frozen=True)
class Example:
    """One stored example of a run."""

    picture: Picture
    label: int
    clean: Prediction
    attacked: Prediction

    @property
    def fooled(self) -> bool:
        """Right in most draws before the attack, and not after it."""
        return self.clean.label == self.label != self.attacked.label

    @property
    def perturbation(self) -> NDArray[np.float32]:
        """What the attack added, (C, H, W) in [-1, 1]."""
        return self.picture.adversarial - self.picture.clean

    @property
    def factor(self) -> int:
        """By how much the perturbation can be amplified before it leaves the range of grey values."""
        return amplification(float(np.abs(self.perturbation).max()))

    @property
    def amplified(self) -> NDArray[np.float32]:
        """The perturbation times `factor` around mid-grey, in [0, 1]."""
        return np.clip(0.5 + self.factor * self.perturbation, 0, 1).astype(np.float32)


def class_name(label: int, class_names: ClassNames) -> str:
    """A label by its name, or its number where there is none; both where labels share a name."""
    return telling(class_names).get(label, str(label))


def telling(class_names: ClassNames) -> dict[int, str]:
    """The names, by label, that say more than the number does."""
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
    positions = {int(index): position for position, index in enumerate(record.outcomes["index"])}
    return [
        Example(
            picture,
            int(record.labels[positions[picture.index]]),
            _prediction(record.clean_predictions[positions[picture.index]]),
            _prediction(record.predictions[positions[picture.index]]),
        )
        for picture in record.pictures()
    ]


def _prediction(draws: NDArray[np.int64]) -> Prediction:
    labels, votes = np.unique(draws, return_counts=True)
    return Prediction(int(labels[votes.argmax()]), int(votes.max()), len(draws))


def attack_picture(record: RunRecord, position: int = 0, class_names: ClassNames = None) -> bytes:
    """A PNG of the stored example at `position` (from 0): original | amplified perturbation | adversarial.

    class_names: instead of those that the record tells.
    """
    import matplotlib
    from matplotlib.figure import Figure

    stored = examples(record)
    if not 0 <= position < len(stored):
        raise LpmbenchError(f"{record.folder_name} stores {len(stored)} example(s); there is none at {position}.")
    example = stored[position]
    names = record.class_names if class_names is None else class_names
    budget = f"{cells.norm(record.norm)} eps {format_eps(record.eps)}"
    panels = (
        ("original", example.picture.clean, f"predicted: {example.clean.named(names)}"),
        (f"perturbation × {example.factor}", example.amplified, budget),
        ("adversarial", example.picture.adversarial, f"predicted: {example.attacked.named(names)}"),
    )
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9, "figure.facecolor": "white"}):
        figure = Figure(figsize=(8.4, 3.5), dpi=144, layout="constrained")
        for axes, (title, image, caption) in zip(figure.subplots(1, 3), panels, strict=True):
            axes.imshow(displayable(image), vmin=0, vmax=1, cmap="gray", interpolation="nearest")
            axes.set_title(title)
            axes.set_xlabel(caption, wrap=True)
            axes.set(xticks=[], yticks=[])
        truth = class_name(example.label, names)
        figure.suptitle(f"{plain(record.model)} under {plain(record.attack)}, true class: {truth}")
        buffer = BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def displayable(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, H, W) as matplotlib and Pillow want it: (H, W) if it has one channel, else (H, W, C)."""
    return image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)


def data_uri(image: NDArray[np.float32]) -> str:
    """An image (C, H, W) in [0, 1] as a PNG inside a data: address, averaged down to thumbnail size."""
    from PIL import Image

    pixels = Image.fromarray(np.round(np.clip(displayable(image), 0, 1) * 255).astype(np.uint8))
    if max(pixels.size) > THUMBNAIL:
        scale = THUMBNAIL / max(pixels.size)
        small = max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale))
        pixels = pixels.resize(small, Image.Resampling.BOX)
    buffer = BytesIO()
    pixels.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"


def gallery(records: Sequence[RunRecord], runs: pd.DataFrame, limit: int) -> list[tuple[RunRecord, Example]]:
    """At most `limit` stored examples: per model and attack the one fooled at the smallest eps, models taking turns.

    Controls and the probes of audits are left out.
    """
    shown = set(runs.loc[(runs["knowledge"] != tables.CONTROL) & ~runs["probe"], "record"])
    best: dict[tuple[str, str, str], tuple[tuple[bool, float], RunRecord, Example]] = {}
    for record in records:
        stored = examples(record) if record.id in shown else []
        if not stored:
            continue
        example = next((e for e in stored if e.fooled), stored[0])
        key, merit = (record.model, record.dataset, record.attack), (not example.fooled, record.eps)
        if key not in best or merit < best[key][0]:
            best[key] = merit, record, example
    by_model: dict[str, list[tuple[tuple[bool, float], RunRecord, Example]]] = {}
    for (model, _, _), entry in sorted(best.items(), key=lambda item: item[0]):
        by_model.setdefault(model, []).append(entry)
    turns: list[Any] = list(chain.from_iterable(zip_longest(*by_model.values())))
    return [(entry[1], entry[2]) for entry in turns if entry is not None][:limit]
