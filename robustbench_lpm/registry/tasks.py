"""What is attacked and with what: models, attacks and images, resolved from cards or from a user's own objects."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.attacks.contract import Cost, Declaration, declared
from robustbench_lpm.datasets.examples import Examples, read_examples
from robustbench_lpm.datasets.preprocessing import choose_size, told_changes
from robustbench_lpm.errors import LpmbenchError, unknown
from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.norms import NORMS
from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.registry.admission import handed_over
from robustbench_lpm.registry.cards import AttackCard, ModelCard
from robustbench_lpm.registry.zoo import LoadedModel


@dataclass(frozen=True)
class Attack:
    """An attack function with its parameters, or the worst case over several attacks."""

    name: str
    function: Callable[..., Tensor] | None  # None for a worst case
    parameters: dict[str, Any]
    identity: dict[str, Any]
    knowledge: str
    norms: tuple[str, ...] = ("linf", "l2")
    targeted: bool = True
    known_defects: str = ""
    arguments: str = ""  # what names it on the command line
    foreign: bool = False  # whether its code is from outside this package
    applies_to: str = "any"
    command: str = "attack"  # of lpmbench, which takes these arguments
    members: tuple[Attack, ...] = ()  # of a worst case
    # The models that it is made on, for one that is carried over: by data set, or the same for all.
    surrogates: Mapping[str, Sequence[str]] | Sequence[str | LoadedModel] | None = None
    given_surrogates: tuple[LoadedModel, ...] = ()  # which a run names instead

    @property
    def carried_over(self) -> bool:
        """Whether it, or a member of it, is made on other models."""
        return any(part.surrogates is not None for part in (self, *self.members))

    def applies(self, classifier: Classifier) -> bool:
        """Whether it can attack this classifier."""
        return self.applies_to == "any" or classifier.glimpsing

    @property
    def declaration(self) -> Declaration:
        """What is declared beside its function."""
        return declared(self.function) if self.function is not None else Declaration()

    def cost(self, *, stochastic: bool) -> Cost | None:
        """The most passes one image takes; None if the attack does not declare it."""
        if self.function is None:
            return Cost(0)  # its members have run before; what the choice costs, the plan knows
        estimate = self.declaration.cost
        if estimate is None:
            return None
        defaults = {name: taken.default for name, taken in inspect.signature(self.function).parameters.items()}
        # A deterministic classifier gives every draw the same answer: it is asked for one.
        draws = {} if stochastic else dict.fromkeys(self.declaration.draws, 1)
        values = defaults | self.parameters | draws | {"stochastic": stochastic}
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
    notes: tuple[str, ...] = ()  # what a reader must know of how images and labels were taken, a line each
    class_count: int | None = None  # how many classes it has, where that is known
    entry: Callable[..., Any] | None = None  # the code that a card names

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
    """A registered data set (or one from a card file) at a size; image and label replace the panda.

    size: None is what the card says, which for some cards gives way to the one size that all images share. What is
    chosen, over all images of the split and whichever are asked for, stands in the identity.
    """
    card = cards.dataset(name)
    overrides = {"image": image, "label": label}
    parameters = {key: value for key, value in overrides.items() if value is not None}
    images = zoo.load_images(card, data=data, split=split, trust=trust, **parameters)
    parsed = choose_size(images, size, card.size, keep_shared=card.keep_shared_size)
    changes = told_changes(images, parsed, card.crop)

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
        card.name,
        identity,
        images.labels,
        images.classes,
        read,
        images.fingerprint,
        arguments,
        cards.is_foreign(card),
        notes=(*images.notes, *([changes] if changes else [])),
        class_count=card.classes or (len(images.classes) or None if images.all_classes else None),
        entry=cards.resolve_entry(card, trust=trust),
    )


def resolve_attack(
    attack: str | Callable[..., Tensor] | Attack,
    *,
    parameters: dict[str, Any] | None = None,
    settings: Mapping[str, dict[str, Any]] | None = None,
    surrogates: Sequence[str | nn.Module | LoadedModel] | None = None,
    trust: bool = False,
) -> Attack:
    """A registered attack, one from a card file, or a function of one's own (taken as white-box).

    parameters are laid over those of its card; settings, by name, over those of a worst case's members. surrogates
    replace those of its card, or of the members that are carried over.
    """
    if surrogates is not None:
        resolved = resolve_attack(attack, parameters=parameters, settings=settings, trust=trust)
        return _with_surrogates(resolved, told_apart([resolve_model(model, trust=trust) for model in surrogates]))
    if isinstance(attack, Attack):
        return attack
    if isinstance(attack, str):
        card = cards.attack(attack)
        if card.members:
            return _worst_case(card, attack, settings or {}, parameters or {}, trust)
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
            card.applies_to,
            surrogates=card.surrogates,
        )
    name = getattr(attack, "__name__", type(attack).__name__)
    given, entry = dict(parameters or {}), f"{attack.__module__}:{getattr(attack, '__qualname__', name)}"
    identity = {"name": name, "entry": entry, "knowledge": "white-box", "parameters": given}
    return Attack(name, attack, given, identity, "white-box")


def resolve_attacks(
    attacks: Sequence[str | Callable[..., Tensor] | Attack],
    *,
    parameters: Mapping[str, Any] | None = None,
    settings: Mapping[str, dict[str, Any]] | None = None,
    surrogates: Sequence[str | nn.Module | LoadedModel] | None = None,
    trust: bool = False,
) -> list[Attack]:
    """Several attacks that share their arguments: each takes the parameters that it knows, each once.

    parameters are laid over those of every attack that knows them; settings, by name, over those of one attack, or of a
    worst case's members. surrogates go to the attacks that are carried over.

    Raises LpmbenchError where an argument means nothing to any of them.
    """
    if not attacks or not all(isinstance(attack, str | Attack) or callable(attack) for attack in attacks):
        raise LpmbenchError("Please name an attack, such as 'pgd', or give a function like attacks.pgd.pgd.")
    attacks = [attack for position, attack in enumerate(attacks) if attack not in attacks[:position]]
    found = [
        resolve_attack(attack, parameters=own, settings=settings, trust=trust)
        for attack, own in zip(attacks, _shared_out(attacks, parameters or {}, settings or {}, trust), strict=True)
    ]
    if surrogates is None:
        return found
    carried = [attack.carried_over for attack in found]
    models = told_apart([resolve_model(model, trust=trust) for model in surrogates])
    if not any(carried):
        carried[0] = True  # which refuses them
    return [_with_surrogates(attack, models) if takes else attack for attack, takes in zip(found, carried, strict=True)]


def _shared_out(
    attacks: Sequence[str | Callable[..., Tensor] | Attack],
    parameters: Mapping[str, Any],
    settings: Mapping[str, dict[str, Any]],
    trust: bool,
) -> list[dict[str, Any]]:
    """For each attack the parameters that it knows; a single one gets all of them, and refuses what it does not."""
    own = [dict(settings.get(attack, {})) if isinstance(attack, str) else {} for attack in attacks]
    if len(attacks) == 1:
        return [dict(parameters) | own[0]]
    known = [_known_parameters(attack, trust) for attack in attacks]
    if missing := next((name for name in parameters if not any(name in names for names in known)), None):
        raise unknown("parameter", missing, set[str]().union(*known))
    return [
        {name: value for name, value in parameters.items() if name in names} | named
        for names, named in zip(known, own, strict=True)
    ]


def _known_parameters(attack: str | Callable[..., Tensor] | Attack, trust: bool) -> set[str]:
    """The names of the parameters that can be laid over an attack's own."""
    if isinstance(attack, Attack):
        return set()
    if isinstance(attack, str):
        card = cards.attack(attack)
        return set() if card.members else zoo.parameters_of(cards.resolve_entry(card, trust=trust))
    return zoo.parameters_of(attack)


