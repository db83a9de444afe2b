"""What is attacked and with what: models, attacks and images, resolved from cards or from a user's own objects."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_lpm import cards, zoo
from robustbench_lpm.architectures.classifier import Classifier, GloballyRandom
from robustbench_lpm.attacks.contract import Cost
from robustbench_lpm.datasets.examples import Examples, read_examples
from robustbench_lpm.datasets.preprocessing import parse_size
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sha256_of_image, sha256_of_value
from robustbench_lpm.randomness import isolated_globals
from robustbench_lpm.zoo import LoadedModel


@dataclass(frozen=True)
class Attack:
    """An attack function with its parameters."""

    name: str
    function: Callable[..., Tensor]
    parameters: dict[str, Any]
    identity: dict[str, Any]
    knowledge: str
    norms: tuple[str, ...] = ("linf", "l2")
    targeted: bool = True
    known_defects: str = ""
    arguments: str = ""  # what names it on the command line
    foreign: bool = False  # whether its code is from outside this package

    def cost(self, *, stochastic: bool) -> Cost | None:
        """The most passes one image takes, where the attack's module says it (`NAME_cost` beside NAME)."""
        beside = getattr(self.function, "__globals__", {})
        estimate = beside.get(f"{self.function.__name__}_cost") if beside else None
        # A deterministic classifier gives every draw the same gradient: one is asked for.
        draws = {} if stochastic or "eot" not in self.parameters else {"eot": 1}
        return estimate(**(self.parameters | draws)) if estimate else None


@dataclass(frozen=True)
class Data:
    """Labelled images at a fixed size; `read` prepares some of them by index."""

    name: str
    identity: dict[str, Any]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    read: Callable[[Sequence[int]], Examples] = field(repr=False)
    fingerprint: Callable[[int], str] = field(repr=False)
    arguments: str = ""  # what names it on the command line
    foreign: bool = False  # whether its code is from outside this package

    def __len__(self) -> int:
        return len(self.labels)

    def sha256(self, indices: Sequence[int]) -> str:
        """One hash of the chosen examples: their raw contents and labels, in order."""
        return sha256_of_value([[i, int(self.labels[i]), self.fingerprint(i)] for i in indices])


def resolve_data(
    name: str,
    *,
    size: str | None = None,
    data: Path | None = None,
    split: str = "test",
    trust: bool = False,
    image: Path | None = None,
    label: int | None = None,
) -> Data:
    """A registered data set (or one from a card file) at a size; image and label replace the panda."""
    card = cards.dataset(name)
    chosen = size or card.size
    overrides = {"image": image, "label": label}
    parameters = {key: value for key, value in overrides.items() if value is not None}
    images = zoo.load_images(card, data=data, split=split, trust=trust, **parameters)
    parsed = parse_size(chosen)

    def read(indices: Sequence[int]) -> Examples:
        return read_examples(images, indices, parsed, card.crop, card.channels)

    # Where the files lie does not decide what is in them: their hashes do.
    identity = card.identity() | {"size": str(parsed), "split": split}
    identity["parameters"] |= {"label": label} if label is not None else {}
    options = {"--dataset": name, "--image": image, "--label": label}
    arguments = " ".join(f"{flag} {shlex.quote(str(v))}" for flag, v in options.items() if v is not None)
    if data is not None:
        arguments += " --data DIR"  # where the data lie differs from reader to reader
    return Data(
        card.name, identity, images.labels, images.classes, read, images.fingerprint, arguments, cards.is_foreign(card)
    )


def data_from_tensors(images: Tensor, labels: Tensor, name: str = "custom") -> Data:
    """Images (N, C, H, W) in [0, 1] and labels (N,) of a user's own. Raises LpmbenchError unless they are that."""
    images, labels = images.detach().float().cpu(), labels.detach().long().cpu()
    if images.dim() != 4 or labels.shape != images.shape[:1]:
        raise LpmbenchError(f"Images are {tuple(images.shape)} and labels {tuple(labels.shape)}; need (N,C,H,W), (N,).")
    if not (images.numel() and bool((images >= 0).all()) and bool((images <= 1).all())):
        raise LpmbenchError("Images must lie in [0, 1]; normalisation belongs inside the model.")

    def fingerprint(index: int) -> str:
        return sha256_of_image(images[index].numpy())

    def read(indices: Sequence[int]) -> Examples:
        chosen = list(indices)
        return Examples(
            images=list(images[chosen]),
            labels=labels[chosen],
            masks=[None] * len(chosen),
            indices=chosen,
            fingerprints=[fingerprint(i) for i in chosen],
            classes=(),
        )

    identity = {"name": name, "entry": "tensors", "size": "original", "split": "custom"}
    return Data(name, identity, labels.numpy(), (), read, fingerprint)


def resolve_attack(
    attack: str | Callable[..., Tensor], *, parameters: dict[str, Any] | None = None, trust: bool = False
) -> Attack:
    """A registered attack, one from a card file, or a function of one's own (taken as white-box)."""
    if isinstance(attack, str):
        card, function, given = zoo.load_attack(attack, trust=trust, parameters=parameters)
        return Attack(
            card.name,
            function,
            given,
            card.identity() | {"parameters": given},
            card.knowledge,
            tuple(card.norms),
            card.targeted,
            card.known_defects,
            f"--attack {shlex.quote(attack)}",
            cards.is_foreign(card),
        )
    name = getattr(attack, "__name__", type(attack).__name__)
    given, entry = dict(parameters or {}), f"{attack.__module__}:{getattr(attack, '__qualname__', name)}"
    identity = {"name": name, "entry": entry, "knowledge": "white-box", "parameters": given}
    return Attack(name, attack, given, identity, "white-box")


def resolve_model(
    model: str | nn.Module | LoadedModel,
    *,
    checkpoint: Path | None = None,
    trust: bool = False,
    device: str = "cpu",
    name: str | None = None,
) -> LoadedModel:
    """A registered model, one from a card file, or any module from images in [0, 1] to logits."""
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, str):
        return zoo.load_model(model, checkpoint=checkpoint, trust=trust, device=device)
    classifier = (model if isinstance(model, Classifier) else Classifier(model)).to(device)
    digest = _sha256_of_state(model)
    kind = type(model.network if isinstance(model, Classifier) else model)
    called = name or kind.__name__
    identity = {
        "name": called,
        "entry": f"{kind.__module__}:{kind.__qualname__}",
        "weights_sha256": digest,
        "stochastic": classifier.stochastic,
    }
    return LoadedModel(called, classifier, identity, digest)


def _sha256_of_state(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def with_hidden_randomness_exposed(model: LoadedModel, images: Tensor) -> LoadedModel:
    """The model, its randomness made an argument if it secretly draws from the global generators.

    A model that says nothing of noise but answers differently under two seeds is stochastic all the same.
    """
    if model.classifier.stochastic:
        return model
    answers = []
    for seed in (1, 2):
        with isolated_globals(seed):
            answers.append(model.classifier(images))
    if torch.equal(*answers):
        return model
    plain = model.classifier
    classifier = Classifier(GloballyRandom(plain.network), working_size=plain.working_size)
    classifier.mean, classifier.std = plain.mean, plain.std
    return replace(model, classifier=classifier, identity=model.identity | {"stochastic": True})
