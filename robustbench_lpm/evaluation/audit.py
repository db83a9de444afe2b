"""The audit: does a result say how robust a model is, or only that an attack was blind? (protocol.md, section 5)

It judges one result, an attack or the worst case over several on one model, by comparing it with runs that must not be
stronger (another attack, twice the budget) or weaker (a larger eps). Comparisons are paired per example. A check fails
when the 95 % interval of the paired difference lies above one point, passes when it lies below, and is undecided
otherwise: more images would decide it.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_lpm import audits
from robustbench_lpm.attacks.losses import objective
from robustbench_lpm.attacks.spsa import estimate
from robustbench_lpm.audits import TOLERANCE, Audit, Check, Verdict
from robustbench_lpm.budgets import parse_eps
from robustbench_lpm.datasets.examples import batches_by_shape
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.evaluation.grading import predict
from robustbench_lpm.evaluation.machine import versions
from robustbench_lpm.evaluation.noise_control import FROZEN, can_freeze
from robustbench_lpm.evaluation.oracle import ClassifierOracle
from robustbench_lpm.evaluation.own_data import OwnData
from robustbench_lpm.evaluation.planning import FROM_PYTHON, STRONGEST, Plan, vary
from robustbench_lpm.evaluation.recording import finished_run, keeps_enough
from robustbench_lpm.evaluation.runner import prepare, run, untouched
from robustbench_lpm.evaluation.tasks import (
    Attack,
    Data,
    LeftOut,
    changed_parameters,
    resolve_attack,
    with_parameters,
    worst_case_over,
)
from robustbench_lpm.records import RunRecord
from robustbench_lpm.statistics import paired_interval
from robustbench_lpm.zoo import LoadedModel

BLACK_BOX = ("square", "transfer")
COSINE_IMAGES, COSINE_PAIRS, COSINE_DELTA = 32, 256, 1e-3
# Below this share of the cosine that an exact gradient would have, the gradient points elsewhere.
COSINE_SHARE = 0.5

Obtain = Callable[[Plan], RunRecord]  # run a plan, or read its finished record


def audit(
    model: str | nn.Module | LoadedModel,
    attack: str | Callable[..., Tensor] | Attack,
    dataset: str | OwnData | Data = "digits",
    *,
    eps: float | str | SupportsFloat,
    black_box: Sequence[str | Attack] = BLACK_BOX,
    out: Path | str | None = None,
    **options: Any,
) -> Audit:
    """Judge one result: whether it says how robust a model is, or only that the attack was blind.

    Args:
        model, attack, dataset, eps: as for `robustbench_lpm.evaluate`. With fewer than 195 images no difference can be
            bounded by one point, so that no check can pass.
        black_box: attacks without gradients, with which a white-box result is compared.
        out: where the records and the audit go; None writes nothing.
        options: the others of `evaluate` (norm, limit, draws, noise, gradient_mode, parameters, ...).

    Returns:
        The audit; `audit.verdict` is "pass", "fail" or "undecided", `audit.checks` hold the evidence.

    Raises:
        LpmbenchError: for anything that cannot be run as asked.
    """
    if parse_eps(eps, str(options.get("norm", "linf"))) == 0:
        raise LpmbenchError("An audit needs an eps above 0: without a budget there is nothing to judge.")
    folder = Path(out) if out is not None else None
    records: dict[str, RunRecord] = {}

    def obtain(plan: Plan) -> RunRecord:
        if plan.id not in records or not keeps_enough(records[plan.id], plan):
            finished = finished_run(plan, folder) if folder is not None else None
            records[plan.id] = finished or run(plan, folder)
        return records[plan.id]

    with untouched():
        found = judge(prepare(model, attack, dataset, eps=eps, **options), obtain, black_box=black_box)
    if folder is not None:
        audits.write(found, folder)
    return found


def judge(judged: Plan, obtain: Obtain, *, black_box: Sequence[str | Attack] = BLACK_BOX) -> Audit:
    """Every check of one result.

    judged: the result's plan. obtain: how records come about; it is asked for the judged one and for every run that it
    is compared with. black_box: attacks that see no gradients.
    """
    others = [resolve_attack(other) for other in black_box]
    if judged.stochastic:
        judged = vary(judged, save_adversarials=True)  # the frozen draw meets them again
    record = obtain(judged)
    checks = [
        *_against_others(judged, record, obtain, others),
        *_against_other_budgets(judged, record, obtain),
        *_against_twice_the_work(judged, record, obtain),
        _with_frozen_noise(judged, record, obtain),
        direction_check(judged),
    ]
    return Audit(
        record=record.id,
        folder_name=record.folder_name,
        model=record.model,
        attack=record.attack,
        checks=checks,
        command=_command(judged, others),
        versions=versions(),
    )


def _command(judged: Plan, black_box: Sequence[Attack]) -> str:
    """The command that repeats an audit: that of the judged run, and what it is compared with."""
    if judged.command().startswith(FROM_PYTHON):
        names = [other.name for other in black_box]
        return judged.command().replace(".evaluate(", ".audit(", 1)[:-1] + f", black_box={names})"
    words = [judged.command().replace("lpmbench attack --model", "lpmbench audit", 1)]
    known = {judged.attack.name, *(member.name for member in judged.attack.members)}  # their settings stand there
    for other in black_box:
        words.append(f"--black-box {shlex.quote(other.name)}")
        if other.name not in known:
            settings = changed_parameters(other).items()
            words += [f"--set {shlex.quote(f'{other.name}.{name}={value}')}" for name, value in settings]
    return " ".join(words)


def _against_others(judged: Plan, record: RunRecord, obtain: Obtain, black_box: Sequence[Attack]) -> list[Check]:
    """No attack that knows or does less may be stronger."""
    attack = judged.attack
    checks = [
        _not_weaker_than(name, question, judged, record, resolve_attack(other), obtain)
        for name, question, other in (
            ("iterated vs one step", "Is the attack at least as strong as a single step?", "fgsm"),
            ("attack vs noise", "Is the attack at least as strong as random noise of the same size?", "noise"),
        )
        if attack.name != other
    ]
    for other in black_box:
        transferred = other.surrogates is not None
        name = "white-box vs transfer" if transferred else "white-box vs black-box"
        question = (
            "Is the attack at least as strong as one made on other models?"
            if transferred
            else "Is an attack with gradients at least as strong as one without?"
        )
        if attack.knowledge != "white-box":
            checks.append(_not_applicable(name, question, "the attack itself sees no gradients"))
        else:
            checks.append(_not_weaker_than(name, question, judged, record, other, obtain))
    return checks


def _not_weaker_than(name: str, question: str, judged: Plan, record: RunRecord, other: Attack, obtain: Obtain) -> Check:
    """Of a worst case's members the one of that name is taken as it ran there; left out where it cannot be made."""
    own = next((member for member in judged.attack.members if member.name == other.name), None)
    if judged.norm not in other.norms or (judged.target is not None and not other.targeted):
        return _not_applicable(name, question, f"{other.name} does not run under this threat")
    changes = {"save_adversarials": True} if own else {}
    try:
        plan = vary(judged, attack=own or other, **changes)
    except LeftOut as error:
        return _not_applicable(name, question, str(error))
    return compare(name, question, record, obtain(plan), against=other.name)