def told_apart(models: Sequence[LoadedModel]) -> list[LoadedModel]:
    """The models under names of their own: several of one class are numbered."""
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
    if attack.members:
        members = [replace(m, given_surrogates=tuple(surrogates)) if m in carried else m for m in attack.members]
        return replace(attack, members=tuple(members))
    return replace(attack, given_surrogates=tuple(surrogates))


def _worst_case(
    card: AttackCard, named: str, settings: Mapping[str, dict[str, Any]], parameters: dict[str, Any], trust: bool
) -> Attack:
    """The worst case over the members of a card; its parameters say which they are, and how they differ from theirs."""
    if parameters:
        raise LpmbenchError(f"{card.path}: a worst case has no parameter '{next(iter(parameters))}'; its members do.")
    members = tuple(resolve_attack(name, parameters=settings.get(name), trust=trust) for name in card.members)
    return worst_case_over(members, card.name, f"--attack {shlex.quote(named)}")


def worst_case_over(members: Sequence[Attack], name: str = "worst-case", arguments: str = "") -> Attack:
    """For each image the strongest of some attacks, as an attack of its own."""
    names = [member.name for member in members]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise LpmbenchError(f"A worst case tells its members apart by name, and two of them are called '{repeated}'.")
    differing = {member.name: changed for member in members if (changed := changed_parameters(member))}
    parameters: dict[str, Any] = {"attacks": names}
    parameters |= {"settings": differing} if differing else {}
    return Attack(
        name,
        None,
        parameters,
        {"name": name, "entry": "worst case", "knowledge": "white-box", "parameters": parameters},
        "white-box",
        tuple(norm for norm in NORMS if all(norm in member.norms for member in members)),
        any(member.targeted for member in members),
        "; ".join(member.known_defects for member in members if member.known_defects),
        arguments,
        any(member.foreign for member in members),
        members=tuple(members),
    )


