"""A patch is where it should be, holds what is worst there, and is a threat of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import robustbench_lpm
from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from robustbench_lpm.protocol.patches import tried
from robustbench_lpm.protocol.plan import make_plan
from robustbench_lpm.protocol.ranking import ranking
from robustbench_lpm.protocol.windows import cut, paste, window_at
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.tasks import resolve_attack, resolve_data
from robustbench_lpm.reporting.tables import table
from tests.attacks.test_closed_forms import centred, linear_data
from tests.classifiers import Linear, NoisyLinear

SIDE = 4  # of a patch of a quarter of 8 x 8 pixels
SHARE = 0.25
STRONG: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 20, "loss": "margin"},  # its cross-entropy would be saturated
    "momentum": {"steps": 60}, "square": {"queries": 1500},
    "spsa": {"iterations": 40, "pairs": 64, "learning_rate": 0.1},
}  # fmt: skip


def drops(weight: Tensor, images: Tensor) -> Tensor:
    """How far the margin <w, x> falls where a pixel is the worst in [0, 1], (B, H, W)."""
    return (torch.maximum(weight * images, -weight * (1 - images))).sum(1)


def best_places(weight: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """The most that a patch lowers the margin, (B,), and its upper left corner, (B, 2), by trying all."""
    falls = drops(weight, images)
    free = range(images.shape[-1] - SIDE + 1)
    places = [(row, column) for row in free for column in free]
    sums = torch.stack([falls[:, r : r + SIDE, c : c + SIDE].sum((1, 2)) for r, c in places])
    return sums.amax(0), torch.tensor(places)[sums.argmax(0)]


def evaluated(attack: str, *, count: int = 8, sigma: float = 0.0, **options: Any) -> tuple[Linear, Tensor, RunRecord]:
    """A linear model that no patch makes err, its images, and the record of an attack."""
    weight, images, labels = linear_data(count)
    model: Linear = Linear(weight, centred(weight, 15.0))
    if sigma:
        model = NoisyLinear(weight, centred(weight, 15.0), sigma)
    given: dict[str, Any] = {"eps": 1, "patch": SHARE, "parameters": STRONG.get(attack, {}), "save_adversarials": True}
    return model, images, robustbench_lpm.evaluate(model, attack, (images, labels), **given | options)


def adversarials(record: RunRecord) -> Tensor:
    return torch.stack([torch.from_numpy(picture.adversarial) for picture in record.pictures()])


def corners(found: Tensor, images: Tensor) -> list[tuple[int, int, int, int]]:
    """The first and last row and column that have changed, for each image."""
    changed = [(now != before).any(0).nonzero() for now, before in zip(found, images, strict=True)]
    return [(*place.amin(0).tolist(), *place.amax(0).tolist()) for place in changed]


@pytest.mark.parametrize("attack", STRONG)
def test_a_patch_at_a_given_place_holds_the_worst_pixels(attack: str) -> None:
    model, images, record = evaluated(attack, patch_at="1,3")
    found = adversarials(record)
    assert corners(found, images) == [(1, 3, 4, 6)] * len(images)
    possible = drops(model.weight, images)[:, 1:5, 3:7].sum((1, 2))
    share = (model.margin(images) - model.margin(found)) / possible
    assert share.max() < 1 + 1e-4
    assert share.min() > (0.97 if attack in ("square", "spsa") else 1 - 1e-4)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_the_place_is_the_best_of_all_for_a_linear_model(sigma: float) -> None:
    model, images, record = evaluated("pgd", sigma=sigma, draws=4)
    found = adversarials(record)
    possible, places = best_places(model.weight, images)
    assert [(row, column) for row, column, *_ in corners(found, images)] == [tuple(place) for place in places.tolist()]
    torch.testing.assert_close(model.margin(images) - model.margin(found), possible)
    assert len({tuple(place) for place in places.tolist()}) > 1


def test_a_target_decides_the_place_too() -> None:
    weight, images, labels = linear_data(6)
    model = Linear(weight, centred(weight, -15.0))  # everything is class 1, and the target is out of reach
    record = robustbench_lpm.evaluate(
        model, "pgd", (images, labels + 1), eps=1, patch=SHARE, target=0, parameters=STRONG["pgd"],
        save_adversarials=True,
    )  # fmt: skip
    possible, _ = best_places(-weight, images)
    torch.testing.assert_close(model.margin(adversarials(record)) - model.margin(images), possible)


def test_without_gradients_the_best_of_a_few_places_is_taken() -> None:
    weight, images, labels = linear_data(300)
    oracle = ClassifierOracle(Classifier(Linear(weight)), images, range(300), Rules(0, 2, 64))
    sums = drops(weight, images).unfold(1, SIDE, 1).unfold(2, SIDE, 1).sum((3, 4)).flatten(1)
    ranks = {}
    for count in (1, 9):
        corner = tried(oracle, labels, None, SIDE, "linf", 1.0, count)[:, 0, 0]
        place = corner // 8 * (8 - SIDE + 1) + corner % 8
        ranks[count] = (sums > sums.gather(1, place[:, None])).double().mean(1)
    error = 300**-0.5 * 0.29
    assert abs(float(ranks[1].mean()) - 0.48) < 4 * error  # a place at random, of 25
    # Random pixels tell little of what the worst pixels would do, but they tell something.
    assert float(ranks[9].mean()) < 0.48 - 4 * error
    assert int(oracle.ledger.forwards.max()) == 9


def test_an_eps_below_1_bounds_the_patch_too() -> None:
    model, images, record = evaluated("pgd", eps=0.05, patch_at="center")
    found = adversarials(record)
    assert corners(found, images) == [(2, 2, 5, 5)] * len(images)
    possible = 0.05 * model.weight[0, 2:6, 2:6].abs().sum()
    torch.testing.assert_close(model.margin(images) - model.margin(found), possible.expand(len(images)))


def test_a_patch_works_in_l2() -> None:
    model, images, record = evaluated("pgd", eps=0.3, norm="l2", patch_at="0,0")
    share = (model.margin(images) - model.margin(adversarials(record))) / (0.3 * model.weight[0, :4, :4].norm())
    assert 0.97 < share.min() <= share.max() < 1 + 1e-4


def test_windows_are_cut_and_pasted() -> None:
    images = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    window = window_at(torch.tensor([0, 2]), torch.tensor([4, 1]), 3, 7)
    patches = cut(images, window)
    assert torch.equal(patches[0], images[0, :, 0:3, 4:7])
    assert torch.equal(patches[1], images[1, :, 2:5, 1:4])
    versions = torch.stack([patches, -patches])
    pasted = paste(versions, images, window)
    assert torch.equal(pasted[0], images)
    assert torch.equal(cut(pasted[1], window), -patches)
    assert float((pasted[1] != images).sum()) == (patches != 0).sum()


@pytest.mark.parametrize("attack", ["apgd-margin", "autoattack", "art-pgd", "transfer", "noise", "rays", "worst-case"])
def test_every_kind_of_attack_stays_in_its_patch(attack: str) -> None:
    own = {"worst-case": {name: {"steps": 2} for name in ("pgd", "apgd-ce", "apgd-margin")}}
    parameters = {"autoattack": {"steps": 2, "queries": 4}, "rays": {"queries": 40}, "art-pgd": {"steps": 3}}
    found = resolve_attack(attack, parameters=parameters.get(attack), settings=own.get(attack))
    record = robustbench_lpm.evaluate("cnn", found, "digits", eps=1, patch=0.1, limit=3, save_adversarials=True)
    for picture in record.pictures():
        changed = (picture.adversarial != picture.clean).any(0).nonzero()
        assert all(len(line) == 0 or line.max() - line.min() < 10 for line in changed)


def test_a_glimpsing_model_has_a_place_for_each_gradient_mode() -> None:
    record = robustbench_lpm.evaluate(
        "ramlpm", "pgd", "digits", eps=1, patch=0.1, limit=4, draws=4, select_draws=3, parameters={"steps": 2, "eot": 1}
    )
    assert len(record.outcomes) == 4
    assert set(record.outcomes["choice"]) <= {"detached", "reparameterised", "straight-through", "score-function"}


def plan_of(attack: str = "pgd", model: str = "cnn", **options: Any) -> Any:
    given: dict[str, Any] = {"eps": 1, "limit": 3, "device": "cpu"} | options
    return make_plan(zoo.load_model(model), resolve_attack(attack), resolve_data("digits"), Options(**given))


def test_a_run_without_a_patch_is_what_it_was() -> None:
    assert plan_of().configuration["threat"] == {"norm": "linf", "eps": 1.0, "target": None}
    patched = plan_of(patch=0.1)
    assert patched.configuration["threat"]["patch"] == {"share": 0.1, "at": None}
    assert len({plan_of().id, patched.id, plan_of(patch=0.1, patch_at="center").id}) == 3
    assert "--patch 0.1 --patch-at center" in plan_of(patch=0.1, patch_at="center").command()


@pytest.mark.parametrize("attack", ["pgd", "square"])
def test_choosing_a_place_is_counted_in_the_cost(attack: str) -> None:
    for options in ({"patch": 0.1}, {"patch": 0.1, "patch_at": "center"}, {}):
        plan = plan_of(
            attack, model="ram", select_draws=3, gradient_mode="detached" if attack == "pgd" else None, **options
        )
        cost, whole = plan.cost(), plan_of(attack, model="ram", gradient_mode=plan.options.gradient_mode).cost()
        searched = 3 if len(options) == 1 else 0
        assert cost.forwards - whole.forwards == searched * (10 if attack == "pgd" else 9)
        assert cost.backwards - whole.backwards == searched * (attack == "pgd")
    record = robustbench_lpm.evaluate(
        "ram", attack, "digits", eps=1, patch=0.1, limit=3, select_draws=3, draws=2,
        gradient_mode="detached" if attack == "pgd" else None,
    )  # fmt: skip
    promised = plan_of(
        attack, model="ram", select_draws=3, patch=0.1, gradient_mode="detached" if attack == "pgd" else None
    ).cost()
    assert record.outcomes["forwards"].max() <= promised.forwards
    assert record.outcomes["backwards"].max() == promised.backwards


def test_records_of_patches_have_boards_of_their_own(tmp_path: Path) -> None:
    _, _, patched = evaluated("pgd", out=tmp_path)
    _, _, placed = evaluated("pgd", out=tmp_path, patch_at="center")
    _, _, whole = evaluated("pgd", out=tmp_path, patch=None)
    names = {record.threat for record in (patched, placed, whole)}
    assert names == {"linf", "linf patch 25 %", "linf patch 25 % at center"}
    assert len(ranking(table([patched, placed, whole]))) == 3
    assert patched.path is not None
    assert "linf-patch-25--1" in patched.path.name
    again = records.read(patched.path)
    assert again.patch == {"share": SHARE, "at": None}


def test_a_record_with_changes_outside_its_patch_is_refused() -> None:
    _, _, record = evaluated("pgd")
    records.check(record)
    record.configuration["threat"]["patch"]["share"] = 0.1
    with pytest.raises(LpmbenchError, match="outside its patch"):
        records.check(record)


def test_mistakes() -> None:
    for options, message in [
        ({"patch": 1.5}, "at most 1"), ({"patch": 0}, "above 0"), ({"patch_at": "center"}, "say with patch"),
        ({"patch": 0.1, "patch_at": "left"}, "ROW,COLUMN"),
    ]:  # fmt: skip
        with pytest.raises(LpmbenchError, match=message):
            Options(eps=1, **options)
    with pytest.raises(LpmbenchError, match="may be at 0 to 22"):
        robustbench_lpm.evaluate("cnn", "pgd", "digits", eps=1, patch=0.1, patch_at="30,0", limit=1)
    with pytest.raises(LpmbenchError, match="no checks for a patch"):
        robustbench_lpm.audit("cnn", "pgd", "digits", eps=1, patch=0.1, limit=1)
