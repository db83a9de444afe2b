"""The inference sweep of Kiritani and Ono 2020: clean accuracy for every number of glimpses t and of averaged runs M.

A pass of T glimpses answers after each of them, so that all t come from the same runs; `studies.study` says how the
runs serve every M. The noise of the first t glimpses does not depend on T: the cell (t, M) is that of a model of t
glimpses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, Noise
from robustbench_lpm.registry.tasks import Data
from robustbench_lpm.registry.zoo import load_model
from robustbench_lpm.studies.glimpses import check_glimpsing
from robustbench_lpm.studies.study import Row, Study, resolved


@dataclass(frozen=True)
class Sweep(Study):
    """Accuracy of one glimpsing model after each number of glimpses."""

    name: ClassVar[str] = "sweep"
    glimpses: tuple[int, ...] = (1,)  # growing

    def varied(self) -> dict[str, Any]:
        return {"glimpses": list(self.glimpses)}

    def words(self) -> list[str]:
        first, last = self.glimpses[0], self.glimpses[-1]
        gapless = len(self.glimpses) > 2 and last - first == len(self.glimpses) - 1
        return [f"--glimpses {f'{first}..{last}' if gapless else ','.join(map(str, self.glimpses))}"]

    def cells(self) -> list[Row]:
        return [{"glimpses": t} for t in self.glimpses]

    def once(self, classifier: Classifier, images: Tensor, noise: Noise) -> Tensor:
        logits = classifier.look(images, noise or None).logits
        return logits[[t - 1 for t in self.glimpses]]


def make_sweep(
    name: str, data: Data, *, glimpses: Sequence[int], mc: Sequence[int] = (1,), limit: int | None = None,
    device: str = "auto", checkpoint: Path | None = None, trust: bool = False, **settings: Any,
) -> tuple[Sweep, int]:  # fmt: skip
    """The sweep of a registered model or a card, and the number of glimpses of its card.

    glimpses: the values of t, from 1, in any order and beyond the card's; the model is loaded to take the most of them.
    mc: the values of M; 1 is always among them. settings: `draws` (K, of the average of max M runs), `seed` and
    `labels_fit`.

    Raises LpmbenchError for a model that sees images whole or has no weights, and for images that it cannot read.
    """
    loading: dict[str, Any] = {"checkpoint": checkpoint, "trust": trust, "device": device}
    model = load_model(name, **loading)
    check_glimpsing(model)
    usual, most = model.classifier.glimpses, max(glimpses)
    if most != usual:
        model = load_model(name, glimpses=most, **loading)
    numbers = tuple(sorted(set(glimpses)))
    study = Sweep((model,), data, mc=tuple(sorted({1, *mc})), device=device, glimpses=numbers, **settings)
    return resolved(study, limit), usual
