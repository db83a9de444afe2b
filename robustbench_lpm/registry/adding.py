"""Find out what a card says of a user's own network and weights: by trying, and by asking where that does not tell."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
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

    def built(channels: int, classes: int) -> nn.Module:
        card = _card(path, entry=entry, classes=classes, parameters=dict(parameters), input={"channels": channels})
        try:
            return zoo.build(card, trust=trust)
        except LpmbenchError:
            raise
        except Exception as error:  # of the user's own code
            raise LpmbenchError(f"{entry} cannot be built: {in_one_line(error)}.") from error

    taken, source = zoo.offered_to(function), str(weights)
    if "channels" in taken and not channels:
        channels = _number((1, 3), lambda number: built(number, classes or 2), content, source)
        if channels not in (1, 3):
            raise CannotTell("channels", "How many channels do its images have, 1 or 3?")
    if "classes" in taken and not classes:
        classes = _number((2, 3), lambda number: built(channels or 3, number), content, source)
        if not classes:
            raise CannotTell("classes", "How many classes does it tell apart?")
    network = built(channels or 3, classes or 2)
    state, _ = weight_files.fitting(network, content, source)
    weight_files.load_state(network, state, source)
    return _sizes(network.eval(), entry, channels, working_size)


def _number(trials: tuple[int, int], built: Callable[[int], nn.Module], content: Any, source: str) -> int | None:
    """The number that a network of these weights was built with, given networks that were built with others.

    A tensor whose shape depends on the number shows it; None where there is none.
    """
    one, other = (built(number).state_dict() for number in trials)
    state, _ = weight_files.fitting(built(trials[0]), content, source)
    for name in [name for name in one if name in state and state[name].dim() == one[name].dim()]:
        for x, y, size in zip(one[name].shape, other[name].shape, state[name].shape, strict=True):
            share = x // trials[0]
            if x != y and (x, y) == (share * trials[0], share * trials[1]) and size % share == 0:
                return size // share
    return None


def _sizes(network: nn.Module, entry: str, channels: int | None, working_size: int | None) -> Examined:
    """Pass images of several sizes through a network until it answers some."""
    errors: list[str] = []
    for number, side in product([channels] if channels else [3, 1], [working_size] if working_size else SIDES):
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
    """The label sets of the registered datasets with so many channels and classes."""
    known = map(cards.dataset, cards.names("dataset"))
    return sorted({card.labels for card in known if (card.channels, card.classes) == (channels, classes)})


def finished(path: Path, weights: Path, found: Examined, *, trust: bool, **said: Any) -> tuple[ModelCard, list[str]]:
    """The card, with its weights beside it (copied if need be), and the notes of its admission.

    said: fields of the card. Raises LpmbenchError for a model that would not be admitted; nothing is left then.
    """
    beside = weights if weights.resolve().is_relative_to(path.parent.resolve()) else path.parent / weights.name
    if beside.is_symlink() and not beside.resolve().is_relative_to(path.parent.resolve()):
        raise LpmbenchError(f"{beside} is a link that leads out of its directory, which no card may do: copy the file.")
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


@torch.no_grad()
def _answer(network: nn.Module, channels: int, side: int) -> Tensor | str:
    """The logits of two random images; or why there are none."""
    images = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    try:
        logits = Classifier(network).eval()(images)
    except Exception as error:  # whatever the network raises
        return in_one_line(error)
    return logits if logits.dim() == 2 and len(logits) == 2 else f"the answer has the shape {tuple(logits.shape)}"
