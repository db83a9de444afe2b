"""The audit: checks whether a result measures how robust a model is, or how weak an attack is (docs/protocol.md).

It judges one run by comparing it with runs that must not be stronger (another attack, twice the budget) or weaker (a
larger eps). `comparisons` lists them, `runs_of` gives the runs that they need, and `looks` decides from the records of
those. Comparisons are paired per example. A check fails where the 95 % interval of the paired difference is above one
point, passes where it is below two, and is undecided otherwise: more images or draws would decide it.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from robustbench_lpm.norms import farthest
from robustbench_lpm.options import STRONGEST
from robustbench_lpm.protocol.grading import grade
from robustbench_lpm.protocol.noise_control import FROZEN, can_freeze
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from robustbench_lpm.protocol.plan import FROM_PYTHON, Plan, make_plan, needs_gradient, vary
from robustbench_lpm.records.audits import BOUND, TOLERANCE, Audit, Check, Verdict
from robustbench_lpm.records.runs import UNSTEADY, RunRecord
from robustbench_lpm.registry.admission import LARGE
from robustbench_lpm.registry.tasks import (
    Attack,
    LeftOut,
    changed_parameters,
    resolve_attack,
    with_parameters,
    worst_case_over,
)
from robustbench_lpm.statistics import paired_interval, ratio_interval
from robustbench_lpm.versions import versions

BLACK_BOX = ("square", "transfer")
# Of the gradients that are compared: images, and of large ones, where an attack costs less than the differences of 32;
# draws for each analytic one, and finite differences. Noise drowns small differences: those of stochastic models are as
# long as an attack's steps.
COSINE_IMAGES, COSINE_LARGE_IMAGES, COSINE_DRAWS = 32, 8, 32
STILL, NOISY = (128, 1e-3), (512, 0.05)  # pairs, and by how much a pixel changes
STRONG = "momentum"  # what is judged next where twice the work of a shorter attack takes more
MOST_LOOKS = 6  # of an audit that goes on until all is decided: at most 32 times the images, or the work
MORE_DRAWS = 4  # times as many are graded where they are most of the chance
TWICE = {f"twice the {kind}": kind for kind in ("steps", "draws", "restarts")}  # the names of checks
COSINE_LEAST = 0.5  # below it the gradient points elsewhere


@dataclass(frozen=True)
class Comparison:
    """One question of an audit: is accuracy under the run `upper` no higher than under the run `lower`?

    kind: "paired" compares the two image by image; "floor" checks that no image is robust under both; "same noise"
    takes the adversarial examples of `lower` under the noise of `upper`; "steady" looks at all runs; "direction"
    compares gradients of `upper`, not runs. note: why the question does not apply, with kind "".
    """

    name: str
    question: str
    against: str = ""
    upper: Plan | None = None
    lower: Plan | None = None
    kind: Literal["paired", "floor", "same noise", "steady", "direction", ""] = "paired"
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
    return [*several, _with_frozen_noise(judged), _with_itself(judged), _of_the_gradient(judged)]


def runs_of(judged: Plan, wanted: Sequence[Comparison]) -> list[Plan]:
    """The runs that an audit needs, each once, the judged one first; of equal runs that with the most images kept."""
    found: dict[str, Plan] = {}
    for plan in (judged, *(plan for comparison in wanted for plan in comparison.runs)):
        if plan.id not in found or plan.options.save_adversarials:
            found[plan.id] = plan
    return list(found.values())


def looks(
    judged: Plan, black_box: Sequence[Attack], obtain: Callable[[Plan], RunRecord], *, until_decided: bool = False
) -> Iterator[tuple[Plan, Audit]]:
    """The run that is judged and its audit; then, if they are to be decided, those of stronger attacks, of more graded
    draws or on more images.

    obtain: gives the record of a run. A check that is looked at again may decide wrongly each time: so each look halves
    the chance of that, and all together keep it below 5 %, twice that of a single look. A check that has passed is not
    looked at again, unless a stronger attack could change that; gradients are compared once. Where twice the work takes
    more, nothing more is asked before the stronger attack is judged: that audit holds fewer checks.
    """
    command = _command(judged, black_box, until_decided=until_decided)
    most, kept = MOST_LOOKS if until_decided else 1, dict[tuple[str, str], Check]()  # by name and what it compares with
    records, whole = dict[str, RunRecord](), set[str]()  # those with all of their images
    first = judged.attack
    for look in range(most):
        several = comparisons(judged, black_box)
        if judged.attack.name != first.name:
            question = "Is the attack at least as strong as the one that was judged before it?"
            several = [_not_weaker_than("attack vs first attack", question, judged, first), *several]
        wanted = {(each.name, each.against): each for each in several}
        decided: dict[tuple[str, str], Check] = {}
        open_ones = [each for key, each in wanted.items() if key not in kept]
        for asked in _in_turn(judged, open_ones, several=look < most - 1):
            for run in runs_of(judged, asked):
                if run.id not in records or (run.options.save_adversarials and run.id not in whole):
                    records[run.id] = obtain(run)
                    whole |= {run.id} if run.options.save_adversarials else set()
            decided |= {(each.name, each.against): _decide(each, records, 1 - 0.05 / 2**look) for each in asked}
            further = _further(judged, list(decided.values()), records) if until_decided else None
            if further is not None and further.attack is not judged.attack:
                break
        record = records[judged.id]
        checks = [check for key in wanted if (check := kept.get(key) or decided.get(key))]
        yield judged, Audit(record.id, record.folder_name, record.model, record.attack, checks, command, versions())
        if further is None:
            return
        kept |= {key: check for key, check in decided.items() if check.verdict == "pass" or not check.decides}
        stronger = further.attack is not judged.attack
        # Another attack may be weaker than the one before: all that it is compared with is asked again.
        another = further.attack.name != judged.attack.name
        holds = partial(_still_holds, judged=None if another else judged, stronger=stronger)
        kept = {key: check for key, check in kept.items() if key in wanted and holds(wanted[key])}
        judged = auditable(further)


def _in_turn(judged: Plan, wanted: Sequence[Comparison], *, several: bool) -> list[list[Comparison]]:
    """Comparisons in the order in which they are made. If `several`: other attacks, which a stronger one need not meet
    again, then twice the work, one by one, then the rest."""
    if not several:
        return [list(wanted)]
    others = [each for each in wanted if each.lower and each.lower.attack.name != judged.attack.name]
    twice_the_work = [each for each in wanted if each.name in TWICE]
    rest = [each for each in wanted if each not in others and each not in twice_the_work]
    return [others, *([each] for each in twice_the_work), rest]


def _still_holds(passed: Comparison, *, judged: Plan | None, stronger: bool) -> bool:
    """Whether a check that has passed does so with more images and, if `stronger`, a stronger attack: where the judged
    run may not be too weak, a stronger one is not. All runs of an audit tell whether the model is steady."""
    if passed.kind == "steady":
        return False
    about_judged = judged is not None and passed.upper is judged and passed.name not in TWICE
    return not stronger or about_judged or passed.kind in ("floor", "direction", "")


def _further(judged: Plan, checks: Sequence[Check], records: Mapping[str, RunRecord]) -> Plan | None:
    """The run that may decide what an audit has not: more steps, draws or restarts where twice as many take more; for
    the rest more graded draws where those are most of the chance, else more images. None where all is decided, or
    nothing is left to spend."""
    failing, undecided = (
        [check for check in checks if check.decides and check.verdict == verdict] for verdict in ("fail", "undecided")
    )
    if any(check.name not in TWICE for check in failing):
        return None
    images, draws = len(judged.indices), judged.options.draws
    more = images
    if any(_chance_of_draws(check, records) > 0.5 for check in undecided):
        draws *= MORE_DRAWS
    elif undecided:  # a rest smaller than what has been judged is not worth another look
        more = 2 * images if 3 * images <= len(judged.data) else len(judged.data)
    pushed = failing
    spent = (more, draws) == (images, judged.options.draws)
    if spent:  # nothing else decides it
        pushed = failing + [check for check in undecided if check.name in TWICE and _excess(check) > 0]
    if spent and not pushed:
        return None
    attack = judged.attack
    if pushed:  # one at a time, else the work would grow by their product
        attack = _strong(judged) or twice(attack, TWICE[max(pushed, key=_excess).name]) or attack
    return make_plan(judged.model, attack, judged.data, replace(judged.asked, limit=more, draws=draws))


def _chance_of_draws(check: Check, records: Mapping[str, RunRecord]) -> float:
    """The share of a difference's variance, as `paired_interval` has it, that is the chance of the graded draws."""
    if len(check.records) < 2 or not {*check.records} <= {*records}:
        return 0.0
    upper, lower = (records[name].correct.astype(float) for name in check.records)
    if upper.shape != lower.shape or upper.shape[1] < 2:
        return 0.0
    each = upper - lower  # draw k of an image is the same noise in both
    by_chance = (each.var(axis=1, ddof=1) / each.shape[1]).sum()
    return float(by_chance / (np.square(each.mean(axis=1)).sum() + 1))


