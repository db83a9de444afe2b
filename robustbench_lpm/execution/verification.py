"""Check the claims of a record against the files stored beside it, and against the model itself."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, MonteCarlo, Noise, on_device
from robustbench_lpm.architectures.recurrent_attention import RecurrentAttention
from robustbench_lpm.devices import resolve_device
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.protocol.grading import predict
from robustbench_lpm.protocol.noise_control import NoiseControl, parse_noise_control
from robustbench_lpm.randomness import RANDOM_NUMBERS, Addresses, Purpose, generator
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.runs import RunRecord
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
    directory: Path, *, model: str | None = None, checkpoint: Path | None = None, device: str = "auto",
    trust: bool = False, loaded: dict[str, LoadedModel] | None = None,
) -> list[Claim]:  # fmt: skip
    """Every claim of a record that can be checked without running the attack again.

    model: the path of the model's card, where the record names no registered model. Parameters of the record's model,
        such as fewer glimpses, replace those of the card.
    loaded: models loaded for other records, to which this one's is added.

    Raises LpmbenchError when the record cannot be read at all.
    """
    device = resolve_device(device)
    try:
        record = records.read(directory)
    except LpmbenchError as error:
        if not (directory / records.RECORD).is_file() and directory.name != records.RECORD:
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
        name = model or _card_of(record)
        changed = _changed_parameters(record, name)
        known, key = loaded if loaded is not None else {}, f"{name} {json.dumps(changed, sort_keys=True)}"
        if key not in known:
            known[key] = zoo.load_model(name, checkpoint=checkpoint, trust=trust, device=device, **changed)
    except (LpmbenchError, TypeError) as error:  # TypeError: a record from elsewhere may call its parameters anything
        return [*checked, ("predictions repeat", "not checked", f"the model is not available: {error}")]
    return [*checked, _same_weights(record, known[key], changed), *_repeated(record, known[key], device)]


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
    exposed, _ = admit(model, torch.from_numpy(pictures[0].clean)[None].to(device), device)
    try:
        single = as_recorded(record, exposed.classifier)
    except LpmbenchError as error:
        return [("predictions repeat", "not checked", str(error))]
    classifier = MonteCarlo(single, record.mc) if record.mc > 1 else single
    modes = record.configuration["evaluation"].get("noise", [])
    try:
        control = parse_noise_control([f"{source}={mode}" for source, mode in modes], classifier)
    except LpmbenchError as error:
        return [("predictions repeat", "FAILS", f"the model lacks the noise of the record: {error}")]
    return [
        _compared(
            f"{kind} predictions repeat", record, classifier, control,
            {picture.index: torch.from_numpy(getattr(picture, kind))[None].to(device) for picture in pictures},
        )
        for kind in ("clean", "adversarial")
    ]  # fmt: skip


def as_recorded(record: RunRecord, classifier: Classifier) -> Classifier:
    """The classifier with the noise that it was graded on, which for glimpsing ones changed in version 0.2.

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
    """Noise as it was drawn before version 0.2: by a generator for each image, over all runs."""
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


def _compared(
    claim: str, record: RunRecord, classifier: Classifier, noise_control: NoiseControl, images: dict[int, Tensor]
) -> Claim:
    """Whether predictions of images (1, C, H, W), by index, are those of the record."""
    clean = claim.startswith("clean")
    purpose: Purpose = "clean" if clean else "grade"
    rows = record.outcomes.set_index("index")["clean_predictions" if clean else "predictions"]
    seed, draws = record.configuration["evaluation"]["seed"], record.configuration["evaluation"]["draws"]

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
        found = predict(
            classifier, image, [index], seed=seed, purpose=purpose, draws=draws, chunk=classifier.passes,
            noise_control=noise_control,
        )[0].numpy()  # fmt: skip
        differing = np.flatnonzero(found != claimed)
        close = sum(by_rounding(index, int(draw), int(claimed[draw])) for draw in differing)
        different, rounded, total = different + len(differing) - close, rounded + close, total + len(claimed)
    note = f", {rounded} of them within what rounding moves" if rounded else ""
    note += "" if record.versions == versions() else " (under other versions than the record's)"
    holds = different <= TOLERATED_MISMATCH * total
    evidence = f"{total - different} of {total} on {len(images)} stored images{note}"
    return claim, "holds" if holds else "FAILS", evidence
