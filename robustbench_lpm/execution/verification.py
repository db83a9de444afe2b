"""Check the claims of a record against the files stored beside it, and against the model itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, MonteCarlo, on_device
from robustbench_lpm.devices import resolve_device
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.protocol.grading import predict
from robustbench_lpm.protocol.noise_control import NoiseControl, parse_noise_control
from robustbench_lpm.randomness import RANDOM_NUMBERS, Purpose
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.runs import Picture, RunRecord
from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.registry.admission import admit
from robustbench_lpm.registry.zoo import LoadedModel
from robustbench_lpm.versions import versions

# Where versions or devices differ, rounding may change predictions near a decision boundary.
TOLERATED_MISMATCH = 0.01
# Batch size and processor change how a network rounds, and a gaze that depends on the last glimpse enlarges that: the
# logits of RAM-LPM move by 0.005, rarely by 0.3. Batches of these sizes show how far rounding moves those of an image.
BATCHES = (1, 2, 3, 8, 16)
Claim = tuple[str, Literal["holds", "FAILS", "not checked"], str]  # of a record, whether it holds, the evidence


def verify(
    found: Path | RunRecord, *, model: str | None = None, checkpoint: Path | None = None, device: str = "auto",
    trust: bool = False, loaded: dict[str, LoadedModel] | None = None,
) -> list[Claim]:  # fmt: skip
    """Every claim of a record that can be checked without running the attack again.

    found: the record's directory, or the record, read from an archive of published ones.
    model: the path of the model's card, where the record names no registered model. Parameters of the record's model,
        such as fewer glimpses, replace those of the card.
    loaded: models loaded for other records, to which this one's is added.

    Raises LpmbenchError when the record cannot be read at all.
    """
    device = resolve_device(device)
    try:
        record = found if isinstance(found, RunRecord) else records.read(found)
    except LpmbenchError as error:
        assert isinstance(found, Path)
        if not (found / records.RECORD).is_file() and found.name != records.RECORD:
            raise
        return [("the record is whole", "FAILS", str(error))]
    failed = len(record.failures)
    checked: list[Claim] = [
        ("the record is whole", "holds", f"id {record.id[:12]} and the hashes of its artefacts match"),
        ("the budget was kept", "holds", f"{record.threat} <= {record.eps:.6g} on {len(record.outcomes)} examples"),
        ("stored images match", "holds", f"{len(record.pictures())} images: inputs, distances, the box [0, 1]"),
        ("blocks", "FAILS", f"{failed} block(s) could not be computed") if failed else
        ("blocks", "holds", "all were computed"),
    ]  # fmt: skip
    try:
        available, changed = _load(record, model, {} if loaded is None else loaded, device, checkpoint, trust=trust)
    except (LpmbenchError, TypeError) as error:  # TypeError: a record from elsewhere may call its parameters anything
        return [*checked, ("predictions repeat", "not checked", f"the model is not available: {error}")]
    checked.append(_same_weights(record, available, changed))
    if record.picture_step and not record.adversarials:  # of published runs those that decide a rank keep pictures
        return checked
    return checked + _repeated(record, available, device)


def repeating(record: RunRecord, pictures: Sequence[Picture], loaded: dict[str, LoadedModel]) -> list[Picture]:
    """Those of some pictures of a record, changed since, on which its model predicts what the record says, in every
    draw. loaded: as for `verify`. Raises LpmbenchError where the model is not available."""
    device = resolve_device("auto")
    model, _ = _load(record, None, loaded, device, None, trust=False)
    ready = _as_graded(record, model, device, pictures[0]) if pictures else None
    if isinstance(ready, str):
        raise LpmbenchError(f"{record.path}: {ready}.")
    rows = record.outcomes.set_index("index")["predictions"]

    def on(picture: Picture) -> Tensor:
        return torch.from_numpy(picture.adversarial)[None].to(device)

    return [
        picture for picture in pictures
        if ready and (_predicted(record, *ready, on(picture), picture.index) == rows.loc[picture.index]).all()
    ]  # fmt: skip


def _load(
    record: RunRecord, card: str | None, loaded: dict[str, LoadedModel], device: str, checkpoint: Path | None, *,
    trust: bool,
) -> tuple[LoadedModel, dict[str, Any]]:  # fmt: skip
    """The model of a record, and the parameters in which it differs from its card."""
    name = card or _card_of(record)
    changed = _changed_parameters(record, name)
    key = f"{name} {json.dumps(changed, sort_keys=True)}"
    if key not in loaded:
        loaded[key] = zoo.load_model(name, checkpoint=checkpoint, trust=trust, device=device, **changed)
    return loaded[key], changed


def _card_of(record: RunRecord) -> str:
    """The name of the model's card, without the suffix of a variant of a registered model: "ram (2 glimpses)"."""
    registered = cards.names("model")
    whole, _, _ = record.model.rpartition(" (")
    return whole if record.model not in registered and whole in registered else record.model


def _changed_parameters(record: RunRecord, name: str) -> dict[str, Any]:
    """The parameters in which the record's model differs from a card."""
    given = cards.model(name).parameters
    claimed: dict[str, Any] = record.configuration["model"].get("parameters", {})
    return {key: value for key, value in claimed.items() if key not in given or given[key] != value}


