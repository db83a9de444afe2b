"""Models, attacks and images, resolved from cards or from a user's own objects."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.attacks import libraries
from robustbench_lpm.attacks.contract import Cost, Declaration, declared
from robustbench_lpm.datasets.examples import Examples, read_examples
from robustbench_lpm.datasets.preprocessing import choose_size, told_changes
from robustbench_lpm.errors import LpmbenchError, unknown
from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.norms import NORMS, Norm
from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.registry.admission import handed_over
from robustbench_lpm.registry.cards import ModelCard
from robustbench_lpm.registry.zoo import LoadedModel


@dataclass(frozen=True)
class Attack:
    """An attack function with its parameters, or the worst case over several attacks."""

    name: str
    function: Callable[..., Tensor] | None  # None for a worst case
    parameters: dict[str, Any]
    identity: dict[str, Any]
    knowledge: str
    norms: tuple[str, ...] = NORMS
    targeted: bool = True
    known_defects: str = ""
    arguments: str = ""  # what names it on the command line
    foreign: bool = False  # whether its code is from outside this package
    applies_to: str = "any"
    command: str = "attack"  # of lpmbench, which takes these arguments
    members: tuple[Attack, ...] = ()  # of a worst case
    # Of a transfer attack, the models that it is made on: by dataset, or the same for all.
    surrogates: Mapping[str, Sequence[str]] | Sequence[str | LoadedModel] | None = None
    given_surrogates: tuple[LoadedModel, ...] = ()  # named by a run instead

    @property
    def carried_over(self) -> bool:
        """Whether it, or a member of it, is a transfer attack: made on other models."""
        return any(part.surrogates is not None for part in (self, *self.members))

    def applies(self, classifier: Classifier) -> bool:
        """Whether it can attack this classifier."""
        return self.applies_to == "any" or classifier.glimpsing

    @property
    def declaration(self) -> Declaration:
        """What is declared beside its function."""
        return declared(self.function) if self.function is not None else Declaration()

    def cost(self, *, stochastic: bool, norm: Norm = "linf") -> Cost | None:
        """The most passes one image takes; None if the attack does not declare it."""
        if self.function is None:
            return Cost(0)  # its members have run before; the plan adds the cost of the choice
        estimate = self.declaration.cost
        if estimate is None:
            return None
        defaults = {name: taken.default for name, taken in inspect.signature(self.function).parameters.items()}
        # A deterministic classifier needs one draw: its answers are all the same.
        draws = {} if stochastic else dict.fromkeys(self.declaration.draws, 1)
        values = defaults | self.parameters | draws | {"stochastic": stochastic, "norm": norm}
        return estimate(**{name: values[name] for name in inspect.signature(estimate).parameters if name in values})


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
    notes: tuple[str, ...] = ()  # on how images and labels were read, a line each
    class_count: int | None = None  # where it is known
    entry: Callable[..., Any] | None = None  # the code that a card names

    def __len__(self) -> int:
        return len(self.labels)

    def sha256(self, indices: Sequence[int]) -> str:
        """One hash of the chosen examples: their raw contents and labels, in order."""
        return sha256_of_value([[i, int(self.labels[i]), self.fingerprint(i)] for i in indices])


def resolve_data(
    name: str, *, size: str | None = None, data: Path | None = None, split: str = "test", trust: bool = False,
    image: Path | None = None, label: int | None = None,
) -> Data:  # fmt: skip
    """A registered dataset (or one from a card file) at a size; image and label replace the panda.

    size: None is the card's, or for some cards the one size that all images of the split share. The chosen size is
    part of the identity.
    """
    card = cards.dataset(name)
    parameters = {key: value for key, value in {"image": image, "label": label}.items() if value is not None}
    images = zoo.load_images(card, data=data, split=split, trust=trust, **parameters)
    parsed = choose_size(images, size, card.size, keep_shared=card.keep_shared_size)
    changes = told_changes(images, parsed, card.crop)

    def read(indices: Sequence[int]) -> Examples:
        return read_examples(images, indices, parsed, card.crop, card.channels)

    identity = card.identity() | {"size": str(parsed), "split": split}
    identity["parameters"] |= {"label": label} if label is not None else {}
    words = {"dataset": name, **parameters}
    arguments = " ".join(f"--{option} {shlex.quote(str(value))}" for option, value in words.items())
    arguments += " --data DIR" * (data is not None)  # the directory differs from reader to reader
    return Data(
        card.name, identity, images.labels, images.classes, read, images.fingerprint, arguments, cards.is_foreign(card),
        notes=(*images.notes, *([changes] if changes else [])),
        class_count=card.classes or (len(images.classes) or None if images.all_classes else None),
        entry=cards.resolve_entry(card, trust=trust),
    )  # fmt: skip


def resolve_attack(
    attack: str | Callable[..., Tensor] | Attack, *, parameters: dict[str, Any] | None = None,
    settings: Mapping[str, dict[str, Any]] | None = None,
    surrogates: Sequence[str | nn.Module | LoadedModel] | None = None, trust: bool = False,
) -> Attack:  # fmt: skip
    """A registered attack, one from a card file, or a user's own function (taken as white-box).

    parameters replace those of its card; settings, by name, those of a worst case's members. surrogates replace those
    of its card, or of the members that are transfer attacks.
    """
    if surrogates is not None:
        resolved = resolve_attack(attack, parameters=parameters, settings=settings, trust=trust)
        return _with_surrogates(resolved, told_apart([resolve_model(model, trust=trust) for model in surrogates]))
    if isinstance(attack, Attack):
        return attack
    if isinstance(attack, str):
        card, named = cards.attack(attack), f"--attack {shlex.quote(attack)}"
        if card.members and parameters:
            raise LpmbenchError(
                f"{card.path}: a worst case has no parameter '{next(iter(parameters))}'; its members do."
            )
        if card.members:
            own = settings or {}
            members = [resolve_attack(name, parameters=own.get(name), trust=trust) for name in card.members]
            return worst_case_over(members, card.name, named)
        card, function, given = zoo.load_attack(attack, trust=trust, parameters=parameters)
        identity = card.identity() | {"parameters": given} | libraries.identity(card.entry)
        return Attack(
            card.name, function, given, identity, card.knowledge, tuple(card.norms),
            card.targeted, card.known_defects, named, cards.is_foreign(card), card.applies_to,
            surrogates=card.surrogates,
        )  # fmt: skip
    name = getattr(attack, "__name__", type(attack).__name__)
    given, entry = dict(parameters or {}), f"{attack.__module__}:{getattr(attack, '__qualname__', name)}"
    identity = {"name": name, "entry": entry, "knowledge": "white-box", "parameters": given}
    return Attack(name, attack, given, identity, "white-box")


def resolve_attacks(
    attacks: Sequence[str | Callable[..., Tensor] | Attack], *, parameters: Mapping[str, Any] | None = None,
    settings: Mapping[str, dict[str, Any]] | None = None,
    surrogates: Sequence[str | nn.Module | LoadedModel] | None = None, trust: bool = False,
) -> list[Attack]:  # fmt: skip
    """Several attacks that share their arguments, each once.

    parameters replace those of every attack that has them; settings, by name, those of one attack, or of a worst case's
    members. surrogates are those of all transfer attacks.

    Raises LpmbenchError where an argument means nothing to any of them.
    """
    if not attacks or not all(isinstance(attack, str | Attack) or callable(attack) for attack in attacks):
        raise LpmbenchError("Please name an attack, such as 'pgd', or give a function like attacks.pgd.pgd.")
    attacks = [attack for position, attack in enumerate(attacks) if attack not in attacks[:position]]
    given, named = dict(parameters or {}), settings or {}
    own = [dict(named.get(attack, {})) if isinstance(attack, str) else {} for attack in attacks]
    if len(attacks) > 1:  # a single one refuses what it has not
        known = [_known_parameters(attack, trust) for attack in attacks]
        if missing := next((name for name in given if not any(name in names for names in known)), None):
            raise unknown("parameter", missing, set[str]().union(*known))
        shared = [{name: value for name, value in given.items() if name in names} for names in known]
    else:
        shared = [given]
    found = [
        resolve_attack(attack, parameters=some | more, settings=settings, trust=trust)
        for attack, some, more in zip(attacks, shared, own, strict=True)
    ]
    if surrogates is None:
        return found
    models = told_apart([resolve_model(model, trust=trust) for model in surrogates])
    if not any(attack.carried_over for attack in found):
        return [_with_surrogates(found[0], models)]  # which refuses them
    return [_with_surrogates(attack, models) if attack.carried_over else attack for attack in found]


def _known_parameters(attack: str | Callable[..., Tensor] | Attack, trust: bool) -> set[str]:
    """The names of the parameters of an attack that can be replaced."""
    if isinstance(attack, str):
        card = cards.attack(attack)
        return set() if card.members else zoo.parameters_of(cards.resolve_entry(card, trust=trust))
    return set() if isinstance(attack, Attack) else zoo.parameters_of(attack)


def told_apart(models: Sequence[LoadedModel]) -> list[LoadedModel]:
    """The models under different names: several of one name are numbered."""
    names = [model.name for model in models]
    numbers = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [
        replace(model, name=f"{model.name} ({number})") if names.count(model.name) > 1 else model
        for model, number in zip(models, numbers, strict=True)
    ]


def _with_surrogates(attack: Attack, surrogates: Sequence[LoadedModel]) -> Attack:
    carried = [part for part in (attack, *attack.members) if part.surrogates is not None]
    if not carried:
        raise LpmbenchError(f"Attack '{attack.name}' is made on the model itself; it takes no surrogates.")
    members = [replace(m, given_surrogates=tuple(surrogates)) if m in carried else m for m in attack.members]
    return replace(attack, members=tuple(members), given_surrogates=() if members else tuple(surrogates))


def worst_case_over(members: Sequence[Attack], name: str = "worst-case", arguments: str = "") -> Attack:
    """The attack that takes, for each image, the strongest of some attacks.

    Its parameters name the members, and where they differ from their cards.
    """
    names = [member.name for member in members]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise LpmbenchError(f"A worst case tells its members apart by name, and two of them are called '{repeated}'.")
    differing = {member.name: changed for member in members if (changed := changed_parameters(member))}
    parameters: dict[str, Any] = {"attacks": names}
    parameters |= {"settings": differing} if differing else {}
    return Attack(
        name, None, parameters,
        {"name": name, "entry": "worst case", "knowledge": "white-box", "parameters": parameters}, "white-box",
        norms=tuple(norm for norm in NORMS if all(norm in member.norms for member in members)),
        targeted=any(member.targeted for member in members),
        known_defects="; ".join(member.known_defects for member in members if member.known_defects),
        arguments=arguments, foreign=any(member.foreign for member in members), members=tuple(members),
    )  # fmt: skip


def changed_parameters(attack: Attack) -> dict[str, Any]:
    """The parameters in which an attack differs from the registered card of its name; of members by MEMBER.NAME."""
    if attack.members:
        differing = {member.name: changed_parameters(member) for member in attack.members}
        return {f"{name}.{key}": value for name, given in differing.items() for key, value in given.items()}
    registered = cards.attack(attack.name).parameters if attack.name in cards.names("attack") else {}
    return {name: value for name, value in attack.parameters.items() if registered.get(name) != value}


def with_parameters(attack: Attack, changes: Mapping[str, Any]) -> Attack:
    """The same attack with some of its parameters changed; of a worst case, in all members that have them."""
    if attack.members:
        changed = [with_parameters(m, {k: v for k, v in changes.items() if k in m.parameters}) for m in attack.members]
        return worst_case_over(changed, attack.name, attack.arguments)
    parameters = attack.parameters | dict(changes)
    return replace(attack, parameters=parameters, identity=attack.identity | {"parameters": parameters})


class LeftOut(LpmbenchError):
    """An attack that cannot be made on this model or these images. Among several attacks it is left out."""


def resolve_surrogates(attack: Attack, target: LoadedModel, data: Data, device: str) -> tuple[LoadedModel, ...]:
    """The models that an attack on `target` is made on. Raises LeftOut where it needs some and none fits.

    Of those that its card names for the dataset these are left out: models of other labels, those that share the
    target's weights (they would be no black box), and controls that are not the target's own network trained from
    another seed.
    """
    if attack.surrogates is None:
        return ()
    if attack.given_surrogates:
        found = list(attack.given_surrogates)
    elif isinstance(attack.surrogates, Mapping):
        listed = _listed(attack.surrogates, target, data)
        found = [_loaded(card.name, sha256_of_value(card.model_dump(mode="json")), device) for card in listed]
        found = [model for model in found if model.weights_sha256 != target.weights_sha256]
    else:
        found = [resolve_model(model, device=device) for model in attack.surrogates]
    if not found:
        raise LeftOut(
            f"No registered model fits '{data.name}' as a surrogate; name one with --surrogate, or surrogates=."
        )
    return tuple(told_apart(found))  # the name keys the noise that an attack meets on it


@lru_cache(maxsize=16)  # every run of a suite names the same few; one that is loaded again is also admitted again
def _loaded(name: str, card_sha256: str, device: str) -> LoadedModel:
    return zoo.load_model(name, device=device)


def given_instead(attack: Attack, target: LoadedModel, data: Data) -> str:
    """The surrogates that a run names, where they are others than those of the attack's card; or ""."""
    given = {model.name: model.weights_sha256 for model in attack.given_surrogates}
    if isinstance(attack.surrogates, Mapping):
        listed = _listed(attack.surrogates, target, data)
        usual = {card.name: card.weights.sha256 for card in listed if card.weights is not None}
        usual = {name: digest for name, digest in usual.items() if digest != target.weights_sha256}
    else:
        usual = {str(name): given.get(str(name)) for name in attack.surrogates or ()}
    if not given or given == usual:
        return ""
    # A model that is not on the card, or has other weights there, is known by its weights.
    known = (name if usual.get(name) == digest else f"{name} {str(digest)[:8]}" for name, digest in given.items())
    return ", ".join(sorted(known))


def _listed(surrogates: Mapping[str, Sequence[str]], target: LoadedModel, data: Data) -> list[ModelCard]:
    """The cards of the surrogates that are named for a dataset and fit it, controls only for their own network."""

    def network(card: ModelCard | None) -> Any:
        return card and (card.entry, card.parameters, card.input)

    shape = data.identity.get("labels"), data.identity.get("channels")
    named = map(cards.model, surrogates.get(data.name, ()))
    fitting = [card for card in named if (card.labels, card.input.channels) == shape]
    return [card for card in fitting if card.control_of is None or network(card) == network(target.card)]


def resolve_model(
    model: str | Path | Callable[..., Any] | LoadedModel, *, checkpoint: Path | None = None, trust: bool = False,
    device: str = "cpu", name: str | None = None,
) -> LoadedModel:  # fmt: skip
    """A registered model, one from a card file, or any module or function from images in [0, 1] to logits.

    Of a module a copy is taken: the caller's own is never touched.
    """
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, str | Path):
        return zoo.load_model(str(model), checkpoint=checkpoint, trust=trust, device=device)
    return handed_over(model, name)
