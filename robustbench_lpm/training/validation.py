"""How good a network is, on noise that training never sees."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.randomness import Purpose, generator, generators
from robustbench_lpm.training.examples import InMemory, LabelledImages
from robustbench_lpm.training.objectives import Batch, Objective

VALIDATION_DRAWS = 4  # of a stochastic network, at every epoch
FINAL_DRAWS = 10  # at the end; also the M of the averaged classifier
CHUNK = 250


@torch.no_grad()
def validate(
    classifier: Classifier, objective: Objective, images: LabelledImages, seed: int, device: torch.device
) -> dict[str, float]:
    """Every term of the objective, averaged over images and, for a stochastic network, over single draws (M = 1).

    The noise is the same at every epoch, so that epochs compare.
    """
    classifier.eval()
    draws = VALIDATION_DRAWS if classifier.stochastic else 1
    totals: dict[str, float] = {}
    for draw in range(draws):
        for indices, pixels, labels in _chunks(images, device):
            noise = classifier.sample_noise(len(indices), generators(seed, indices, "validate", draw))
            own = [generator(seed, "objective", "validate", index, draw) for index in indices]
            terms = objective(classifier, Batch(pixels, labels, noise, own))
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(indices)
    return {name: total / (draws * len(images)) for name, total in totals.items()}


def final_accuracy(
    classifier: Classifier, images: InMemory, seed: int, purpose: Purpose, device: torch.device
) -> dict[str, float]:
    """The accuracy on the images as they are: {"": share} for a deterministic network.

    For a stochastic one {"_m1": the mean over ten single draws, "_m10": that of the ten draws' mean logits}.
    """
    draws = FINAL_DRAWS if classifier.stochastic else 1
    logits = torch.stack([_logits(classifier, images, seed, purpose, draw, device) for draw in range(draws)])
    single = _share(logits.argmax(2) == images.labels)
    if not classifier.stochastic:
        return {"": single}
    return {"_m1": single, "_m10": _share(logits.mean(0).argmax(1) == images.labels)}


@torch.no_grad()
def _logits(
    classifier: Classifier, images: InMemory, seed: int, purpose: Purpose, draw: int, device: torch.device
) -> Tensor:
    """Logits (N, K), on the CPU, of one draw of noise for each image."""
    classifier.eval()
    found = []
    for indices, pixels, _ in _chunks(images, device):
        noise = classifier.sample_noise(len(indices), generators(seed, indices, purpose, draw))
        found.append(classifier(pixels, noise).float().cpu())
    return torch.cat(found)


def _chunks(images: LabelledImages, device: torch.device) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    for start in range(0, len(images), CHUNK):
        indices = list(range(start, min(start + CHUNK, len(images))))
        pixels, labels = images.take(indices)
        yield indices, pixels.to(device), labels.to(device)


def _share(correct: Tensor) -> float:
    return float(correct.double().mean())
