"""A run, resolved to the last number before it starts: what decides its outcomes, and what it will cost."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_lpm import cards
from robustbench_lpm.architectures.classifier import Classifier, MonteCarlo, Noise
from robustbench_lpm.architectures.precision import PRECISIONS, Precision, reduced
from robustbench_lpm.attacks.contract import Cost
from robustbench_lpm.budgets import format_eps, parse_eps
from robustbench_lpm.errors import LpmbenchError, unknown
from robustbench_lpm.evaluation.noise_control import NoiseControl, parse_noise_control
from robustbench_lpm.evaluation.tasks import (
    Attack,
    Data,
    NoSurrogate,
    given_instead,
    resolve_surrogates,
    with_hidden_randomness_exposed,
)
from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.norms import NORMS, Norm
from robustbench_lpm.randomness import generators
from robustbench_lpm.zoo import LoadedModel

STRONGEST = "strongest"
STORED_PICTURES = 16
DEFAULT_MEMORY = 2.0  # GiB


@dataclass(frozen=True)
class Plan:
    """Everything a run needs, and the configuration that names it."""

    model: LoadedModel
    attack: Attack
    data: Data
    indices: tuple[int, ...]
    norm: Norm
    eps: float
    mc: int
    draws: int
    select_draws: int
    gradient_mode: str | None
    noise_control: NoiseControl
    target: str | None
    seed: int
    classes: int
    device: str
    chunk: int
    save_adversarials: bool
    configuration: dict[str, Any]
    requested_draws: int = 20  # of a stochastic classifier; `draws` is 1 where its noise is all frozen
    requested_selection: int = 10
    surrogates: tuple[LoadedModel, ...] = ()  # the models that the attack is made on, if it is carried over
    members: tuple[Plan, ...] = ()  # of a worst case: the runs among which it chooses
    notes: tuple[str, ...] = ()  # what a reader of the record must know
    precision: Precision = "float32"  # of gradients and probes
    memory: float = DEFAULT_MEMORY
    lowered: Classifier | None = None  # the model in that precision, where it is a reduced one

    @property
    def id(self) -> str:
        """What names the run: the sha256 of the configuration."""
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
        """The classifier in reduced precision, if gradients and probes shall be."""
        return self._averaged(self.lowered) if self.lowered is not None else None

    def _averaged(self, classifier: Classifier) -> Classifier:
        return MonteCarlo(classifier, self.mc) if self.mc > 1 else classifier

    @property
    def gradient_modes(self) -> tuple[str | None, ...]:
        """The modes to attack in, one after the other; the strongest result is chosen for each image."""
        if self.gradient_mode == STRONGEST and not self.members:
            return self.model.classifier.gradient_modes
        return (self.gradient_mode,)

    @property
    def candidates(self) -> tuple[str, ...]:
        """What the strongest image of an example is chosen among: members of a worst case, or gradient modes."""
        if self.members:
            return tuple(member.attack.name for member in self.members)
        return tuple(mode or "" for mode in self.gradient_modes)

    @property
    def blocks(self) -> list[tuple[int, ...]]:
        """The work units: fixed slices of the indices."""
        return [self.indices[i : i + self.chunk] for i in range(0, len(self.indices), self.chunk)]

    def cost(self) -> Cost | None:
        """The most passes of the network that attacking one image takes, or None if the attack does not say."""
        once = self.attack.cost(stochastic=self.stochastic)
        if once is None:
            return None
        modes = len(self.gradient_modes)
        forwards, choices = once.forwards, len(self.surrogates) or once.choices
        if self.lowered is not None and not self.stochastic:
            forwards += once.backwards  # a look in full precision at what seems to have fallen
        compared = (choices if choices > 1 else 0) * modes + (len(self.candidates) if len(self.candidates) > 1 else 0)
        passes = self.classifier.passes
        return Cost((forwards * modes + compared * self.select_draws) * passes, once.backwards * modes * passes)

    def grading_passes(self) -> int:
        """Passes that grading one image takes, before and after the attack."""
        return 2 * self.draws * self.classifier.passes

    def command(self) -> str:
        """The command that repeats this run (DIR stands for where the data lie, or the images that were submitted)."""
        options = {
            "--size": self.data.identity["size"],
            "--norm": self.norm,
            "--eps": format_eps(self.eps) if parse_eps(format_eps(self.eps)) == self.eps else repr(self.eps),
            "--limit": len(self.indices),
            "--seed": self.seed,
        }
        if self.classifier.stochastic:
            options |= {"--mc": self.mc, "--draws": self.draws}
        if self.gradient_mode and self.gradient_mode != STRONGEST:
            options["--gradient-mode"] = self.gradient_mode
        if self.target is not None:
            options["--target"] = self.target
        if self.precision != "float32":
            options["--precision"] = self.precision
        if self.memory != DEFAULT_MEMORY:
            options["--memory"] = f"{self.memory:g}"
        if torch.device(self.device).type != "cpu":
            options["--device"] = self.device
        words = [f"{name} {shlex.quote(str(value))}" for name, value in options.items()]
        words += [f"--noise {shlex.quote(f'{source}={mode}')}" for source, mode in self.noise_control.modes]
        surrogates = [model for plan in (self, *self.members) for model in plan.surrogates]
        words += [
            (surrogate.arguments or f"--model {shlex.quote(surrogate.name)}").replace("--model", "--surrogate", 1)
            for surrogate in surrogates
        ]
        settings = [f"--set {shlex.quote(f'{name}={value}')}" for name, value in _settings(self.attack)]
        card = self.model.card
        trusted = self.attack.foreign or self.data.foreign or (card is not None and cards.is_foreign(card))
        return " ".join(
            [f"lpmbench {self.attack.command}", *self._subjects(), *words, *settings, *["--trust"] * trusted]
        )

    def _subjects(self) -> list[str]:
        """Model, attack and data as they were named; what came from Python goes by its name alone."""
        return [
            self.model.arguments or f"--model {shlex.quote(self.model.name)}",
            self.attack.arguments or f"--attack {shlex.quote(self.attack.name)}",
            self.data.arguments or f"--dataset {shlex.quote(self.data.name)}",
        ]


def _settings(attack: Attack) -> list[tuple[str, Any]]:
    """An attack's parameters as --set takes them; of a worst case, those in which members differ from their cards."""
    if not attack.members:
        return sorted(attack.parameters.items())
    differing: dict[str, dict[str, Any]] = attack.parameters.get("settings", {})
    return [(f"{member}.{name}", value) for member, given in differing.items() for name, value in given.items()]


