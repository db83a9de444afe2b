"""The audit: checks whether a result measures how robust a model is, or how weak an attack is (docs/protocol.md).

It judges one run by comparing it with runs that must not be stronger (another attack, twice the budget) or weaker (a
larger eps). `comparisons` lists them, `runs_of` gives the runs that they need, and `judge` decides from the records of
those. Comparisons are paired per example. A check fails where the 95 % interval of the paired difference is above one
point, passes where it is below, and is undecided otherwise: more images would decide it.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_lpm.attacks.losses import objective
from robustbench_lpm.attacks.spsa import estimate
from robustbench_lpm.datasets.examples import batches_by_shape
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.options import STRONGEST
from robustbench_lpm.protocol.grading import grade
from robustbench_lpm.protocol.noise_control import FROZEN, can_freeze
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from robustbench_lpm.protocol.plan import FROM_PYTHON, Plan, vary
from robustbench_lpm.records.audits import TOLERANCE, Audit, Check, Verdict
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry.tasks import (
    Attack,
    LeftOut,
    changed_parameters,
    resolve_attack,
    with_parameters,
    worst_case_over,
)
from robustbench_lpm.statistics import paired_interval
from robustbench_lpm.versions import versions

BLACK_BOX = ("square", "transfer")
COSINE_IMAGES, COSINE_PAIRS, COSINE_DELTA = 32, 256, 1e-3
# Below this share of the cosine that an exact gradient would have, the gradient points elsewhere.
COSINE_SHARE = 0.5


@dataclass(frozen=True)
class Comparison:
    """One question of an audit: is accuracy under the run `upper` no higher than under the run `lower`?

    kind: "paired" compares the two image by image; "floor" checks that no image is robust under both; "same noise"
    takes the adversarial examples of `lower` under the noise of `upper`; "direction" compares gradients of `upper`, not
    runs. note: why the question does not apply, with kind "".
    """

    name: str
    question: str
    against: str = ""
    upper: Plan | None = None
    lower: Plan | None = None
    kind: Literal["paired", "floor", "same noise", "direction", ""] = "paired"
    note: str = ""

    @property
    def runs(self) -> list[Plan]:
        """The runs whose records are compared."""
        return [plan for plan in (self.upper, self.lower) if plan is not None and self.kind != "direction"]


def auditable(plan: Plan) -> Plan:
    """The run that an audit of a plan judges; of a stochastic model it keeps every image. Raises LpmbenchError."""
    if plan.options.eps == 0:
        raise LpmbenchError("An audit needs an eps above 0: without a budget there is nothing to judge.")
    if plan.options.patch is not None:
        raise LpmbenchError("An audit judges changes of the whole image: it has no checks for a patch.")
    return vary(plan, save_adversarials=True) if plan.stochastic else plan  # a frozen draw needs them


def comparisons(judged: Plan, black_box: Sequence[Attack]) -> list[Comparison]:
    """The comparisons of an `auditable` run. black_box: attacks that see no gradients."""
    several = [*_with_others(judged, black_box), *_with_other_budgets(judged), *_with_twice_the_work(judged)]
    return [*several, _with_frozen_noise(judged), _of_the_gradient(judged)]


def runs_of(judged: Plan, wanted: Sequence[Comparison]) -> list[Plan]:
    """The runs that an audit needs, each once, the judged one first; of equal runs that with the most images kept."""
    found: dict[str, Plan] = {}
    for plan in (judged, *(plan for comparison in wanted for plan in comparison.runs)):
        if plan.id not in found or plan.options.save_adversarials:
            found[plan.id] = plan
    return list(found.values())


def judge(
    judged: Plan, black_box: Sequence[Attack], wanted: Sequence[Comparison], records: Mapping[str, RunRecord]
) -> Audit:
    """The audit of a run, from its comparisons and the records of their runs, by id."""
    record, checks = records[judged.id], [_decide(comparison, records) for comparison in wanted]
    return Audit(
        record=record.id, folder_name=record.folder_name, model=record.model, attack=record.attack, checks=checks,
        command=_command(judged, black_box), versions=versions(),
    )  # fmt: skip


def _command(judged: Plan, black_box: Sequence[Attack]) -> str:
    """The command that repeats an audit: that of the judged run, and the black-box attacks."""
    if judged.command().startswith(FROM_PYTHON):
        names = [other.name for other in black_box]
        return judged.command().replace(".evaluate(", ".audit(", 1)[:-1] + f", black_box={names})"
    words = [judged.command().replace("lpmbench attack --model", "lpmbench audit", 1)]
    known = {judged.attack.name, *(member.name for member in judged.attack.members)}  # whose settings are in it
    for other in black_box:
        words.append(f"--black-box {shlex.quote(other.name)}")
        if other.name not in known:
            settings = changed_parameters(other).items()
            words += [f"--set {shlex.quote(f'{other.name}.{name}={value}')}" for name, value in settings]
    return " ".join(words)


def _inapplicable(name: str, question: str, why: str) -> Comparison:
    return Comparison(name, question, kind="", note=why)


def _with_others(judged: Plan, black_box: Sequence[Attack]) -> list[Comparison]:
    """Comparisons with attacks that know or do less: none may be stronger."""
    attack = judged.attack
    simple = {
        "fgsm": ("iterated vs one step", "Is the attack at least as strong as a single step?"),
        "noise": ("attack vs noise", "Is the attack at least as strong as random noise of the same size?"),
    }
    found = [_not_weaker_than(*simple[o], judged, resolve_attack(o)) for o in simple if o != attack.name]
    for other in black_box:
        name, question = "white-box vs black-box", "Is an attack with gradients at least as strong as one without?"
        if other.surrogates is not None:
            name, question = "white-box vs transfer", "Is the attack at least as strong as one made on other models?"
        if attack.knowledge != "white-box":
            found.append(_inapplicable(name, question, "the attack itself sees no gradients"))
        else:
            found.append(_not_weaker_than(name, question, judged, other))
    return found


def _not_weaker_than(name: str, question: str, judged: Plan, other: Attack) -> Comparison:
    """The comparison with another attack; a worst case's own member of that name is taken as it ran there."""
    own = next((member for member in judged.attack.members if member.name == other.name), None)
    if judged.options.norm not in other.norms or (judged.options.target is not None and not other.targeted):
        return _inapplicable(name, question, f"{other.name} does not run under this threat")
    changes = {"save_adversarials": True} if own else {}
    try:
        return Comparison(name, question, other.name, judged, vary(judged, attack=own or other, **changes))
    except LeftOut as error:
        return _inapplicable(name, question, str(error))


