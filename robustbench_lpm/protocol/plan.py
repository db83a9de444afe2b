"""The plan of a run: everything that decides it, checked and resolved before it starts, and its cost."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, GloballyRandom, MonteCarlo
from robustbench_lpm.architectures.precision import reduced
from robustbench_lpm.attacks import libraries
from robustbench_lpm.attacks.contract import Cost
from robustbench_lpm.budgets import format_eps, parse_eps
from robustbench_lpm.devices import goes_unnamed, resolve_device
from robustbench_lpm.errors import LISTED, LpmbenchError, unknown
from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.norms import NORMS
from robustbench_lpm.options import SETTINGS, STRONGEST, Options, words_of
from robustbench_lpm.protocol.chunks import LARGEST_BLOCK, chunk_for, noise_for
from robustbench_lpm.protocol.noise_control import NoiseControl, parse_noise_control
from robustbench_lpm.randomness import RANDOM_NUMBERS
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.admission import IMAGES, Admission, AsItIs, admit
from robustbench_lpm.registry.contents import sha256_of_object
from robustbench_lpm.registry.tasks import (
    Attack,
    Data,
    LeftOut,
    changed_parameters,
    given_instead,
    resolve_attack,
    resolve_surrogates,
)
from robustbench_lpm.registry.zoo import LoadedModel

STORED_PICTURES = 16
CONTROL = "none"  # the knowledge of an attack that is a control
PLACES = 9  # of a patch, that an attack compares


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs, and the configuration that names it."""

    model: LoadedModel
    attack: Attack
    data: Data
    indices: tuple[int, ...]
    asked: Options  # as the user gave them
    options: Options  # the same, resolved for this model, attack and dataset
    noise_control: NoiseControl
    classes: int
    chunk: int  # rows (images times draws) that pass the network at once
    configuration: dict[str, Any]
    surrogates: tuple[LoadedModel, ...] = ()  # of a transfer attack: the models that it is made on
    members: tuple[Plan, ...] = ()  # of a worst case: the runs among which it chooses
    lowered: Classifier | None = None  # the model in reduced precision, if gradients and probes are to use it
    notes: tuple[str, ...] = ()  # for the reader of the result
    code: dict[str, str] = field(default_factory=dict)  # hashes of what computes it, see `_code`
    no_gradient: str = ""  # why the model gives none, "" where it does
    untouched: Classifier | None = None  # a copy of the model that is asked hardly anything, where it can be copied
    measured: bool = False  # whether `chunk` depends on a device's free memory, so that the next start may find another

    @cached_property
    def id(self) -> str:
        """Names the run: the sha256 of the configuration."""
        return sha256_of_value(self.configuration)

    @property
    def stochastic(self) -> bool:
        """Whether two passes of the classifier, as it is graded, may differ."""
        return self.noise_control.leaves_noise(self.classifier)

    @property
    def classifier(self) -> Classifier:
        """The classifier that is attacked and graded: the model itself, or the average of M runs of it."""
        return self._averaged(self.model.classifier)

    @property
    def quick(self) -> Classifier | None:
        """The classifier in reduced precision, if gradients and probes are to use it."""
        return self._averaged(self.lowered) if self.lowered is not None else None

    @property
    def hardly_asked(self) -> Classifier | None:
        """The classifier as it was before any attack, where it can be copied; for a few questions."""
        return self._averaged(self.untouched) if self.untouched is not None else None

    def _averaged(self, classifier: Classifier) -> Classifier:
        return MonteCarlo(classifier, self.options.mc) if self.options.mc > 1 else classifier

    @property
    def gradient_modes(self) -> tuple[str | None, ...]:
        """The modes to attack in; for each image the strongest result is chosen."""
        mode = self.options.gradient_mode
        return self.model.classifier.gradient_modes if mode == STRONGEST and not self.members else (mode,)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Among which the strongest image of an example is chosen: members of a worst case, or gradient modes."""
        if self.members:
            return tuple(member.attack.name for member in self.members)
        return tuple(mode or "" for mode in self.gradient_modes)

    @property
    def blocks(self) -> list[tuple[int, ...]]:
        """The work units: fixed slices of the indices."""
        return [self.indices[i : i + self.block_size] for i in range(0, len(self.indices), self.block_size)]

    @property
    def block_size(self) -> int:
        """How many images a block has, at most."""
        return min(self.chunk, LARGEST_BLOCK)

    def cost(self) -> Cost | None:
        """The most passes of the network that attacking one image takes, or None if the attack does not say."""
        once = self.attack.cost(stochastic=self.stochastic, norm=self.options.norm)
        if once is None:
            return None
        modes, passes = len(self.gradient_modes), self.classifier.passes
        forwards, choices, candidates = once.forwards, len(self.surrogates) or once.choices, len(self.candidates)
        if self.lowered is not None and not self.stochastic:
            forwards += once.backwards  # a pass in full precision for what seems to be misclassified
        compared = choices * modes * (choices > 1) + candidates * (candidates > 1)
        place = self._cost_of_place()
        return Cost(
            ((forwards + place.forwards) * modes + compared * self.options.select_draws) * passes,
            (once.backwards + place.backwards) * modes * passes,
        )

    @property
    def places(self) -> int:
        """How many places of a patch are compared; a control takes one at random."""
        return PLACES if self.attack.knowledge != CONTROL else 1

    @property
    def places_by_gradient(self) -> bool:
        """Whether gradients may propose them."""
        return self.attack.knowledge == "white-box" and not self.no_gradient

    def _cost_of_place(self) -> Cost:
        """The passes for one image, in one gradient mode, that choose the place of its patch."""
        if self.options.patch is None or self.options.patch_at is not None:
            return Cost(0)
        draws, compared = self.options.select_draws, self.places * (self.places > 1)
        return Cost((compared + 1) * draws, draws) if self.places_by_gradient else Cost(compared * draws)

    def grading_passes(self) -> int:
        """Passes that grading one image takes, before and after the attack."""
        return 2 * self.options.draws * self.classifier.passes

    def command(self) -> str:
        """The command that repeats this run (DIR is the directory of the data or of submitted images).

        If an object was handed over from Python, the call that repeats the run, after "from Python: ".
        """
        sources = [model for plan in (self, *self.members) for model in plan.surrogates]
        subjects: tuple[LoadedModel | Attack | Data, ...] = self.model, self.attack, self.data
        if not all(part.arguments for part in (*subjects, *sources)):
            return f"{FROM_PYTHON}{self._call(sources)}"
        words = words_of(self._options())
        words += [model.arguments.replace("--model", "--surrogate", 1) for model in sources]
        words += [f"--set {shlex.quote(f'{name}={value}')}" for name, value in _settings(self.attack)]
        words += ["--trust"] * self._trusted
        return " ".join([f"lpmbench {self.attack.command}", *(part.arguments for part in subjects), *words])

    def _call(self, sources: Sequence[LoadedModel]) -> str:
        """The call of `evaluate` that repeats this run; objects that were handed over go by their names."""
        options = self._options()
        if not self.data.arguments:
            del options["size"]
        if parameters := dict(_settings(self.attack)):
            options["parameters"] = parameters
        if not self.model.arguments and self.model.name != _in_python(self.model):
            options["name"] = self.model.name
        if self._trusted:
            options["trust"] = True
        words = [_in_python(self.model), _in_python(self.attack), _in_python(self.data)]
        words += [f"{name}={value!r}" for name, value in options.items()]
        words += [f"surrogates=[{', '.join(map(_in_python, sources))}]"] if sources else []
        return f"robustbench_lpm.evaluate({', '.join(words)})"

    def _options(self) -> dict[str, Any]:
        """The options of the run by name: those that always decide it, and others that are not the default."""
        found, eps = self.options, self.options.eps
        shown_eps = format_eps(eps) if parse_eps(format_eps(eps)) == eps else repr(eps)
        given: dict[str, Any] = {"size": self.data.identity["size"], "norm": found.norm, "eps": shown_eps}
        given |= {"limit": len(self.indices), "seed": found.seed}
        if self.classifier.stochastic:
            given |= {"mc": found.mc, "draws": found.draws}
        hidden = {"mc", "draws", "select_draws", "save_adversarials", *["device"] * goes_unnamed(found.device)}
        for name, setting in SETTINGS.items():
            if name not in given.keys() | hidden and getattr(found, name) not in (setting.default, STRONGEST):
                given[name] = getattr(found, name)
        return given

    @property
    def _trusted(self) -> bool:
        card = self.model.card
        return self.attack.foreign or self.data.foreign or (card is not None and cards.is_foreign(card))


FROM_PYTHON = "from Python: "


def _in_python(part: LoadedModel | Attack | Data) -> str:
    """A model, attack or dataset in a call: its card in quotes, else its class or function."""
    if part.arguments:
        return repr(shlex.split(part.arguments)[1])
    if isinstance(part, Data):
        return "(images, labels)"
    return str(part.identity.get("entry", part.name)).rpartition(":")[2].rpartition(".")[2]


def _settings(attack: Attack) -> list[tuple[str, Any]]:
    """An attack's parameters as --set takes them; of a worst case, those in which members differ from their cards."""
    if not attack.members:
        return sorted(attack.parameters.items())
    return list(changed_parameters(attack).items())