def _strong(judged: Plan) -> Attack | None:
    """The momentum method, where the judged run is a gradient attack that spends less. Restarts of a short attack find
    a little more each time they are doubled, and so never end; it ends the question (decision 18)."""
    attack, strong, options = judged.attack, resolve_attack(STRONG), judged.options
    if attack.members or attack.name == STRONG or not needs_gradient(attack) or options.norm not in strong.norms:
        return None
    spent, cost = (each.cost(stochastic=judged.stochastic, norm=options.norm) for each in (attack, strong))
    return strong if spent and cost and spent.backwards < cost.backwards else None


def _excess(check: Check) -> float:
    return (check.judged or 0.0) - (check.reference or 0.0)


def _command(judged: Plan, black_box: Sequence[Attack], *, until_decided: bool) -> str:
    """The command that repeats an audit: that of the first run that it judged, and the black-box attacks."""
    if judged.command().startswith(FROM_PYTHON):
        names = [other.name for other in black_box]
        further = ", until_decided=True" * until_decided
        return judged.command().replace(".evaluate(", ".audit(", 1)[:-1] + f", black_box={names}{further})"
    words = [judged.command().replace("lpmbench attack --model", "lpmbench audit", 1)]
    known = {judged.attack.name, *(member.name for member in judged.attack.members)}  # whose settings are in it
    for other in black_box:
        words.append(f"--black-box {shlex.quote(other.name)}")
        if other.name not in known:
            settings = changed_parameters(other).items()
            words += [f"--set {shlex.quote(f'{other.name}.{name}={value}')}" for name, value in settings]
    return " ".join([*words, *["--until-decided"] * until_decided])


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
    norm = judged.options.norm
    most = 1.0 if norm == "linf" else math.inf  # beyond 1 every pixel may take any value already
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
    unbounded = vary(judged, eps=farthest(norm, math.prod(shape)))
    return [*found, Comparison(name, question, "0 %", unbounded, judged, "floor")]