def _against_other_budgets(judged: Plan, record: RunRecord, obtain: Obtain) -> list[Check]:
    """More eps never raises accuracy, and without a bound nothing is left of it."""
    name, question = "more eps", "Does more eps never raise accuracy?"
    most = 1.0 if judged.norm == "linf" else math.inf  # beyond 1 every pixel may take any value already
    smaller, larger = obtain(vary(judged, eps=judged.eps / 2)), obtain(vary(judged, eps=min(judged.eps * 2, most)))
    checks = [
        compare(name, question, record, smaller, against="half the eps"),
        compare(name, question, larger, record, against="this eps, seen from twice the eps"),
    ]
    name, question = "unbounded", "Does accuracy fall to 0 when every pixel may take any value?"
    if judged.stochastic:
        why = "a stochastic model may be right by chance on any image: not decidable by this check"
        return [*checks, _not_applicable(name, question, why)]
    shape = judged.data.read(judged.indices[:1]).images[0].shape
    free = 1.0 if judged.norm == "linf" else math.sqrt(math.prod(shape))
    unbounded = obtain(vary(judged, eps=free))
    # What falls within eps needs no more than that: where the result is 0 % already, nothing can be too high.
    standing = np.minimum(unbounded.correct.mean(1), record.correct.mean(1))
    return [*checks, _decided(name, question, standing, None, "0 %", (unbounded.id, record.id))]