def _same_weights(record: RunRecord, model: LoadedModel, changed: dict[str, Any]) -> Claim:
    claimed = record.configuration["model"]["weights_sha256"]
    if model.weights_sha256 == claimed:
        other = ", ".join(f"{name} = {value}" for name, value in changed.items())
        return "weights", "holds", f"sha256 {str(claimed)[:12]}" + f", run with {other}" * bool(other)
    return "weights", "FAILS", f"the record names {claimed}, the available model has {model.weights_sha256}"


def _repeated(record: RunRecord, model: LoadedModel, device: str) -> list[Claim]:
    """Check the predictions of the stored images, clean and attacked, on the noise that the record's grader used."""
    pictures = record.pictures()
    if not pictures:
        return [("predictions repeat", "not checked", "no images are stored")]
    try:
        ready = _as_graded(record, model, device, pictures[0])
    except LpmbenchError as error:
        return [("predictions repeat", "not checked", str(error))]
    if isinstance(ready, str):
        return [("predictions repeat", "FAILS", ready)]
    return [
        _compared(
            f"{kind} predictions repeat", record, *ready,
            {picture.index: torch.from_numpy(getattr(picture, kind))[None].to(device) for picture in pictures},
        )
        for kind in ("clean", "adversarial")
    ]  # fmt: skip


def _as_graded(
    record: RunRecord, model: LoadedModel, device: str, picture: Picture
) -> tuple[Classifier, NoiseControl] | str:
    """The classifier that a record was graded on, and how its noise was controlled; or why it is another one.

    Raises LpmbenchError where that cannot be told.
    """
    exposed, _ = admit(model, torch.from_numpy(picture.clean)[None].to(device), device)
    check_random_numbers(record, exposed.classifier)
    classifier = MonteCarlo(exposed.classifier, record.mc) if record.mc > 1 else exposed.classifier
    modes = record.configuration["evaluation"].get("noise", [])
    try:
        return classifier, parse_noise_control([f"{source}={mode}" for source, mode in modes], classifier)
    except LpmbenchError as error:
        return f"the model lacks the noise of the record: {error}"


def check_random_numbers(record: RunRecord, classifier: Classifier) -> None:
    """Raises LpmbenchError for a stochastic model that was graded on other random numbers than today's."""
    if classifier.stochastic and record.configuration["evaluation"].get("random_numbers") != RANDOM_NUMBERS:
        raise LpmbenchError("it was graded on random numbers that this version no longer makes; run it again")


def _predicted(
    record: RunRecord, classifier: Classifier, noise_control: NoiseControl, image: Tensor, index: int,
    purpose: Purpose = "grade",
) -> NDArray[np.int64]:  # fmt: skip
    """The predictions (draws,) of an image (1, C, H, W) on the draws of a record."""
    evaluation = record.configuration["evaluation"]
    found = predict(
        classifier, image, [index], seed=evaluation["seed"], purpose=purpose, draws=evaluation["draws"],
        chunk=classifier.passes, noise_control=noise_control,
    )  # fmt: skip
    predictions: NDArray[np.int64] = found[0].numpy()
    return predictions


def _compared(
    claim: str, record: RunRecord, classifier: Classifier, noise_control: NoiseControl, images: dict[int, Tensor]
) -> Claim:
    """Whether predictions of images (1, C, H, W), by index, are those of the record."""
    clean = claim.startswith("clean")
    purpose: Purpose = "clean" if clean else "grade"
    rows = record.outcomes.set_index("index")["clean_predictions" if clean else "predictions"]
    seed = record.configuration["evaluation"]["seed"]

    @torch.no_grad()
    def logits(index: int, draw: int, copies: int) -> Tensor:
        """Logits (1, K) on the noise of one graded draw, in a batch of so many copies of the image."""
        indices = [index] * copies
        drawn = noise_control.sample(classifier, seed, indices, purpose, draw)
        noise = on_device(drawn, images[index].device)
        return classifier(images[index].repeat(copies, 1, 1, 1), noise)[:1]

    def by_rounding(index: int, draw: int, claimed: int) -> bool:
        """Whether rounding may make the claimed class the largest: its logit is as near as rounding moves logits."""
        found = torch.cat([logits(index, draw, copies) for copies in BATCHES])
        moved = (found - found[0]).abs().max()
        return 0 <= claimed < found.shape[1] and bool(found[0].max() - found[0, claimed] <= 2 * moved)

    different = total = rounded = 0
    for index, image in images.items():
        claimed = np.asarray(rows.loc[index])
        found = _predicted(record, classifier, noise_control, image, index, purpose)
        differing = np.flatnonzero(found != claimed)
        close = sum(by_rounding(index, int(draw), int(claimed[draw])) for draw in differing)
        different, rounded, total = different + len(differing) - close, rounded + close, total + len(claimed)
    note = f", {rounded} of them within what rounding moves" if rounded else ""
    note += "" if record.versions == versions() else " (under other versions than the record's)"
    holds = different <= TOLERATED_MISMATCH * total
    evidence = f"{total - different} of {total} on {len(images)} stored images{note}"
    return claim, "holds" if holds else "FAILS", evidence
