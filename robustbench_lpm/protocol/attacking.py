"""Attack the examples of a block, and grade them on noise that the attack never saw."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, on_device
from robustbench_lpm.datasets.examples import Batch, batches_by_shape
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sha256_of_image
from robustbench_lpm.norms import distance
from robustbench_lpm.protocol import patches
from robustbench_lpm.protocol.grading import grade, within_budget
from robustbench_lpm.protocol.oracle import Checkpoints, ClassifierOracle, Ledger, Rules, pick
from robustbench_lpm.protocol.plan import STORED_PICTURES, Plan
from robustbench_lpm.protocol.windows import cut, paste
from robustbench_lpm.randomness import Addresses, Purpose
from robustbench_lpm.records.runs import UNSTEADY, Picture, group_pictures
from robustbench_lpm.registry.admission import ROUNDING, near

ASKED_AGAIN = 16  # one of so many images is asked for again after the attack
Arrays = dict[str, NDArray[Any]]


class Progress(Protocol):
    """Receives the progress of a run."""

    def spent(self, passes: int) -> None:
        """So many more images passed the network, forwards or backwards."""

    def finished(self, examples: int) -> None:
        """So many examples are finished by now."""


@dataclass(frozen=True)
class Made:
    """The adversarial examples that a member of a worst case has made, by the index of the example."""

    images: dict[int, NDArray[np.float32]]  # (C, H, W) each
    spent: dict[int, tuple[int, ...]]  # forwards, backwards, glimpses

    def sha256(self) -> str:
        """A hash of all of it."""
        digest = hashlib.sha256()
        for index, image in sorted(self.images.items()):
            digest.update(f"{index}{image.shape}{self.spent[index]}".encode())
            digest.update(np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()

    def of(self, indices: Sequence[int]) -> Made:
        """Those of some examples."""
        chosen = [index for index in indices if index in self.images]
        return Made({i: self.images[i] for i in chosen}, {i: self.spent[i] for i in chosen})


def images_kept(plan: Plan) -> int:
    """How many of a run's examples have their images stored."""
    return len(plan.indices) if plan.options.save_adversarials else STORED_PICTURES


def run_block(
    plan: Plan, indices: Sequence[int], progress: Progress, *, first_position: int = 0,
    made: Mapping[str, Made] | None = None, checkpoints: Checkpoints | None = None,
    notes: dict[str, str] | None = None,
) -> Arrays:  # fmt: skip
    """Attack and grade some examples; arrays of the outcomes, a row each, and of the pictures to keep.

    made: of a worst case, by its members. checkpoints: from which the attack's loops are resumed. notes: added to by
    the attack.
    """
    rows: dict[str, list[Any]] = {}
    order: list[int] = []
    pictures: list[Picture] = []
    notes = notes if notes is not None else {}
    for batch in batches_by_shape(plan.data.read(indices)):
        result, attacked = _run_batch(plan, batch, progress, made or {}, checkpoints, notes)
        for name, values in result.items():
            rows.setdefault(name, []).extend(values)
        order += batch.positions
        for row, position in enumerate(batch.positions):
            if first_position + position < images_kept(plan):
                clean, adversarial = batch.images[row].numpy(), attacked[row].cpu().numpy()
                pictures.append(Picture(batch.indices[row], clean, adversarial))
    sorting = np.argsort(order)
    arrays = {name: np.asarray(values)[sorting] for name, values in rows.items()}
    return arrays | {f"picture.{name}": array for name, array in group_pictures(pictures).items()}