def _with_twice_the_work(judged: Plan) -> list[Comparison]:
    """Comparisons with twice the steps, draws and restarts, which must leave the result unchanged."""
    found = []
    for kind, question in (
        ("steps", "Do twice as many steps leave the result unchanged?"),
        ("draws", "Does averaging over twice as many draws leave the result unchanged?"),
        ("restarts", "Do twice as many restarts leave the result unchanged?"),
    ):
        name, doubled = next(name for name, of in TWICE.items() if of == kind), twice(judged.attack, kind)
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


def _with_itself(judged: Plan) -> Comparison:
    """The comparison of a model's answers with those that it gives when it was asked nothing before."""
    question = "Are answers the same, whatever was asked before?"
    return Comparison("same answers", question, "a fresh copy", judged, kind="steady")


def _of_the_gradient(judged: Plan) -> Comparison:
    """The comparison of the analytic gradient with finite differences."""
    name, question = "direction", "Does the analytic gradient point where finite differences do?"
    if judged.attack.knowledge != "white-box":
        return _inapplicable(name, question, "the attack itself sees no gradients")
    if judged.no_gradient:
        return _inapplicable(name, question, f"the model gives no gradient ({judged.no_gradient})")
    return Comparison(name, question, "an exact gradient", judged, kind="direction")


def _decide(asked: Comparison, records: Mapping[str, RunRecord], confidence: float) -> Check:
    """The verdict on a comparison, from accuracies per example."""
    if asked.upper is None:
        return Check(asked.name, asked.question, "not applicable", note=asked.note)
    if asked.kind == "steady":
        return _steady(asked, list(records.values()))
    if asked.lower is None:
        return _direction(asked, asked.upper)
    upper, lower = records[asked.upper.id], records[asked.lower.id]
    found, reference = upper.correct.mean(1), lower.correct.mean(1)
    if asked.kind == "floor":  # an image that is misclassified within eps needs no more
        found, reference = np.minimum(found, reference), np.zeros_like(found)
    elif asked.kind == "same noise":
        reference = _accuracy_on(asked.upper, lower)
    low, high = paired_interval(found - reference, confidence)
    verdict = _verdict(low, high)
    return Check(
        asked.name, asked.question, verdict, float(found.mean()), float(reference.mean()), low, high, len(found),
        asked.against, _told_margin(found - reference, confidence), records=(upper.id, lower.id),
    )  # fmt: skip


def _verdict(low: float, high: float) -> Verdict:
    return "fail" if low > TOLERANCE else "pass" if high <= BOUND else "undecided"


def _told_margin(differences: NDArray[np.floating], confidence: float) -> str:
    """How many images would decide a comparison that is not decided, if they differed as often as these."""
    if _verdict(*paired_interval(differences, confidence)) != "undecided":
        return ""
    for times in 2 ** np.arange(1, 8):
        if _verdict(*paired_interval(np.tile(differences, times), confidence)) != "undecided":
            return f"about {times * len(differences)} images like these would decide it"
    return f"more than {128 * len(differences)} images like these would not decide it"


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


