"""What single attacks promise: their budgets, their losses, where they push, and whose random numbers they use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.attacks.apgd import _Memory, _Sparse, apgd, checkpoints, sparse_checkpoints
from robustbench_lpm.attacks.autoattack_adapter import autoattack_rand, autoattack_standard
from robustbench_lpm.attacks.gaze import centre_of, gaze
from robustbench_lpm.attacks.losses import objective
from robustbench_lpm.attacks.square import side_at
from robustbench_lpm.attacks.transfer import transfer
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.norms import Norm, uniform_in_ball
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.tasks import resolve_attack, resolve_data
from tests.classifiers import Linear, NoisyLinear

WEIGHT = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(1))
IMAGES = 0.3 + 0.4 * torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(2))
LABELS = torch.zeros(3, dtype=torch.long)


def oracle_of(network: nn.Module | Classifier, images: Tensor = IMAGES, classes: int = 2) -> ClassifierOracle:
    classifier = network if isinstance(network, Classifier) else Classifier(network)
    return ClassifierOracle(classifier, images, range(len(images)), Rules(0, classes, 64))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_standard_autoattack_stays_within_its_cost(norm: Norm) -> None:
    class TwelveClasses(Linear):
        def forward(self, images: Tensor) -> Tensor:
            margin = self.margin(images)[:, None]
            return torch.cat([margin + 50, *(margin * 0.1 * k for k in range(11))], dim=1)

    oracle = oracle_of(TwelveClasses(WEIGHT), classes=12)
    autoattack_standard(oracle, IMAGES, LABELS, norm=norm, eps=0.05, steps=3, queries=4)
    promised = resolve_attack(autoattack_standard, parameters={"steps": 3, "queries": 4}).cost(
        stochastic=False, norm=norm
    )
    assert promised is not None
    # No image is misclassified, so FAB never draws an iterate back: one pass tells its label and its gradient.
    assert oracle.ledger.forwards.tolist() == [promised.forwards + promised.choices - 9 * (3 - 1)] * 3
    assert oracle.ledger.backwards.tolist() == [promised.backwards] * 3


def test_a_misclassified_image_keeps_that_iterate() -> None:
    """With a deterministic classifier, whatever happens later to the other images of its batch."""
    margins = (IMAGES * WEIGHT).flatten(1).sum(1)
    model = Linear(WEIGHT, bias=-float(margins.sort().values[1]))  # one image is wrong, one on the edge, one is right
    reach = 0.01 * float(WEIGHT.abs().sum())
    for early_stop in (True, False):
        found = apgd(
            oracle_of(model), IMAGES, LABELS, norm="linf", eps=0.01, steps=10, loss="margin", early_stop=early_stop
        )
        misclassified = model(found).argmax(1) == 1
        assert torch.equal(misclassified, margins + model.bias - reach < 0)


def test_the_step_size_is_looked_at_where_the_paper_says() -> None:
    """p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), for 100 steps."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_in_l1_the_ball_shrinks_and_the_checkpoints_start_again() -> None:
    """The radius is 3 eps, 2 eps and eps for 30, 30 and 40 % of the steps; periods are 4 % of each."""
    assert sparse_checkpoints([0, 300, 600, 1000]) == [
        *range(12, 300, 12), *range(612 - 300, 600, 12), *range(616, 1000, 16),
    ]  # fmt: skip
    assert sparse_checkpoints([0, 1, 2, 4]) == [3]


def test_in_l1_steps_become_sparser_and_shorter() -> None:
    """The share of the pixels is 1 / 1.5 of those of the best iterate; without progress steps shrink by 1.5."""
    originals = torch.full((2, 1, 4, 4), 0.5)
    memory = _Sparse.at(originals + 0.1, 9.0)
    memory.begin(originals, 4.0)  # within the ball: all 16 pixels
    assert memory.share.tolist() == pytest.approx([1 / 1.5] * 2)
    memory.best[0, 0, 0] = 0.5  # 12 pixels remain, of 16
    stuck = memory.look(period=1, rho=0.75, originals=originals, radius=4.0)
    assert stuck.tolist() == [True, False]
    assert memory.step_size.tolist() == pytest.approx([4.0, 4.0 / 1.5])
    assert memory.share.tolist() == pytest.approx([12 / 24, 16 / 24])
    for _ in range(9):
        memory.look(period=1, rho=0.75, originals=originals, radius=4.0)
    assert memory.step_size.tolist() == pytest.approx([0.4, 0.4])  # a tenth of the radius