def _with_other_budgets(judged: Plan) -> list[Comparison]:
    """Comparisons with other eps: more never raises accuracy, and without a bound accuracy is 0."""
    name, question, eps = "more eps", "Does more eps never raise accuracy?", judged.options.eps
    linf = judged.options.norm == "linf"
    most = 1.0 if linf else math.inf  # beyond 1 every pixel may take any value already
    smaller, larger = vary(judged, eps=eps / 2), vary(judged, eps=min(eps * 2, most))
    found = [
        Comparison(name, question, "half the eps", judged, smaller),
        Comparison(name, question, "this eps, seen from twice the eps", larger, judged),
    ]
    name, question = "unbounded", "Does accuracy fall to 0 when every pixel may take any value?"
    if judged.stochastic:
        why = "a stochastic model may be right by chance on any image: not decidable by this check"
        return [*found, _inapplicable(name, question, why)]
    shape = judged.data.read(judged.indices[:1]).images[0].shape
    unbounded = vary(judged, eps=1.0 if linf else math.sqrt(math.prod(shape)))
    return [*found, Comparison(name, question, "0 %", unbounded, judged, "floor")]


def _with_twice_the_work(judged: Plan) -> list[Comparison]:
    """Comparisons with twice the steps, draws and restarts, which must leave the result unchanged."""
    found = []
    for kind, question in (
        ("steps", "Do twice as many steps leave the result unchanged?"),
        ("draws", "Does averaging over twice as many draws leave the result unchanged?"),
        ("restarts", "Do twice as many restarts leave the result unchanged?"),
    ):
        name, doubled = f"twice the {kind}", twice(judged.attack, kind)
        if kind == "draws" and not judged.stochastic:
            found.append(_inapplicable(name, question, "a deterministic model has no draws"))
        elif doubled is None:
            found.append(_inapplicable(name, question, "the attack has no such parameter"))
        else:
            found.append(Comparison(name, question, name, judged, vary(judged, attack=doubled)))
    return found


def twice(attack: Attack, kind: str) -> Attack | None:
    """The attack with its steps, draws or restarts doubled, by its declaration; of a worst case, in white-box members.

    kind: "steps", "draws" or "restarts". None where there is nothing to double.
    """
    if attack.members:
        doubled = [(twice(member, kind) if member.knowledge == "white-box" else None) for member in attack.members]
        if not any(doubled):
            return None
        both = [new or old for new, old in zip(doubled, attack.members, strict=True)]
        return worst_case_over(both, attack.name, attack.arguments)
    names = getattr(attack.declaration, kind)
    changes = {name: 2 * attack.parameters[name] for name in names if name in attack.parameters}
    return with_parameters(attack, changes) if changes else None


def _with_frozen_noise(judged: Plan) -> Comparison:
    """The comparison on one frozen draw: an attack made for that draw must do as well as one made with the noise on."""
    name, question = "frozen noise", "Does an attack that knows the noise do at least as well on that noise?"
    if not judged.stochastic:
        return _inapplicable(name, question, "a deterministic model has no noise")
    if not can_freeze(judged.model.classifier):
        return _inapplicable(name, question, "the model draws from the global generators")
    against = "the attack made with the noise on, met with the same draw"
    return Comparison(name, question, against, vary(judged, noise=(FROZEN,)), judged, "same noise")