def _run_batch(
    plan: Plan, batch: Batch, progress: Progress, made: Mapping[str, Made], checkpoints: Checkpoints | None,
    notes: dict[str, str],
) -> tuple[dict[str, list[Any]], Tensor]:  # fmt: skip
    images, labels = batch.images.to(plan.options.device), batch.labels.to(plan.options.device)
    mask = batch.masks.to(plan.options.device) if batch.masks is not None else None
    if not (bool((images >= 0).all()) and bool((images <= 1).all())):
        raise LpmbenchError(f"Dataset '{plan.data.name}' holds images outside [0, 1].")
    targets = _targets(plan, batch.indices, labels)
    before = grade(plan, images, batch.indices, "clean")
    few = slice(len(images) // ASKED_AGAIN + 1)
    first = _answers(plan, plan.classifier, images[few], batch.indices[few], "clean")
    ledger = Ledger.empty(len(images), on_spent=progress.spent, notes=notes)
    found, choice = _attack(plan, batch.indices, images, labels, targets, mask, made, ledger, checkpoints)
    found = within_budget(found, images, plan.options.norm, plan.options.eps, mask)
    after = grade(plan, found, batch.indices, "grade")
    if reason := _unsteady(plan, images[few], first, found[few], batch.indices[few]):
        notes[UNSTEADY] = reason
    progress.spent(len(images) * plan.grading_passes())
    inputs = [bytes.fromhex(sha256_of_image(image.numpy())) for image in batch.images]
    columns = {
        "label": labels, "target": targets if targets is not None else torch.full_like(labels, -1),
        "clean_predictions": before, "predictions": after,
        "linf": distance(found, images, "linf"), "l2": distance(found, images, "l2"),
        "forwards": ledger.forwards, "backwards": ledger.backwards, "glimpses": ledger.glimpses, "choice": choice,
    }  # fmt: skip
    if plan.options.norm not in columns:
        columns[plan.options.norm] = distance(found, images, plan.options.norm)
    rows: dict[str, list[Any]] = {
        "index": batch.indices, "input_sha256": [np.frombuffer(digest, np.uint8) for digest in inputs]
    }  # fmt: skip
    return rows | {name: column.tolist() for name, column in columns.items()}, found


def _unsteady(plan: Plan, images: Tensor, first: Tensor, found: Tensor, indices: Sequence[int]) -> str:
    """Why a model's answers depend on what it was asked before, "" where it does not seem so.

    first: its answers to the clean images before they were attacked. found: the attacked images.
    """
    if not near(_answers(plan, plan.classifier, images, indices, "clean"), first, ROUNDING):
        return "asked again for clean images after the attack, it answers otherwise"
    fresh = plan.hardly_asked
    if fresh is None:
        return ""
    here, there = (_answers(plan, classifier, found, indices, "grade") for classifier in (plan.classifier, fresh))
    return (
        ""
        if near(here, there, ROUNDING)
        else "a copy that was hardly asked anything answers otherwise on attacked images"
    )


@torch.no_grad()
def _answers(plan: Plan, classifier: Classifier, images: Tensor, indices: Sequence[int], purpose: Purpose) -> Tensor:
    """The logits of one draw, (B, K)."""
    noise = plan.noise_control.sample(classifier, plan.options.seed, indices, purpose)
    return classifier(images, on_device(noise, images.device))


def _attack(
    plan: Plan, indices: Sequence[int], images: Tensor, labels: Tensor, targets: Tensor | None, mask: Tensor | None,
    made: Mapping[str, Made], ledger: Ledger, checkpoints: Checkpoints | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attack one batch: for each image the strongest candidate, and its position in `plan.candidates`.

    The candidates are the images that the attack finds in each gradient mode of the plan, or those of the members of a
    worst case, whose cost counts too.
    """
    candidates = []
    for member in made.values():
        pixels = np.stack([member.images[index] for index in indices])
        candidates.append(torch.from_numpy(pixels).to(images))
        spent = torch.tensor([member.spent[index] for index in indices])
        for column, total in zip(spent.T, (ledger.forwards, ledger.backwards, ledger.glimpses), strict=True):
            total += column
    options = plan.options
    rules = Rules(options.seed, plan.classes, plan.chunk, options.select_draws)
    arguments = plan.attack.parameters | ({"targets": targets} if targets is not None else {})
    surrogates = [
            ClassifierOracle(
                surrogate.classifier, images, indices, rules, mask=mask, stream=f"on {surrogate.name}",
                ledger=Ledger.empty(len(images), on_spent=ledger.on_spent, notes=ledger.notes),
            )
            for surrogate in plan.surrogates
        ]  # fmt: skip
    for mode in plan.gradient_modes:
        oracle = ClassifierOracle(
            plan.classifier, images, indices, rules._replace(noise_control=plan.noise_control), quick=plan.quick,
            mask=mask, gradient_mode=mode, stream=mode or "", ledger=ledger, checkpoints=checkpoints,
        )  # fmt: skip
        if plan.attack.function is not None:
            window = _window(plan, oracle, labels, targets)
            seen = images if window is None else cut(images, window)
            free = mask if window is None or mask is None else cut(mask, window)
            if surrogates:
                arguments["surrogates"] = [surrogate.inside(window) for surrogate in surrogates]
            candidate = {"found": seen}
            for attack in oracle.resumable([plan.attack.function], candidate):  # a finished mode is kept whole
                try:
                    found = attack(
                        oracle.inside(window), seen.clone(), labels, norm=options.norm, eps=options.eps, **arguments
                    )
                except Exception:
                    ledger.check()  # logits that are not numbers would explain it
                    raise
                ledger.check()
                candidate["found"] = found
            kept = within_budget(candidate["found"], seen, options.norm, options.eps, free)
            candidates.append(kept if window is None else paste(kept, images, window))
    choice = oracle.strongest(candidates, labels, targets)
    return pick(candidates, choice), choice


def _window(plan: Plan, oracle: ClassifierOracle, labels: Tensor, targets: Tensor | None) -> Tensor | None:
    """Where the patch of each image is, (B, k, k); None where the whole image may change."""
    options = plan.options
    if options.patch is None:
        return None
    side = patches.side_of(options.patch, oracle.originals.shape)
    if options.patch_at is not None:
        return patches.fixed(options.patch_at, side, oracle.originals)
    search = patches.promising if plan.places_by_gradient else patches.tried
    return search(oracle, labels, targets, side, options.norm, options.eps, plan.places)


def _targets(plan: Plan, indices: Sequence[int], labels: Tensor) -> Tensor | None:
    """The target class of each image; where that is its own label, the next class."""
    if plan.options.target is None:
        return None
    if plan.options.target == "random":
        shifts = 1 + Addresses.of(plan.options.seed, indices, "target").integers("target", plan.classes - 1)
        return (labels + shifts.to(labels.device)) % plan.classes
    aimed = torch.full_like(labels, int(plan.options.target))
    return torch.where(aimed == labels, (aimed + 1) % plan.classes, aimed)