def make_plan(
    model: LoadedModel,
    attack: Attack,
    data: Data,
    *,
    eps: float,
    norm: str = "linf",
    limit: int | None = None,
    indices: Sequence[int] | None = None,
    mc: int = 1,
    draws: int = 20,
    select_draws: int = 10,
    gradient_mode: str | None = None,
    noise: str | Iterable[str] = (),
    target: str | int | None = None,
    seed: int = 0,
    device: str = "cpu",
    save_adversarials: bool = False,
    precision: str = "float32",
    memory: float = DEFAULT_MEMORY,
) -> Plan:
    """Check what was asked for and resolve it. Raises LpmbenchError for what cannot be run.

    gradient_mode: None is the strongest of the model's modes for a white-box attack.
    noise: who controls which source of it, see `noise_control`.
    precision: of gradients and probes; grading and what decides that an image has fallen are in float32.
    memory: GiB that the maps of one pass may take, about: it bounds the chunk.
    """
    given = {
        "eps": eps, "norm": norm, "limit": limit, "indices": indices, "mc": mc, "draws": draws,
        "select_draws": select_draws, "gradient_mode": gradient_mode, "noise": noise,
        "target": target, "seed": seed, "device": device, "precision": precision, "memory": memory,
    }  # fmt: skip
    if norm not in attack.norms:
        known = [known for known in NORMS if known in attack.norms]
        raise LpmbenchError(f"Attack '{attack.name}' works in {', '.join(known)}, not in '{norm}'.")
    for name, value in {"mc": mc, "draws": draws, "select_draws": select_draws, "limit": limit}.items():
        if value is not None and value < 1:
            raise LpmbenchError(f"{name} must be at least 1, not {value}.")
    if precision not in PRECISIONS:
        raise unknown("precision", precision, list(PRECISIONS))
    if not 0 < memory < float("inf"):
        raise LpmbenchError(f"memory must be a number of GiB above 0, not {memory}.")
    if not 0 <= eps < float("inf"):
        raise LpmbenchError(f"eps must be a finite number that is zero or more, not {eps}.")
    chosen = tuple(indices if indices is not None else range(min(limit or len(data), len(data))))
    if not chosen:
        raise LpmbenchError("There are no examples to attack.")
    model, example, classes = fitted(model, data, chosen, device)
    if not attack.applies(model.classifier):
        raise LpmbenchError(f"Attack '{attack.name}' moves fixations; model '{model.name}' has none.")
    stochastic = model.classifier.stochastic
    control = parse_noise_control(noise, model.classifier)
    random = control.leaves_noise(model.classifier)
    mode = _resolve_mode(model, attack, gradient_mode)
    surrogates = resolve_surrogates(attack, model, data, device)
    members: list[Plan] = []
    notes: list[str] = []
    for member in attack.members:
        if member.applies(model.classifier) and (target is None or member.targeted):
            try:
                members.append(make_plan(model, member, data, save_adversarials=True, **given))  # type: ignore[arg-type]
            except NoSurrogate as error:
                notes.append(f"Left out of {attack.name}: {member.name}. {error}")
    aim = _resolve_target(target, attack, data, classes)
    if attack.members and not members:
        raise LpmbenchError(f"No attack of '{attack.name}' can attack model '{model.name}' like this.")
    configuration = {
        "model": model.identity | {"stochastic": stochastic},
        "attack": attack.identity | _sources_of_images(surrogates, members, given_instead(attack, model, data)),
        "dataset": data.identity | {"data_sha256": data.sha256(chosen), "indices": list(chosen)},
        "threat": {"norm": norm, "eps": eps, "target": aim},
        "evaluation": {
            "mc": mc if stochastic else 1,
            "draws": draws if random else 1,
            "select_draws": select_draws if random else 1,
            "gradient_mode": mode,
            "seed": seed,
        },
    }
    if mode == STRONGEST:  # a mode that a model learns later makes another run
        configuration["evaluation"]["gradient_modes"] = list(model.classifier.gradient_modes)
    if precision != "float32":
        configuration["evaluation"]["precision"] = precision
    lowered = None
    if precision == "bfloat16":
        lowered = _lowered(model, example)
        surrogates = tuple(replace(s, classifier=_lowered(s, example)) for s in surrogates)
    if control.modes:
        configuration["evaluation"]["noise"] = [list(pair) for pair in control.modes]
    return Plan(
        model=model,
        attack=attack,
        data=data,
        indices=chosen,
        norm="linf" if norm == "linf" else "l2",
        eps=eps,
        mc=mc if stochastic else 1,
        draws=draws if random else 1,
        select_draws=select_draws if random else 1,
        gradient_mode=mode,
        noise_control=control,
        target=aim,
        seed=seed,
        classes=classes,
        device=device,
        chunk=chunk_for(model.classifier, example, memory),
        save_adversarials=save_adversarials,
        configuration=configuration,
        requested_draws=draws,
        requested_selection=select_draws,
        surrogates=surrogates,
        members=tuple(members),
        notes=tuple(notes),
        precision="bfloat16" if precision == "bfloat16" else "float32",
        memory=memory,
        lowered=lowered,
    )