@pytest.mark.parametrize(("losses", "halved"), [
    ([5, 4, 3, 2, 1], False),
    ([5, 4, 3, 4, 3.5], False),  # 3 of 4 steps are improvements, no fewer than rho
    ([5, 4, 3, 3, 3.5], True),  # 2 of 4: the start is none
    ([5, 6, 7, 8, 4], True),  # 1 of 4, though it is the best
    ([1, 5, 4, 3, 2], True),  # 3 of 4, but none is better than the start (condition 2)
])  # fmt: skip
def test_the_first_checkpoint_is_that_of_the_paper(losses: list[float], halved: bool) -> None:
    """Conditions 1 and 2 of section 3.1, with w_0 = 0: eta and f_max are compared with those of the start."""
    start = torch.zeros(1, 1, 1, 1)
    memory = _Memory.at(start, step_size=1.0)
    for step, loss in enumerate(losses):
        memory.note(start, torch.tensor([float(loss)]), first=step == 0)
    assert memory.look(period=4, rho=0.75, originals=start, radius=1.0).tolist() == [halved]
    assert memory.step_size.tolist() == [0.5 if halved else 1.0]
    assert memory.best_loss.tolist() == [min(losses)]


def test_squares_shrink_as_the_paper_says() -> None:
    sides = [side_at(number, 10_000, 0.8, torch.Size([100, 100]), "linf") for number in (0, 11, 51, 8001)]
    assert sides == [round(math.sqrt(0.8 / 2**k) * 100) for k in (0, 1, 2, 9)]
    assert side_at(9, 10, 0.8, torch.Size([100, 100]), "linf") == sides[-1]  # scaled to the budget


def test_the_ratio_of_logits_is_that_of_the_paper() -> None:
    """Croce and Hein 2020, equations 6 and 7, by hand: (4 - 3) / (4 - 2), and (4 - 1) / (4 - (2 + 1) / 2)."""
    logits = torch.tensor([[[4.0, 1.0, 3.0, 2.0]]])
    label, target = torch.tensor([0]), torch.tensor([1])
    assert objective("dlr", logits, label).item() == pytest.approx(0.5)
    assert objective("dlr", logits, label, target).item() == pytest.approx(1.2)
    scaled = objective("dlr", 1000 * logits + 7, label)
    assert scaled.item() == pytest.approx(0.5)


@pytest.mark.parametrize(("classes", "target", "needed"), [(2, None, "3 classes"), (3, torch.tensor([1]), "4 classes")])
def test_the_ratio_of_logits_needs_enough_classes(classes: int, target: Tensor | None, needed: str) -> None:
    with pytest.raises(LpmbenchError, match=needed):
        objective("dlr", torch.zeros(1, 1, classes), torch.tensor([0]), target)


def test_a_transfer_attack_asks_only_the_surrogates_and_chooses_on_the_target() -> None:
    """The first surrogate is the target's opposite, the second agrees with it: that one's images are kept."""
    model = Linear(WEIGHT, bias=5.0)
    target = ClassifierOracle(Classifier(model), IMAGES, range(3), Rules(0, 2, 64))
    surrogates = [oracle_of(Linear(-WEIGHT)), oracle_of(Linear(WEIGHT, bias=1.0))]
    found = transfer(target, IMAGES, LABELS, surrogates=surrogates, norm="linf", eps=0.05, steps=4)
    worst = model.margin(IMAGES) - 0.05 * WEIGHT.abs().sum()
    assert torch.allclose(model.margin(found), worst, atol=1e-5)
    assert target.ledger.forwards.tolist() == [2, 2, 2]
    assert target.ledger.backwards.tolist() == [0, 0, 0]
    assert all(surrogate.ledger.backwards.tolist() == [4, 4, 4] for surrogate in surrogates)


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_the_centre_of_an_object_on_a_plain_ground(background: float) -> None:
    image = torch.full((1, 2, 8, 8), background)
    image[:, :, 1:3, 5:7] = 0.5
    assert torch.allclose(centre_of(image), torch.tensor([[0.5, -0.5]]))  # x right, y down
    assert torch.equal(centre_of(torch.full((1, 1, 4, 4), 0.3)), torch.zeros(1, 2))