def make_plan(
    model: LoadedModel, attack: Attack, data: Data, asked: Options, *, indices: Sequence[int] | None = None
) -> Plan:
    """The plan of a run. indices: of the examples; None takes the first `asked.limit`.

    Raises LpmbenchError for a run that is not possible.
    """
    if asked.norm not in attack.norms:
        known = ", ".join(norm for norm in NORMS if norm in attack.norms)
        there = [name for name in cards.names("attack") if asked.norm in cards.attack(name).norms]
        hint = f" There: {', '.join(there)}." if len(there) <= LISTED else ""
        raise LpmbenchError(f"Attack '{attack.name}' works in {known}, not in '{asked.norm}'.{hint}")
    chosen = tuple(indices if indices is not None else range(min(asked.limit or len(data), len(data))))
    if not chosen:
        raise LpmbenchError("There are no examples to attack.")
    asked = replace(asked, device=resolve_device(asked.device))
    model, admission, example = fitted(model, data, chosen, asked.device, labels_fit=asked.labels_fit)
    _check_attackable(model, attack, admission)
    control = parse_noise_control(asked.noise, model.classifier)
    random = control.leaves_noise(model.classifier)
    options = replace(
        asked,
        mc=asked.mc if model.classifier.stochastic else 1,
        draws=asked.draws if random else 1,
        select_draws=asked.select_draws if random else 1,
        gradient_mode=_resolve_mode(model, attack, asked.gradient_mode),
        noise=tuple(f"{source}={mode}" for source, mode in control.modes),
        target=_resolve_target(asked.target, attack, data, admission.classes),
    )
    surrogates = tuple(
        _admitted(s, data, chosen, asked.device) for s in resolve_surrogates(attack, model, data, asked.device)
    )
    members, left_out = _members(model, attack, data, asked, chosen)
    lowered = _lowered(model, example) if options.precision == "bfloat16" else None
    if lowered is not None:
        surrogates = tuple(replace(s, classifier=_lowered(s, example)) for s in surrogates)
    passed = (model, *surrogates) if example.is_cuda else (model,)  # on a CPU the default is below what fits
    configuration = {
        "model": model.identity | {"stochastic": model.classifier.stochastic},
        "attack": attack.identity | _sources_of_images(surrogates, members, given_instead(attack, model, data)),
        "dataset": data.identity | {"data_sha256": data.sha256(chosen), "indices": list(chosen)},
        "threat": {"norm": options.norm, "eps": options.eps, "target": options.target} | _patch(options),
        "evaluation": _evaluation(options, model, control),
    }
    return Plan(
        model, attack, data, chosen, asked, options, control, admission.classes,
        min(chunk_for(each.classifier, example, options.memory, gradient=not admission.no_gradient) for each in passed),
        configuration, surrogates, members, lowered,
        notes=(*_notes(model, attack, data, admission, options.draws), *left_out),
        code=_code(model, attack, data, admission),
        no_gradient=admission.no_gradient, untouched=admission.untouched,
        measured=example.is_cuda and options.memory is None,
    )  # fmt: skip