def fitted(model: LoadedModel, data: Data, indices: Sequence[int], device: str) -> tuple[LoadedModel, Tensor, int]:
    """A model on a device, its hidden randomness exposed; the first of the images, (1, C, H, W); and its classes.

    Raises LpmbenchError for a model that cannot read the images, or does not know all of their labels.
    """
    example = data.read(indices[:1]).images[0][None].to(device)
    if model.card is not None and example.shape[1] != model.card.input.channels:
        raise LpmbenchError(
            f"Model '{model.name}' reads {model.card.input.channels} channel(s); '{data.name}' has {example.shape[1]}."
        )
    model.classifier.to(device).eval()
    try:
        model = with_hidden_randomness_exposed(model, example)
        classes = _count_classes(model.classifier, example)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise LpmbenchError(f"Model '{model.name}' cannot read images {tuple(example.shape[1:])}: {reason}") from error
    labels = data.labels[list(indices)]
    if labels.min() < 0 or labels.max() >= classes:
        raise LpmbenchError(f"Label {labels.max()} is out of range: model '{model.name}' knows {classes} classes.")
    return model, example, classes


def vary(plan: Plan, **changes: Any) -> Plan:
    """The same plan but for some of the arguments of `make_plan`."""
    given: dict[str, Any] = {
        "model": plan.model, "attack": plan.attack, "data": plan.data, "eps": plan.eps, "norm": plan.norm,
        "indices": plan.indices, "mc": plan.mc, "draws": plan.requested_draws, "select_draws": plan.requested_selection,
        "gradient_mode": plan.gradient_mode, "noise": [f"{source}={mode}" for source, mode in plan.noise_control.modes],
        "target": plan.target, "seed": plan.seed, "device": plan.device, "save_adversarials": plan.save_adversarials,
        "precision": plan.precision, "memory": plan.memory,
    } | changes  # fmt: skip
    if not given["attack"].members and given["attack"].knowledge != "white-box":
        given["gradient_mode"] = None
    return make_plan(**given)