def _steady(asked: Comparison, records: Collection[RunRecord]) -> Check:
    """The share of an audit's runs in which the model answered the same whatever it had been asked before."""
    unsteady = [record for record in records if not record.steady]
    share = 1 - len(unsteady) / len(records)
    verdict: Verdict = "fail" if unsteady else "pass"
    note = next((note for record in unsteady for note in record.notes if note.startswith(UNSTEADY)), "")
    images = max(len(record.outcomes) for record in records)
    return Check(
        asked.name, asked.question, verdict, share, 1.0, share - 1, share - 1, images, asked.against, note,
        records=tuple(record.id for record in unsteady),
    )  # fmt: skip


def _direction(asked: Comparison, judged: Plan) -> Check:
    """Whether the analytic gradient of the expected margin points where finite differences do (their cosine).

    Both are means over noise, and noisy: their cosine would say little. So each is estimated twice, independently: of
    the products of two estimates, noise leaves the mean alone, and the cosine of the means is a ratio of those. Of a
    glimpsing model's gradient modes the best one counts, for it needs but one that is right.
    """
    every = judged.options.gradient_mode in (None, STRONGEST)
    modes = judged.model.classifier.gradient_modes if every else (judged.options.gradient_mode,)
    found = _products(judged, [mode for mode in modes or (None,) if mode != "score-function"])
    cosines = {mode: ratio_interval(products, _cosine_of_means) for mode, products in found.items()}
    mode, (cosine, low, high) = max(cosines.items(), key=lambda item: item[1][0])
    verdict: Verdict = "fail" if high < COSINE_LEAST else "pass" if low >= COSINE_LEAST else "undecided"
    note = f"below {COSINE_LEAST:.1f} the gradient points elsewhere; evidence, no reason to fail"
    return Check(
        asked.name, asked.question, verdict, cosine, 1.0, low - 1, high - 1, len(found[mode]),
        asked.against, note + (f"; gradient mode {mode}" if mode else ""), unit="cosine",
    )  # fmt: skip


def _cosine_of_means(products: NDArray[np.floating]) -> NDArray[np.floating]:
    """Cosines (...,) from sums of products (..., 3), within [-1, 1]; 0 where a gradient vanishes.

    Where noise leaves nothing of an estimate's length, it may be anything: 1 where the product is positive.
    """
    both, analytic, estimated = np.moveaxis(products, -1, 0)
    lengths = np.sqrt(np.maximum(analytic, 0) * np.maximum(estimated, 0))
    lost = lengths == 0
    return np.where(lost, np.sign(both), np.clip(both / np.where(lost, 1, lengths), -1, 1))


def _products(judged: Plan, modes: Sequence[str | None]) -> dict[str | None, NDArray[np.floating]]:
    """For each image products of gradients, (n, 3): analytic by estimated, and both by another estimate of themselves.

    Each gradient is divided by its length, so that every image counts alike. For a deterministic model the last is
    known: SPSA's estimate from P pairs of directions in d dimensions is on average (1 + (d - 1) / P)^1/2 too long.
    """
    found: dict[str | None, list[Tensor]] = {mode: [] for mode in modes}
    (pairs, delta), draws = (NOISY, COSINE_DRAWS) if judged.stochastic else (STILL, 1)
    rules = Rules(judged.options.seed, judged.classes, judged.chunk, noise_control=judged.noise_control)
    height, width = judged.data.read(judged.indices[:1]).images[0].shape[1:]
    count = COSINE_LARGE_IMAGES if height * width >= LARGE else COSINE_IMAGES
    for batch in batches_by_shape(judged.data.read(judged.indices[:count]), judged.chunk):
        images, labels = batch.images.to(judged.options.device), batch.labels.to(judged.options.device)
        losses = partial(objective, "margin", labels=labels)
        oracle = partial(ClassifierOracle, judged.classifier, images, batch.indices, rules)
        asked = oracle(stream="differences")
        estimated = [_unit(estimate(asked, images, labels, None, pairs=pairs, delta=delta)) for _ in range(2)]
        length = (estimated[0] * estimated[1]).sum(1)
        if not judged.stochastic:
            length = torch.full_like(length, 1 / (1 + (images[0].numel() - 1) / pairs))
        for mode, products in found.items():
            asked = oracle(gradient_mode=mode, stream="direction")
            analytic = [_unit(asked.gradient(images, asked.noise(draws), losses)[0]) for _ in range(2)]
            both = ((analytic[0] + analytic[1]) * (estimated[0] + estimated[1])).sum(1) / 4
            products.append(torch.stack([both, (analytic[0] * analytic[1]).sum(1), length], dim=1).cpu())
    return {mode: torch.cat(products).numpy() for mode, products in found.items()}


def _unit(gradients: Tensor) -> Tensor:
    """(B, numbers) in float64, of length 1; 0 where a gradient is 0 or no number."""
    flat = torch.nan_to_num(gradients.flatten(1).double(), nan=0.0, posinf=0.0, neginf=0.0)
    return flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-300)