def _of_the_gradient(judged: Plan) -> Comparison:
    """The comparison of the analytic gradient with finite differences."""
    name, question = "direction", "Does the analytic gradient point where finite differences do?"
    if judged.attack.knowledge != "white-box":
        return _inapplicable(name, question, "the attack itself sees no gradients")
    if judged.no_gradient:
        return _inapplicable(name, question, f"the model gives no gradient ({judged.no_gradient})")
    if not can_freeze(judged.model.classifier):
        return _inapplicable(name, question, "the model draws from the global generators")
    return Comparison(name, question, "an exact gradient", judged, kind="direction")


def _decide(asked: Comparison, records: Mapping[str, RunRecord]) -> Check:
    """The verdict on a comparison, from accuracies per example."""
    if asked.upper is None:
        return Check(asked.name, asked.question, "not applicable", note=asked.note)
    if asked.lower is None:
        return _direction(asked, asked.upper)
    upper, lower = records[asked.upper.id], records[asked.lower.id]
    found, reference = upper.correct.mean(1), lower.correct.mean(1)
    if asked.kind == "floor":  # an image that is misclassified within eps needs no more
        found, reference = np.minimum(found, reference), np.zeros_like(found)
    elif asked.kind == "same noise":
        reference = _accuracy_on(asked.upper, lower)
    low, high = paired_interval(found - reference)
    verdict: Verdict = "fail" if low > TOLERANCE else "pass" if high <= TOLERANCE else "undecided"
    return Check(
        asked.name, asked.question, verdict, float(found.mean()), float(reference.mean()), low, high, len(found),
        asked.against, records=(upper.id, lower.id),
    )  # fmt: skip


def _accuracy_on(plan: Plan, record: RunRecord) -> NDArray[np.floating]:
    """The accuracy, for each example, of another run's adversarial images under a plan's noise."""
    labels = dict(zip(record.outcomes["index"], record.labels, strict=True))
    found = []
    for _, group in itertools.groupby(record.pictures(), key=lambda picture: picture.adversarial.shape):
        pictures = list(group)
        images = torch.from_numpy(np.stack([picture.adversarial for picture in pictures])).to(plan.options.device)
        indices = [picture.index for picture in pictures]
        predictions = grade(plan, images, indices, "grade").numpy()
        found += [float((row == labels[index]).mean()) for row, index in zip(predictions, indices, strict=True)]
    return np.array(found)


def _direction(asked: Comparison, judged: Plan) -> Check:
    """Whether the analytic gradient of the margin points where finite differences do (their cosine).

    SPSA's estimate from P pairs of Rademacher directions in d dimensions has an expected cosine of about
    (1 + (d - 1) / P)^-1/2 with an exact gradient. Noise is frozen, so that both see one function; of a glimpsing
    model's gradient modes the best one counts, for it needs but one that is right.
    """
    every = judged.options.gradient_mode in (None, STRONGEST)
    modes = judged.model.classifier.gradient_modes if every else (judged.options.gradient_mode,)
    cosines = {mode: _cosines(judged, mode) for mode in modes or (None,) if mode != "score-function"}
    mode, (found, expected) = max(cosines.items(), key=lambda item: float(item[1][0].mean()))
    low, high = paired_interval(found - expected)
    least = COSINE_SHARE * expected - expected
    verdict: Verdict = "fail" if high < least else "pass" if low >= least else "undecided"
    note = f"cosines; below {COSINE_SHARE * expected:.2f} the gradient points elsewhere"
    return Check(
        asked.name, asked.question, verdict, float(found.mean()), expected, low, high, len(found),
        asked.against, note + (f"; gradient mode {mode}" if mode else ""), unit="cosine",
    )  # fmt: skip


def _cosines(judged: Plan, mode: str | None) -> tuple[NDArray[np.floating], float]:
    """Cosines of analytic and estimated gradients, one per image, and what an exact gradient is expected to have."""
    still = vary(judged, noise=(FROZEN,)).noise_control if judged.stochastic else judged.noise_control
    rules = Rules(judged.options.seed, judged.classes, judged.chunk, noise_control=still)
    found: list[float] = []
    for batch in batches_by_shape(judged.data.read(judged.indices[:COSINE_IMAGES]), judged.chunk):
        images, labels = batch.images.to(judged.options.device), batch.labels.to(judged.options.device)
        oracle = ClassifierOracle(
            judged.classifier, images, batch.indices, rules, gradient_mode=mode, stream="direction"
        )
        analytic, _, _ = oracle.gradient(images, oracle.noise(), partial(objective, "margin", labels=labels))
        estimated = estimate(oracle, images, labels, None, pairs=COSINE_PAIRS, delta=COSINE_DELTA)
        found += _cosine(analytic, estimated).tolist()
        numbers = images[0].numel()
    return np.array(found), (1 + (numbers - 1) / COSINE_PAIRS) ** -0.5


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """(B,); 0 where either vector is 0, and where a gradient is no number."""
    first, second = first.flatten(1).double(), second.flatten(1).double()
    scale = (first.norm(dim=1) * second.norm(dim=1)).clamp_min(1e-300)
    return torch.nan_to_num((first * second).sum(1) / scale, nan=0.0)