def _patch(options: Options) -> dict[str, Any]:
    """The patch of a threat: present only where there is one."""
    return {"patch": {"share": options.patch, "at": options.patch_at}} if options.patch is not None else {}


def _check_attackable(model: LoadedModel, attack: Attack, admission: Admission) -> None:
    """Raise LpmbenchError where the attack needs what the model does not have."""
    if not attack.applies(model.classifier):
        raise LpmbenchError(f"Attack '{attack.name}' moves fixations; model '{model.name}' has none.")
    if admission.no_gradient and needs_gradient(attack):
        raise LeftOut(
            f"Attack '{attack.name}' needs a gradient, and model '{model.name}' gives none ({admission.no_gradient}); "
            f"these need none: {', '.join(_without_gradients())}."
        )


def _evaluation(options: Options, model: LoadedModel, control: NoiseControl) -> dict[str, Any]:
    """How a run is graded, as a part of its configuration; newer entries are present only where they are used."""
    names = ("mc", "draws", "select_draws", "gradient_mode", "seed")
    found: dict[str, Any] = {name: getattr(options, name) for name in names} | {"random_numbers": RANDOM_NUMBERS}
    if options.gradient_mode == STRONGEST:  # a mode that a model learns later makes another run
        found["gradient_modes"] = list(model.classifier.gradient_modes)
    if options.precision != "float32":
        found["precision"] = options.precision
    if control.modes:
        found["noise"] = [list(pair) for pair in control.modes]
    return found