def _against_twice_the_work(judged: Plan, record: RunRecord, obtain: Obtain) -> list[Check]:
    """A result that falls when the attack works longer was not the end of it."""
    checks = []
    for kind, question in (
        ("steps", "Do twice as many steps leave the result unchanged?"),
        ("draws", "Does averaging over twice as many draws leave the result unchanged?"),
        ("restarts", "Do twice as many restarts leave the result unchanged?"),
    ):
        name, doubled = f"twice the {kind}", twice(judged.attack, kind)
        if kind == "draws" and not judged.stochastic:
            checks.append(_not_applicable(name, question, "a deterministic model has no draws"))
        elif doubled is None:
            checks.append(_not_applicable(name, question, "the attack has no such parameter"))
        else:
            checks.append(compare(name, question, record, obtain(vary(judged, attack=doubled)), against=name))
    return checks


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


def _with_frozen_noise(judged: Plan, record: RunRecord, obtain: Obtain) -> Check:
    """On one frozen draw of each image, an attack made for that draw must do as well as one made with the noise on."""
    name, question = "frozen noise", "Does an attack that knows the noise do at least as well on that noise?"
    if not judged.stochastic:
        return _not_applicable(name, question, "a deterministic model has no noise")
    if not can_freeze(judged.model.classifier):
        return _not_applicable(name, question, "the model draws from the global generators")
    plan = vary(judged, noise=[FROZEN])
    frozen, unaware = obtain(plan), _accuracy_on(plan, record)
    against = "the attack made with the noise on, met with the same draw"
    return _decided(name, question, frozen.correct.mean(1), unaware, against, (frozen.id, record.id))


def _accuracy_on(plan: Plan, record: RunRecord) -> NDArray[np.floating]:
    """The accuracy, for each example, of another run's adversarial images under a plan's noise."""
    labels = dict(zip(record.outcomes["index"], record.labels, strict=True))
    found = []
    for _, group in itertools.groupby(record.pictures(), key=lambda picture: picture.adversarial.shape):
        pictures = list(group)
        images = torch.from_numpy(np.stack([picture.adversarial for picture in pictures])).to(plan.device)
        indices = [picture.index for picture in pictures]
        predictions = predict(
            plan.classifier, images, indices, seed=plan.seed, purpose="grade", draws=plan.draws, chunk=plan.chunk,
            noise_control=plan.noise_control,
        ).numpy()  # fmt: skip
        found += [float((row == labels[index]).mean()) for row, index in zip(predictions, indices, strict=True)]
    return np.array(found)


def compare(name: str, question: str, judged: RunRecord, reference: RunRecord, *, against: str) -> Check:
    """Whether a run's accuracy does not exceed that of another by more than a point, example by example."""
    return _decided(
        name, question, judged.correct.mean(1), reference.correct.mean(1), against, (judged.id, reference.id)
    )