def _sources_of_images(surrogates: Sequence[LoadedModel], members: Sequence[Plan], instead: str) -> dict[str, Any]:
    """What decides an attack's images beside its parameters: other models' weights, or other runs.

    instead: the surrogates that were named in place of the card's: that makes another attack of it.
    """
    found: dict[str, Any] = {"made_on": instead} if instead else {}
    if surrogates:
        found["surrogates"] = {surrogate.name: surrogate.weights_sha256 for surrogate in surrogates}
    if members:
        found["members"] = {member.attack.name: member.id for member in members}
        for member in members:
            found |= {key: value for key, value in member.configuration["attack"].items() if key == "made_on"}
    return found


def default_chunk(height: int, width: int) -> int:
    """Images that pass a network at once: few large ones or many small ones.

    Large batches are slower per image on processors: 64 small images and 8 of 224 pixels were measured to be good.
    """
    fitting = max(1, 2**19 // (height * width))
    return max(8, min(64, 1 << (fitting.bit_length() - 1)))


def chunk_for(classifier: Classifier, example: Tensor, memory: float) -> int:
    """The default chunk, or as many images as remember no more than `memory` GiB for their way back."""
    remembered: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        remembered[tensor.data_ptr()] = tensor.nbytes
        return tensor

    weights = {tensor.data_ptr() for tensor in [*classifier.parameters(), *classifier.buffers()]}
    noise = _noise_for(classifier, example)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # Its result holds all that is remembered until that is counted, so that no address comes twice.
        _held = classifier(example.clone().requires_grad_(), noise)
    each = sum(size for address, size in remembered.items() if address not in weights) + 4 * example.nbytes
    return max(1, min(default_chunk(*example.shape[-2:]), int(memory * 2**30 / each)))


def _lowered(model: LoadedModel, example: Tensor) -> Classifier:
    return reduced(model.classifier, example, _noise_for(model.classifier, example))


def _noise_for(classifier: Classifier, example: Tensor) -> Noise:
    noise = classifier.sample_noise(1, generators(0, [0], "clean"))
    return {source: values.to(example.device) for source, values in noise.items()}


@torch.inference_mode()
def _count_classes(classifier: Classifier, example: torch.Tensor) -> int:
    logits = classifier(example, _noise_for(classifier, example))
    if logits.dim() != 2 or len(logits) != 1:
        raise LpmbenchError(f"The model answers one image with shape {tuple(logits.shape)}, not with logits (1, K).")
    return logits.shape[1]


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


def _resolve_target(target: str | int | None, attack: Attack, data: Data, classes: int) -> str | None:
    if target is None:
        return None
    if not attack.targeted:
        raise LpmbenchError(f"Attack '{attack.name}' cannot aim at a target.")
    text = str(target)
    if text == "random":
        return text
    if text in data.classes:
        text = str(data.classes.index(text))
    if not text.isdigit():
        raise unknown("target class", text, [*data.classes, "random"])
    if int(text) >= classes:
        raise LpmbenchError(f"Target {text} is out of range: the model knows {classes} classes.")
    return text


def execution(plan: Plan) -> dict[str, Any]:
    """How a run is computed; the same again, with the same versions, gives the same bits."""
    return {
        "device": torch.device(plan.device).type,
        "threads": torch.get_num_threads(),
        "block_size": plan.chunk,
        "chunk": plan.chunk,
    }