def _members(
    model: LoadedModel, attack: Attack, data: Data, asked: Options, indices: Sequence[int]
) -> tuple[tuple[Plan, ...], list[str]]:
    """The plans of a worst case's members, and notes on those that cannot attack this model."""
    found, notes = [], []
    for member in attack.members:
        if member.applies(model.classifier) and (asked.target is None or member.targeted):
            try:
                found.append(make_plan(model, member, data, replace(asked, save_adversarials=True), indices=indices))
            except LeftOut as error:
                notes.append(f"Left out of {attack.name}: {member.name}. {error}")
    if attack.members and not found:
        raise LpmbenchError(f"No attack of '{attack.name}' can attack model '{model.name}' like this.")
    return tuple(found), notes


def fitted(
    model: LoadedModel, data: Data, indices: Sequence[int], device: str, *, labels_fit: bool = False
) -> tuple[LoadedModel, Admission, Tensor]:
    """A model as it is admitted to the images, its admission, and the first of the images, (1, C, H, W).

    Raises LpmbenchError for a model that is not admitted, or that does not answer in the dataset's labels.
    """
    card, known = model.card, data.identity.get("labels")
    if card is not None and known is not None and card.labels != known and not labels_fit:
        raise LpmbenchError(
            f"Model '{model.name}' predicts the labels '{card.labels}', dataset '{data.name}' has the labels "
            f"'{known}'. If they are the same classes in the same order, say so with --labels-fit (labels_fit=True)."
        )
    images = data.read(indices[:IMAGES]).images
    alike = torch.stack([image for image in images if image.shape == images[0].shape])
    if card is not None and alike.shape[1] != card.input.channels:
        raise LpmbenchError(
            f"Model '{model.name}' reads {card.input.channels} channel(s); '{data.name}' has {alike.shape[1]}."
        )
    model, admission = admit(model, alike, device)
    classes = admission.classes
    if card is not None and card.classes != classes:
        raise LpmbenchError(f"{card.path}: classes = {card.classes}, but the model answers with {classes} logits.")
    if data.class_count is not None and data.class_count != classes and not labels_fit:
        raise LpmbenchError(
            f"Model '{model.name}' answers with {classes} logits, but '{data.name}' has {data.class_count} classes. If "
            "its first classes are those of the dataset, say so with --labels-fit (labels_fit=True)."
        )
    labels = data.labels[list(indices)]
    if labels.min() < 0 or labels.max() >= classes:
        worst = labels.min() if labels.min() < 0 else labels.max()
        raise LpmbenchError(f"Label {worst} is out of range: model '{model.name}' knows {classes} classes, from 0.")
    return model, admission, alike[:1].to(device)


def needs_gradient(attack: Attack) -> bool:
    """Whether an attack declares backward passes; of a library's attack, whether it sees gradients."""
    if libraries.of_library(str(attack.identity.get("entry"))):
        return attack.knowledge == "white-box"
    cost = attack.cost(stochastic=True)
    return cost is not None and cost.backwards > 0


def _without_gradients() -> list[str]:
    """The registered attacks that need no gradient of the model."""
    found = [resolve_attack(name) for name in cards.names("attack")]
    return [a.name for a in found if not a.members and a.applies_to == "any" and not needs_gradient(a)]