def digits(count: int) -> tuple[Tensor, Tensor]:

    data = resolve_data("digits")
    images = torch.stack(list(data.read(range(count)).images))
    return images, torch.from_numpy(data.labels[:count]).long()


def test_gaze_pushes_the_fixations_off_the_object() -> None:
    images, labels = digits(4)
    classifier = zoo.load_model("ramlpm").classifier
    oracle = oracle_of(classifier, images, classes=10)
    found = gaze(oracle, images, labels, norm="linf", eps=0.15, steps=10, eot=5)
    assert oracle.ledger.forwards.tolist() == oracle.ledger.backwards.tolist() == [10 * 5] * 4

    noise = oracle.noise(20)
    centres = centre_of(images)[:, None]

    def distance_from_the_object(pixels: Tensor) -> float:
        with torch.no_grad():
            return float((oracle.gaze(pixels, noise) - centres).square().sum(-1).mean())

    random = uniform_in_ball(images, "linf", 0.15, oracle.choices())
    assert distance_from_the_object(found) > distance_from_the_object(images) + 0.02
    assert distance_from_the_object(found) > distance_from_the_object(random) + 0.02


def test_gaze_needs_a_model_that_glimpses() -> None:
    with pytest.raises(LpmbenchError, match="fixations"):
        gaze(oracle_of(Linear(WEIGHT)), IMAGES, LABELS, norm="linf", eps=0.1)


@pytest.mark.parametrize("attack", [autoattack_rand, autoattack_standard])
def test_the_standard_library_attacks_never_return_a_clean_image(attack: Callable[..., Tensor]) -> None:
    """Neither where one pass is wrong already, nor where a stage finds nothing."""
    model = NoisyLinear(WEIGHT, 0.0, sigma=5.0)
    budget = {"steps": 2, "eot": 2} if attack is autoattack_rand else {"steps": 2, "queries": 3}
    found = attack(oracle_of(model), IMAGES, LABELS, norm="linf", eps=0.05, **budget)
    assert ((found - IMAGES).flatten(1).abs().amax(1) > 0).all()


def test_an_attack_that_reseeds_the_global_generators_does_not_touch_the_models_noise() -> None:
    """AutoAttack on RAM-LPM, every pass watched: no two of them, in any draw, look by the same noise."""
    images, labels = digits(3)
    classifier = zoo.load_model("ramlpm").classifier
    seen: list[Tensor] = []
    handle = classifier.network.register_forward_pre_hook(lambda _, given: seen.extend(given[1]["policy"].flatten(1)))
    before = torch.get_rng_state()
    try:
        autoattack_rand(oracle_of(classifier, images, classes=10), images, labels, norm="linf", eps=0.1, steps=2, eot=3)
    finally:
        handle.remove()
    attacked = 2 * (2 + 1) * 3 * len(images)  # two losses, three gradients each, three draws
    assert len(seen) == attacked + 4 * 10 * len(images)  # four candidates meet ten draws for selection
    seen = seen[:attacked]
    assert len(torch.stack(seen).unique(dim=0)) == len(seen)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_autoattack_is_not_weaker_than_pgd_on_the_cnn() -> None:
    """On a real deterministic model all stages together are not weaker than one."""
    settings: dict[str, Any] = {"dataset": "digits", "eps": 0.08, "limit": 40}
    ours = robustbench_lpm.evaluate("cnn", "pgd", **settings)
    theirs = robustbench_lpm.evaluate("cnn", "autoattack", **settings, parameters={"steps": 20, "queries": 50})
    assert ours.robust_accuracy.value < 1
    assert theirs.robust_accuracy.value <= ours.robust_accuracy.value


def test_the_probability_margin_is_that_of_the_softmax() -> None:
    """Of two classes it is tanh of half the margin, and draws that are decided already hardly move it."""
    logits = torch.tensor([[[3.0, 1.0], [0.5, 0.2]], [[9.0, -9.0], [1.0, 4.0]]], requires_grad=True)
    labels = torch.tensor([0, 0])
    found = objective("probability-margin", logits, labels)
    assert torch.allclose(found, torch.tanh(objective("margin", logits, labels) / 2))
    assert torch.allclose(found, objective("probability-margin", logits, labels, targets=torch.tensor([1, 1])))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient[1, 0].abs().max() < 1e-6 < gradient[0, 1].abs().max()