def _decided(
    name: str,
    question: str,
    judged: NDArray[np.floating],
    reference: NDArray[np.floating] | None,
    against: str,
    records: tuple[str, ...],
) -> Check:
    """A verdict from accuracies per example; without a reference, from those and 0."""
    lower = reference if reference is not None else np.zeros_like(judged)
    low, high = paired_interval(judged - lower)
    verdict: Verdict = "fail" if low > TOLERANCE else "pass" if high <= TOLERANCE else "undecided"
    return Check(
        name, question, verdict, float(judged.mean()), float(lower.mean()), low, high, len(judged), against,
        records=records,
    )  # fmt: skip


def _not_applicable(name: str, question: str, why: str) -> Check:
    return Check(name, question, "not applicable", note=why)


def direction_check(judged: Plan) -> Check:
    """Whether the analytic gradient of the margin points where finite differences do (their cosine).

    SPSA's estimate from P pairs of Rademacher directions in d dimensions has an expected cosine of about
    (1 + (d - 1) / P)^-1/2 with an exact gradient. Noise is frozen, so that both see one function; of a glimpsing
    model's gradient modes the best one counts, for it needs but one that is right.
    """
    name, question = "direction", "Does the analytic gradient point where finite differences do?"
    if judged.attack.knowledge != "white-box":
        return _not_applicable(name, question, "the attack itself sees no gradients")
    if judged.no_gradient:
        return _not_applicable(name, question, f"the model gives no gradient ({judged.no_gradient})")
    if not can_freeze(judged.model.classifier):
        return _not_applicable(name, question, "the model draws from the global generators")
    every = judged.gradient_mode in (None, STRONGEST)
    modes = judged.model.classifier.gradient_modes if every else (judged.gradient_mode,)
    cosines = {mode: _cosines(judged, mode) for mode in modes or (None,) if mode != "score-function"}
    mode, (found, expected) = max(cosines.items(), key=lambda item: float(item[1][0].mean()))
    low, high = paired_interval(found - expected)
    least = COSINE_SHARE * expected - expected
    verdict: Verdict = "fail" if high < least else "pass" if low >= least else "undecided"
    note = f"cosines; below {COSINE_SHARE * expected:.2f} the gradient points elsewhere"
    return Check(
        name, question, verdict, float(found.mean()), expected, low, high, len(found),
        "an exact gradient", note + (f"; gradient mode {mode}" if mode else ""), unit="cosine",
    )  # fmt: skip


def _cosines(judged: Plan, mode: str | None) -> tuple[NDArray[np.floating], float]:
    """Cosines of analytic and estimated gradients, one per image, and what an exact gradient is expected to have."""
    found: list[float] = []
    examples = judged.data.read(judged.indices[:COSINE_IMAGES])
    numbers = 1
    for batch in batches_by_shape(examples):
        for start in range(0, len(batch.images), judged.chunk):
            part = slice(start, start + judged.chunk)
            images, labels = batch.images[part].to(judged.device), batch.labels[part].to(judged.device)
            still = vary(judged, noise=[FROZEN]).noise_control if judged.stochastic else judged.noise_control
            oracle = ClassifierOracle(
                judged.classifier, images, batch.indices[part], seed=judged.seed, classes=judged.classes,
                chunk=judged.chunk, gradient_mode=mode, noise_control=still, stream="direction",
            )  # fmt: skip
            losses = partial(objective, "margin", labels=labels)
            analytic, _, _ = oracle.gradient(images, oracle.noise(), losses)
            estimated = estimate(oracle, images, labels, None, pairs=COSINE_PAIRS, delta=COSINE_DELTA)
            found += _cosine(analytic, estimated).tolist()
            numbers = images[0].numel()
    return np.array(found), (1 + (numbers - 1) / COSINE_PAIRS) ** -0.5


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """(B,); 0 where either vector is 0, and where a gradient is no number."""
    first, second = first.flatten(1).double(), second.flatten(1).double()
    scale = (first.norm(dim=1) * second.norm(dim=1)).clamp_min(1e-300)
    return torch.nan_to_num((first * second).sum(1) / scale, nan=0.0)