def _admitted(surrogate: LoadedModel, data: Data, indices: Sequence[int], device: str) -> LoadedModel:
    """A model that a transfer attack is made on. It is not judged, so that its labels need not be declared."""
    admitted, admission, _ = fitted(surrogate, data, indices, device, labels_fit=True)
    if admission.no_gradient:
        raise LpmbenchError(f"Surrogate '{surrogate.name}' gives no gradient ({admission.no_gradient}).")
    return admitted


def _notes(model: LoadedModel, attack: Attack, data: Data, admission: Admission, draws: int) -> tuple[str, ...]:
    """Notes for the reader of the result."""
    notes = [attack.known_defects, *model.notes, *admission.notes, *data.notes]
    if isinstance(model.classifier.network, GloballyRandom):  # found out, not declared
        notes.append(told_noise(draws, admission.sources))
    return tuple(dict.fromkeys(note for note in notes if note))


def told_noise(draws: int, sources: Iterable[str]) -> str:
    """The note on a stochastic model."""
    return f"stochastic: {draws} draws of its own noise, from {' and '.join(sources)}"


def _code(model: LoadedModel, attack: Attack, data: Data, admission: Admission) -> dict[str, str]:
    """Hashes of the code of model, attack and dataset (see `contents`), and of the model's answers to fixed images."""
    functions = [part.function for part in (attack, *attack.members)]
    hashes = {"attack": sha256_of_object(functions), "dataset": sha256_of_object(data.entry)}
    return {"model": sha256_of_object(model.entry), "answers": admission.answers, **hashes}


def vary(plan: Plan, *, attack: Attack | None = None, **changes: Any) -> Plan:
    """The same plan with another attack, or with some options changed."""
    attack = attack or plan.attack
    if not attack.members and attack.knowledge != "white-box":
        changes["gradient_mode"] = None
    return make_plan(plan.model, attack, plan.data, replace(plan.asked, **changes), indices=plan.indices)


def _sources_of_images(surrogates: Sequence[LoadedModel], members: Sequence[Plan], instead: str) -> dict[str, Any]:
    """What decides an attack's images beside its parameters: weights of surrogates, or runs of members.

    instead: the surrogates that were named in place of the card's, which make it another attack.
    """
    found: dict[str, Any] = {"made_on": instead} if instead else {}
    if surrogates:
        found["surrogates"] = {surrogate.name: surrogate.weights_sha256 for surrogate in surrogates}
    if members:
        found["members"] = {member.attack.name: member.id for member in members}
        for member in members:
            found |= {key: value for key, value in member.configuration["attack"].items() if key == "made_on"}
    return found


def _lowered(model: LoadedModel, example: Tensor) -> Classifier:
    if isinstance(model.classifier.network, AsItIs):
        raise LpmbenchError(f"Model '{model.name}' cannot be copied, so it runs in float32 alone; leave out precision.")
    return reduced(model.classifier, example, noise_for(model.classifier, example))


def _resolve_mode(model: LoadedModel, attack: Attack, mode: str | None) -> str | None:
    modes = model.classifier.gradient_modes
    if attack.members and modes:  # each member takes it or leaves it
        return mode
    cost = attack.cost(stochastic=True)
    if not modes or attack.knowledge != "white-box" or (cost is not None and cost.backwards == 0):
        return None
    if mode is None:
        return STRONGEST
    if mode not in (*modes, STRONGEST):
        raise unknown("gradient mode", mode, [*modes, STRONGEST])
    return mode


def _resolve_target(target: str | None, attack: Attack, data: Data, classes: int) -> str | None:
    if target is not None and not attack.targeted:
        raise LpmbenchError(f"Attack '{attack.name}' cannot aim at a target.")
    if target in (None, "random"):
        return target
    found = str(data.classes.index(target)) if target in data.classes else target
    if not found.isdigit():
        raise unknown("target class", found, [*data.classes, "random"])
    if int(found) >= classes:
        raise LpmbenchError(f"Target {found} is out of range: the model knows {classes} classes.")
    return found


def execution(plan: Plan) -> dict[str, Any]:
    """How a run is computed; the same again, with the same versions, gives the same bits."""
    device = torch.device(plan.options.device).type
    return {"device": device, "threads": torch.get_num_threads(), "block_size": plan.block_size, "chunk": plan.chunk}
