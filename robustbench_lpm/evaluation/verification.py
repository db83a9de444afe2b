"""Check what a record claims against what is stored beside it, and against the model itself."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from robustbench_lpm import cards, records, zoo
from robustbench_lpm.architectures.classifier import Classifier, MonteCarlo, Noise
from robustbench_lpm.architectures.recurrent_attention import RecurrentAttention
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.evaluation.admission import admit
from robustbench_lpm.evaluation.grading import predict
from robustbench_lpm.evaluation.machine import versions
from robustbench_lpm.evaluation.noise_control import NoiseControl, parse_noise_control
from robustbench_lpm.randomness import RANDOM_NUMBERS, Addresses, generator
from robustbench_lpm.records import Picture, RunRecord
from robustbench_lpm.zoo import LoadedModel

# Where versions or devices differ, rounding may tip predictions that stand on an edge.
TOLERATED_MISMATCH = 0.01
# A network rounds otherwise in batches of other sizes and on other processors, and where it looks next enlarges that:
# the logits of RAM-LPM move by 0.005, now and then by 0.3. How far they move in batches of these sizes says what
# rounding can do to an image.
BATCHES = (1, 2, 3, 8, 16)


@dataclass(frozen=True)
class Finding:
    """One claim of a record, and whether it holds."""

    claim: str
    verdict: Literal["holds", "FAILS", "not checked"]
    evidence: str


def verify(
    folder: Path,
    *,
    model: str | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
    trust: bool = False,
    loaded: dict[str, LoadedModel] | None = None,
) -> list[Finding]:
    """Every claim of a record that can be checked without running the attack again.

    model: the path of the model's card, where the name in the record is not that of a registered one. Parameters in
        which the record's model differs from the card, such as fewer glimpses, are laid over the card's.
    loaded: models that were loaded for other records, to which this one's is added.

    Raises LpmbenchError when the record cannot be read at all.
    """
    try:
        record = records.read(folder)
    except LpmbenchError as error:
        if not (folder / records.RECORD).is_file() and folder.name != records.RECORD:
            raise
        return [Finding("the record is whole", "FAILS", str(error))]
    stored = len(record.pictures())
    findings = [
        Finding("the record is whole", "holds", f"id {record.id[:12]} and the hashes of its artefacts match"),
        Finding(
            "the budget was kept", "holds", f"{record.norm} <= {record.eps:.6g} on {len(record.outcomes)} examples"
        ),
        Finding("stored images match", "holds", f"{stored} images: inputs, distances, the box [0, 1]"),
        Finding("blocks", *_failures(record)),
    ]
    try:
        name = model or _card_of(record)
        changed = _changed_parameters(record, name)
        known, key = loaded if loaded is not None else {}, f"{name} {json.dumps(changed, sort_keys=True)}"
        if key not in known:
            known[key] = zoo.load_model(name, checkpoint=checkpoint, trust=trust, device=device, **changed)
    except (LpmbenchError, TypeError) as error:  # TypeError: a record from elsewhere may call its parameters anything
        return [*findings, Finding("predictions repeat", "not checked", f"the model is not at hand: {error}")]
    return [*findings, _same_weights(record, known[key], changed), *_repeat(record, known[key], device)]


def _card_of(record: RunRecord) -> str:
    """The name of the model's card; that of a variant of a registered model ends in what it is: "ram (2 glimpses)"."""
    registered = cards.names("model")
    whole, _, _ = record.model.rpartition(" (")
    return whole if record.model not in registered and whole in registered else record.model


def _changed_parameters(record: RunRecord, name: str) -> dict[str, Any]:
    """The parameters in which the record's model differs from a card."""
    given = cards.model(name).parameters
    claimed: dict[str, Any] = record.configuration["model"].get("parameters", {})
    return {key: value for key, value in claimed.items() if key not in given or given[key] != value}


def _failures(record: RunRecord) -> tuple[Literal["holds", "FAILS"], str]:
    if record.failures:
        return "FAILS", f"{len(record.failures)} block(s) could not be computed"
    return "holds", "all were computed"


def _same_weights(record: RunRecord, model: LoadedModel, changed: dict[str, Any]) -> Finding:
    claimed = record.configuration["model"]["weights_sha256"]
    if model.weights_sha256 == claimed:
        other = ", ".join(f"{name} = {value}" for name, value in changed.items())
        return Finding("weights", "holds", f"sha256 {str(claimed)[:12]}" + f", run with {other}" * bool(other))
    return Finding("weights", "FAILS", f"the record names {claimed}, the model at hand has {model.weights_sha256}")