def changed_parameters(attack: Attack) -> dict[str, Any]:
    """The parameters in which an attack differs from the registered card of its name."""
    registered = cards.attack(attack.name).parameters if attack.name in cards.names("attack") else {}
    return {name: value for name, value in attack.parameters.items() if registered.get(name) != value}


def with_parameters(attack: Attack, changes: Mapping[str, Any]) -> Attack:
    """The same attack with some of its parameters changed; of a worst case, all members that know them."""
    if attack.members:
        changed = [with_parameters(m, {k: v for k, v in changes.items() if k in m.parameters}) for m in attack.members]
        return worst_case_over(changed, attack.name, attack.arguments)
    parameters = attack.parameters | dict(changes)
    return replace(attack, parameters=parameters, identity=attack.identity | {"parameters": parameters})


class LeftOut(LpmbenchError):
    """An attack that cannot be made on this model or these images: an error alone, left out among others."""


class NoSurrogate(LeftOut):
    """An attack that is carried over has no model to be made on."""

    def __init__(self, data: Data) -> None:
        super().__init__(
            f"No registered model fits '{data.name}' as a surrogate; name one with --surrogate, or surrogates=."
        )


def resolve_surrogates(attack: Attack, target: LoadedModel, data: Data, device: str) -> tuple[LoadedModel, ...]:
    """The models that an attack on `target` is made on. Raises NoSurrogate where it needs some and none fits.

    Of those that a card names for the data set, some do not take part: models of other labels, those that share the
    target's weights (they would be no black box), and controls, if they are not the target's own network trained from
    another seed.
    """
    if attack.surrogates is None:
        return ()
    if attack.given_surrogates:
        found = list(attack.given_surrogates)
    elif isinstance(attack.surrogates, Mapping):
        names = [card.name for card in _listed(attack.surrogates, target, data)]
        found = [zoo.load_model(name, device=device) for name in names]
        found = [model for model in found if model.weights_sha256 != target.weights_sha256]
    else:
        found = [resolve_model(model, device=device) for model in attack.surrogates]
    if not found:
        raise NoSurrogate(data)
    return tuple(told_apart(found))  # by name, for the name keys the noise that an attack meets on it


def given_instead(attack: Attack, target: LoadedModel, data: Data) -> str:
    """The models that a run names for an attack to be made on, where they are others than those of its card; or ""."""
    given = {model.name: model.weights_sha256 for model in attack.given_surrogates}
    if isinstance(attack.surrogates, Mapping):
        listed = {card.name: card.weights for card in _listed(attack.surrogates, target, data)}
        usual = {name: weights.sha256 for name, weights in listed.items() if weights is not None}
        usual = {name: digest for name, digest in usual.items() if digest != target.weights_sha256}
    else:
        usual = {str(name): given.get(str(name)) for name in attack.surrogates or ()}
    if not given or given == usual:
        return ""
    # A model that is not on the card, or has other weights there, is known by its weights.
    known = (name if usual.get(name) == digest else f"{name} {str(digest)[:8]}" for name, digest in given.items())
    return ", ".join(sorted(known))


def _listed(surrogates: Mapping[str, Sequence[str]], target: LoadedModel, data: Data) -> list[ModelCard]:
    """The cards of the models that are named for a data set and fit it, controls only for their own network."""
    found = map(cards.model, surrogates.get(data.name, ()))
    shown = data.identity.get("labels"), data.identity.get("channels")
    return [
        card
        for card in found
        if (card.labels, card.input.channels) == shown
        and (card.control_of is None or (target.card is not None and _same_network(card, target.card)))
    ]


def _same_network(first: ModelCard, second: ModelCard) -> bool:
    return (first.entry, first.parameters, first.input) == (second.entry, second.parameters, second.input)


def resolve_model(
    model: str | Path | Callable[..., Any] | LoadedModel,
    *,
    checkpoint: Path | None = None,
    trust: bool = False,
    device: str = "cpu",
    name: str | None = None,
) -> LoadedModel:
    """A registered model, one from a card file, or any module or function from images in [0, 1] to logits.

    Of a module a copy is taken: the caller's own is never touched.
    """
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, str | Path):
        return zoo.load_model(str(model), checkpoint=checkpoint, trust=trust, device=device)
    return handed_over(model, name)
