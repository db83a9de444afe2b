"""Find out what a card says of a user's own network and weights: by trying, and by asking where that does not tell."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.errors import LpmbenchError, in_one_line
from robustbench_lpm.hashing import sha256_of
from robustbench_lpm.registry import cards, weight_files, zoo
from robustbench_lpm.registry.admission import admit
from robustbench_lpm.registry.cards import ModelCard

SIDES = (32, 28, 64, 96, 128, 224, 256, 299, 384)  # of the images that are tried, in pixels
FARTHER = 32  # pixels that an image is larger to see whether a network reads any size


class CannotTell(LpmbenchError):
    """What only the user knows: `option` of `lpmbench models add` says it, and the message asks for it."""

    def __init__(self, option: str, question: str) -> None:
        self.option = option
        super().__init__(question)


@dataclass(frozen=True)
class Examined:
    """What trying a network shows: channels that it reads, logits, and its one size; `side` is one that it read."""

    channels: int
    classes: int
    working_size: int | None
    side: int


def examine(
    path: Path, entry: str, weights: Path, *, trust: bool, channels: int | None = None, classes: int | None = None,
    working_size: int | None = None, parameters: Mapping[str, Any],
) -> Examined:  # fmt: skip
    """Build a network, load its weights and pass random images through it; what is given is not tried otherwise.

    path: of the card to be, beside which the module of the entry is searched. Raises CannotTell, and LpmbenchError
    where the code does not run or the weights do not fit.
    """
    function = cards.resolve(entry, path, trust=trust)
    for name in zoo.needed(function):
        if name not in {"channels", "classes", *parameters}:
            raise CannotTell(f"set {name}", f"{entry} needs a value for its parameter '{name}'.")
    content = weight_files.read(weights)
    guessed_channels, guessed_classes = _guesses(content)
    takes_classes = "classes" in zoo.offered_to(function)
    if takes_classes and not (classes or guessed_classes):
        raise CannotTell("classes", "How many classes does it tell apart?")
    tried = [channels] if channels else list(dict.fromkeys([guessed_channels or 3, 3, 1]))
    errors: list[str] = []
    for number in tried:
        card = _card(
            path, entry=entry, classes=classes or guessed_classes or 2, parameters=dict(parameters),
            input={"channels": number},
        )  # fmt: skip
        try:
            network = _loaded(card, content, weights, trust)
        except LpmbenchError as error:
            if takes_classes and not classes and re.search(r"model: \d+ of another shape", str(error)):
                raise CannotTell("classes", f"{in_one_line(error)}. How many classes does it tell apart?") from None
            if number == tried[-1]:
                raise
            continue
        for side in [working_size] if working_size else SIDES:
            answer = _answer(network, number, side)
            if isinstance(answer, Tensor):
                any_size = not working_size and isinstance(_answer(network, number, side + FARTHER), Tensor)
                return Examined(number, answer.shape[1], None if any_size else side, side)
            errors.append(f"{number} x {side} x {side}: {answer}")
    if working_size:
        raise LpmbenchError(f"{entry} does not answer images of that size: {'; '.join(errors)}.")
    raise CannotTell(
        "working-size", f"{entry} answers no images of the usual sizes ({errors[-1]}). How many pixels is a side?"
    )


def label_sets(channels: int, classes: int) -> list[str]:
    """The label sets of the registered data sets with so many channels and classes."""
    known = map(cards.dataset, cards.names("dataset"))
    return sorted({card.labels for card in known if (card.channels, card.classes) == (channels, classes)})


def finished(path: Path, weights: Path, found: Examined, *, trust: bool, **said: Any) -> tuple[ModelCard, list[str]]:
    """The card, with its weights beside it (copied if need be), and the notes of its admission.

    said: fields of the card. Raises LpmbenchError for a model that would not be admitted; nothing is left then.
    """
    beside = weights if weights.resolve().is_relative_to(path.parent.resolve()) else path.parent / weights.name
    digest, copied = sha256_of(weights), not beside.exists()
    if not copied and sha256_of(beside) != digest:
        raise LpmbenchError(f"{beside} is another file than {weights}: rename one, for weights lie beside their card.")
    if copied:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(weights, beside)
    try:
        file = beside.resolve().relative_to(path.parent.resolve()).as_posix()
        card = _card(path, **said, classes=found.classes, weights={"file": file, "sha256": digest})
        model = zoo.load_card(card, trust=trust)
        side = found.side
        images = torch.rand(4, found.channels, side, side, generator=torch.Generator().manual_seed(0))
        _, admission = admit(model, images, "cpu")
    except BaseException:
        if copied:
            beside.unlink()
        raise
    return card, [*model.notes, *admission.notes]


def _card(path: Path, **content: Any) -> ModelCard:
    missing = {"name": path.stem, "summary": "", "labels": "unknown"}
    return cards.validated(missing | content, path, ModelCard)


def _loaded(card: ModelCard, content: Any, weights: Path, trust: bool) -> nn.Module:
    network = zoo.build(card, trust=trust)
    state, _ = weight_files.fitting(network, content, str(weights))
    weight_files.load_state(network, state, str(weights))
    return network.eval()


@torch.no_grad()
def _answer(network: nn.Module, channels: int, side: int) -> Tensor | str:
    """The logits of two random images; or why there are none."""
    images = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    try:
        logits = Classifier(network).eval()(images)
    except Exception as error:  # whatever the network raises
        return in_one_line(error)
    return logits if logits.dim() == 2 and len(logits) == 2 else f"the answer has the shape {tuple(logits.shape)}"


def _guesses(content: Any) -> tuple[int | None, int | None]:
    """Channels and classes, as the first convolution and the last tensor of a state dict suggest."""
    states = [state for _, state in weight_files.state_dicts(content)]
    tensors = [tensor for tensor in states[0].values() if tensor.dim()] if states else []
    channels = next((tensor.shape[1] for tensor in tensors if tensor.dim() == 4 and tensor.shape[1] in (1, 3)), None)
    return channels, len(tensors[-1]) if tensors and len(tensors[-1]) > 1 else None