def _repeat(record: RunRecord, model: LoadedModel, device: str) -> list[Finding]:
    """Predict the stored images again, clean and attacked, on the noise that the record's grader used."""
    pictures = record.pictures()
    if not pictures:
        return [Finding("predictions repeat", "not checked", "no images are stored")]
    first = torch.from_numpy(pictures[0].clean)[None].to(device)
    exposed, _ = admit(model, first, device)
    try:
        single = as_recorded(record, exposed.classifier)
    except LpmbenchError as error:
        return [Finding("predictions repeat", "not checked", str(error))]
    classifier = MonteCarlo(single, record.mc) if record.mc > 1 else single
    modes = record.configuration["evaluation"].get("noise", [])
    try:
        control = parse_noise_control([f"{source}={mode}" for source, mode in modes], classifier)
    except LpmbenchError as error:
        return [Finding("predictions repeat", "FAILS", f"the model has not the noise of the record: {error}")]
    return [
        _compare(record, classifier, control, pictures, "clean", "clean_predictions", "clean", device),
        _compare(record, classifier, control, pictures, "adversarial", "predictions", "grade", device),
    ]


def as_recorded(record: RunRecord, classifier: Classifier) -> Classifier:
    """The classifier with the noise that it was graded on; that of a glimpsing one was another before version 0.2.

    Raises LpmbenchError for older noise of any other network.
    """
    if not classifier.stochastic or record.configuration["evaluation"].get("random_numbers") == RANDOM_NUMBERS:
        return classifier
    if not isinstance(classifier.network, RecurrentAttention):
        raise LpmbenchError("it was graded on random numbers that this version no longer makes; run it again")
    before = copy.copy(classifier)
    before.sample_noise = partial(_noise_before, classifier.network)  # type: ignore[method-assign]
    return before


def _noise_before(network: RecurrentAttention, addresses: Addresses) -> Noise:
    """Noise as it was drawn before version 0.2: by a generator for each image, which went on from run to run."""
    seed, purpose, _ = addresses.key
    first, policy, source = [], [], torch.Generator()
    for draw, run, index in addresses.places.T.tolist():
        if run == 0:
            source = generator(seed, index, purpose, draw)
        first.append(torch.rand(2, generator=source))
        steps = [torch.randn(2, generator=source) for _ in range(network.glimpses - 1)]
        policy.append(torch.stack(steps) if steps else torch.zeros(0, 2))
    return {
        "first_fixation": (torch.stack(first) * 2 - 1) * network.first_fixation_spread,
        "policy": torch.stack(policy),
    }


def _compare(
    record: RunRecord,
    classifier: Classifier,
    noise_control: NoiseControl,
    pictures: list[Picture],
    image: str,
    column: str,
    purpose: Any,
    device: str,
) -> Finding:
    rows = record.outcomes.set_index("index")[column]
    evaluation = record.configuration["evaluation"]

    def repeats(picture: Picture, draw: int, claimed: int) -> bool:
        """Whether rounding may make the claimed class the winner: its logit is as near as logits are moved by it."""
        alone = torch.from_numpy(getattr(picture, image))[None].to(device)
        found = torch.cat([
            _logits(classifier, alone, copies, picture.index, evaluation["seed"], purpose, draw, noise_control)
            for copies in BATCHES
        ])  # fmt: skip
        moved = (found - found[0]).abs().max()
        return 0 <= claimed < found.shape[1] and bool(found[0].max() - found[0, claimed] <= 2 * moved)

    different = total = tipped = 0
    for picture in pictures:
        claimed = np.asarray(rows.loc[picture.index])
        found = predict(
            classifier, torch.from_numpy(getattr(picture, image))[None].to(device), [picture.index],
            seed=evaluation["seed"], purpose=purpose, draws=evaluation["draws"], chunk=classifier.passes,
            noise_control=noise_control,
        )[0].numpy()  # fmt: skip
        differing = np.flatnonzero(found != claimed)
        rounded = sum(repeats(picture, int(draw), int(claimed[draw])) for draw in differing)
        different += len(differing) - rounded
        tipped += rounded
        total += len(claimed)
    same_versions = record.versions == versions()
    note = f", {tipped} of them within what rounding moves" if tipped else ""
    note += "" if same_versions else " (under other versions than the record's)"
    verdict: Literal["holds", "FAILS"] = "holds" if different <= TOLERATED_MISMATCH * total else "FAILS"
    claim = "clean predictions repeat" if image == "clean" else "adversarial predictions repeat"
    return Finding(claim, verdict, f"{total - different} of {total} on {len(pictures)} stored images{note}")


@torch.no_grad()
def _logits(
    classifier: Classifier,
    image: Tensor,
    copies: int,
    index: int,
    seed: int,
    purpose: Any,
    draw: int,
    noise_control: NoiseControl,
) -> Tensor:
    """Logits (1, K) of an image (1, C, H, W) on the noise of one graded draw, in a batch of so many copies of it."""
    indices = [index] * copies
    drawn = classifier.sample_noise(Addresses.of(seed, indices, purpose, draw))
    drawn = noise_control.freeze(classifier, drawn, 1, seed=seed, indices=indices)
    noise = {source: values.to(image.device) for source, values in drawn.items()}
    return classifier(image.repeat(copies, 1, 1, 1), noise)[:1]
