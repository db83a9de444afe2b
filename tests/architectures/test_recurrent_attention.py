"""Glimpsing classifiers: all randomness is an argument, and gradients pass the fixations in the way asked for."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from robustbench_lpm.architectures.classifier import Classifier, MonteCarlo
from robustbench_lpm.architectures.ram import Ram
from robustbench_lpm.architectures.ramlpm import RamLpm
from robustbench_lpm.architectures.recurrent_attention import (
    GRADIENT_MODES,
    Glance,
    Policy,
    RecurrentAttention,
    Trajectory,
)
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import cards, zoo
from tests.waits import DEVICE, counted

TOLERANCE = 1e-12
Build = Callable[..., RecurrentAttention]


def ramlpm(glimpses: int = 4, sigma: float = 0.1, **changes: Any) -> RecurrentAttention:
    given: dict[str, Any] = {
        "channels": 1, "classes": 3, "height": 6, "width": 12, "r_min": 0.05, "r_max": 1.0, "what": [[4, 2, 2]],
        "where": [[3, 2, 3]], "what_hidden": 8, "where_hidden": 6, "head": "linear",
    }  # fmt: skip
    return RamLpm(**(given | {"glimpses": glimpses, "sigma": sigma} | changes))


def ram(glimpses: int = 4, sigma: float = 0.1, policy: Policy = "learned") -> RecurrentAttention:
    return Ram(
        channels=1, classes=3, patch=4, scales=2, features=8, hidden=8, glimpses=glimpses, sigma=sigma, policy=policy
    )


def ramlpm_with_mlp(glimpses: int = 4, sigma: float = 0.1, **changes: Any) -> RecurrentAttention:
    return ramlpm(glimpses, sigma, head="mlp", **changes)


def rectangular(glimpses: int = 4, sigma: float = 0.1, **changes: Any) -> RecurrentAttention:
    return ramlpm(glimpses, sigma, **({"retina": "rectangular", "r_min": None, "padding": "zeros"} | changes))


def normed_together(glimpses: int = 4, sigma: float = 0.1, **changes: Any) -> RecurrentAttention:
    return ramlpm(glimpses, sigma, norms="of-all-glimpses", **changes)


BUILDERS = [ramlpm, ramlpm_with_mlp, rectangular, normed_together, ram]
for_every_model = pytest.mark.parametrize("build", BUILDERS)


def made(build: Build, **arguments: Any) -> RecurrentAttention:
    """A model with random weights, in float64 and eval mode, whose policy moves."""
    torch.manual_seed(0)
    model = build(**arguments).double().eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(buffer, std=0.1)
    torch.nn.init.normal_(model.locator.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    return model


def images(batch: int = 5, size: int = 20) -> Tensor:
    return torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def noise_for(model: RecurrentAttention, indices: range | list[int], **options: int) -> dict[str, Tensor]:
    return model.sample_noise(Addresses.of(0, indices, "grade"), **options)


@for_every_model
def test_the_work_of_the_networks_does_not_depend_on_the_size_of_the_image(build: Build) -> None:
    """Counted in the multiply-adds of convolutions and matrix products."""
    model = made(build)

    def work(size: int, glimpses: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images(2, size), noise_for(model, range(2), glimpses=glimpses))
        return counter.get_total_flops()

    assert work(20, 4) == work(150, 4) > work(20, 3) > 0


@for_every_model
def test_outputs_are_decided_by_the_noise(build: Build) -> None:
    model = made(build)
    noise = noise_for(model, range(5))
    first, second = model.look(images(), noise), model.look(images(), noise)
    for part in ("logits", "means", "fixations", "baselines"):
        assert torch.equal(getattr(first, part), getattr(second, part))
    assert torch.equal(model(images(), noise), first.logits[-1])
    other = noise_for(model, range(5, 10))
    assert (model(images(), other) != first.logits[-1]).any(dim=1).all()


@for_every_model
@pytest.mark.parametrize(("batch", "glimpses"), [(1, 1), (3, 2), (3, 5)])
def test_shapes(build: Build, batch: int, glimpses: int) -> None:
    model = made(build, glimpses=glimpses)
    noise = noise_for(model, range(batch))
    assert noise["first_fixation"].shape == (batch, 2)
    assert noise["policy"].shape == (batch, glimpses - 1, 2)
    for mode in GRADIENT_MODES:
        found = model.look(images(batch), noise, gradient_mode=mode)
        assert found.logits.shape == (glimpses, batch, 3)
        assert found.means.shape == found.fixations.shape == (glimpses, batch, 2)
        assert found.baselines.shape == (glimpses, batch)
        assert torch.isfinite(found.logits).all()


@for_every_model
def test_fixations_follow_the_policy(build: Build) -> None:
    model = made(build, sigma=0.3)
    noise = noise_for(model, range(5))
    found = model.look(images(), noise)
    assert torch.equal(found.fixations[0], noise["first_fixation"].double())
    assert torch.equal(found.fixations[1:], found.means[:-1] + 0.3 * noise["policy"].double().movedim(1, 0))
    assert found.means.abs().max() <= 1


@for_every_model
def test_noise_belongs_to_the_example(build: Build) -> None:
    """Splitting or reordering a batch changes nothing."""
    model = made(build)
    whole = noise_for(model, range(6))
    order = [4, 0, 5, 2, 1, 3]
    logits = model(images(6), whole)
    for indices in ([0, 1], [5], order):
        part = noise_for(model, indices)
        assert all(torch.equal(part[source], whole[source][indices]) for source in whole)
        assert (model(images(6)[indices], part) - logits[indices]).abs().max() < TOLERANCE


@for_every_model
def test_the_first_glimpses_do_not_depend_on_how_many_follow(build: Build) -> None:
    model = made(build, glimpses=6)
    long, short = noise_for(model, range(5)), noise_for(model, range(5), glimpses=3)
    assert torch.equal(long["first_fixation"], short["first_fixation"])
    assert torch.equal(long["policy"][:, :2], short["policy"])
    far, near = model.look(images(), long), model.look(images(), short)
    for part in ("logits", "means", "fixations", "baselines"):
        assert len(getattr(near, part)) == 3
        assert torch.equal(getattr(far, part)[:3], getattr(near, part))


def test_noise_has_the_distribution_that_is_promised() -> None:
    model = ramlpm(glimpses=3)
    noise = noise_for(model, range(2000))
    first, policy = noise["first_fixation"], noise["policy"]
    assert first.abs().max() <= 0.25
    assert abs(float(first.std()) - 0.25 / 3**0.5) < 0.005
    assert abs(float(policy.std()) - 1) < 0.04
    assert abs(float(policy.mean())) < 0.04


@for_every_model
def test_models_of_one_process_share_no_noise_of_their_own(build: Build) -> None:
    """Two that were built alike, and a copy; drawing leaves nothing behind in the model."""
    first, second = made(build), made(build)
    images, before = torch.rand(3, 1, 16, 16, dtype=torch.float64), dict(vars(first))
    models = (first, second, copy.deepcopy(first), first)
    looked = [model.look(images).fixations.flatten() for model in models]
    assert torch.stack(looked).unique(dim=0).shape[0] == len(models)
    assert vars(first) == before


@for_every_model
def test_without_noise_a_model_draws_its_own(build: Build) -> None:
    model = made(build)
    state = torch.get_rng_state()
    first, second = model(images()), model(images())
    assert (first != second).any()
    assert torch.equal(torch.get_rng_state(), state)


def gradient(model: RecurrentAttention, noise: dict[str, Tensor], mode: str, *, to: str) -> Tensor:
    """The gradient of the last logits to the images, or to the weights of the locator, which only choose fixations."""
    given = images().requires_grad_()
    target = given if to == "images" else model.locator.weight
    assert isinstance(target, Tensor)
    logits = model(given, noise, gradient_mode=mode)
    (found,) = torch.autograd.grad((logits * torch.arange(3.0)).sum(), target, allow_unused=True)
    return found if found is not None else torch.zeros_like(target)


@for_every_model
def test_detached_fixations_get_exactly_no_gradient(build: Build) -> None:
    model = made(build)
    noise = noise_for(model, range(5))
    assert gradient(model, noise, "detached", to="locator").abs().max() == 0
    for mode in ("reparameterised", "straight-through"):
        assert gradient(model, noise, mode, to="locator").abs().max() > 1e-6
    assert gradient(model, noise, "detached", to="images").abs().max() > 1e-6


@for_every_model
def test_gradients_through_the_fixations_reach_the_images(build: Build) -> None:
    model = made(build)
    noise = noise_for(model, range(5))
    blind, seeing = (gradient(model, noise, mode, to="images") for mode in ("detached", "reparameterised"))
    assert (blind - seeing).abs().max() > 1e-6
    assert torch.equal(gradient(made(build), noise, "detached", to="images"), blind)


def test_a_reparameterised_gradient_is_that_of_finite_differences() -> None:
    """The whole path, through the sampling grid; "detached" is not the derivative of what is computed."""
    model = made(ramlpm, glimpses=3)
    noise = noise_for(model, range(5))
    direction = torch.randn(images().shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(step: float) -> float:
        with torch.no_grad():
            return float((model(images() + step * direction, noise) * torch.arange(3.0)).sum())

    slope = (value(1e-7) - value(-1e-7)) / 2e-7
    slopes = {mode: float((gradient(model, noise, mode, to="images") * direction).sum()) for mode in GRADIENT_MODES}
    assert slopes["reparameterised"] == pytest.approx(slope, rel=1e-4)
    assert slopes["detached"] != pytest.approx(slope, rel=1e-2)


@for_every_model
def test_straight_through_passes_a_saturated_clamp(build: Build) -> None:
    model = made(build)
    with torch.no_grad():
        model.locator.bias.fill_(7.0)  # type: ignore[union-attr, operator]
    noise = noise_for(model, range(5))
    assert (model.look(images(), noise).means == 1).all()
    assert gradient(model, noise, "reparameterised", to="locator").abs().max() == 0
    assert gradient(model, noise, "straight-through", to="locator").abs().max() > 1e-6


@for_every_model
@pytest.mark.parametrize("bias", [0.0, 7.3, 1e9])
def test_the_mode_changes_no_logit(build: Build, bias: float) -> None:
    model = made(build).float()
    with torch.no_grad():
        model.locator.bias.fill_(bias)  # type: ignore[union-attr, operator]
    noise = noise_for(model, range(5))
    found = [model(images().float(), noise, gradient_mode=mode) for mode in GRADIENT_MODES]
    assert all(torch.equal(logits, found[0]) for logits in found)


@for_every_model
def test_one_glimpse_has_no_fixation_to_pass(build: Build) -> None:
    model = made(build, glimpses=1)
    noise = noise_for(model, range(5))
    gradients = [gradient(model, noise, mode, to="images") for mode in GRADIENT_MODES]
    assert all(torch.equal(found, gradients[0]) for found in gradients)


def deep(model: RecurrentAttention) -> RecurrentAttention:
    return copy.deepcopy(model)


def pickled(model: RecurrentAttention) -> RecurrentAttention:
    return pickle.loads(pickle.dumps(model))


@for_every_model
@pytest.mark.parametrize("duplicate", [deep, pickled])
@pytest.mark.parametrize("used", ["never", "plainly", "in inference mode"])
def test_copies_do_the_same(
    build: Build, duplicate: Callable[[RecurrentAttention], RecurrentAttention], used: str
) -> None:
    model = made(build)
    noise = noise_for(model, range(5))
    if used == "plainly":
        model(images(), noise)
    elif used == "in inference mode":
        with torch.inference_mode():
            model(images(), noise)
    twin = duplicate(model)
    assert torch.equal(twin(images(), noise), model(images(), noise))
    assert gradient(twin, noise, "reparameterised", to="images").abs().max() > 0


@for_every_model
def test_the_parameter_groups_hold_every_parameter_once(build: Build) -> None:
    model = made(build)
    groups = model.parameter_groups()  # type: ignore[operator]
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(grouped) == sorted(map(id, model.parameters()))
    assert {id(model.locator.weight)} <= set(map(id, groups["where"]))
    assert set(map(id, groups["baseline"])) == set(map(id, model.baseline.parameters()))


@for_every_model
def test_the_baseline_trains_nothing_else(build: Build) -> None:
    model = made(build)
    with torch.no_grad():
        model.baseline.bias.fill_(1.0)  # type: ignore[union-attr, operator]
    model.look(images(), noise_for(model, range(5))).baselines.sum().backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"baseline"}


@pytest.mark.parametrize("arguments", [{"glimpses": 0}, {"sigma": -0.1}])
@for_every_model
def test_impossible_models(build: Build, arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="glimpses >= 1, sigma >= 0"):
        build(**arguments)


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="'of-all-glimpses', not 'some'"):
        ramlpm(norms="some")
    model = made(ramlpm)
    with pytest.raises(ValueError, match=r"gradient_mode must be one of detached, .*, not 'attached'"):
        model(images(), noise_for(model, range(5)), gradient_mode="attached")
    for changes, complaint in [
        ({"head": "cubic"}, "head must be"),
        ({"r_min": None}, "a log-polar retina needs an r_min"),
        ({"retina": "square"}, "retina must be 'log-polar' or 'rectangular', not 'square'"),
        ({"retina": "rectangular"}, "neither r_min nor inner_rows"),
        ({"retina": "rectangular", "r_min": None, "inner_rows": 2}, "neither r_min nor inner_rows"),
        ({"retina": "rectangular", "r_min": None}, "padding 'polar' is for log-polar maps"),
        ({"policy": "central"}, "policy must be"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            ramlpm(**changes)  # type: ignore[arg-type]


# The controls: the same weights, with another way to choose fixations.


@for_every_model
def test_a_gaze_at_the_centre_is_deterministic(build: Build) -> None:
    model = made(build, policy="centre")
    classifier = Classifier(model)
    assert not classifier.stochastic
    assert not MonteCarlo(classifier, 3).stochastic
    assert classifier.sample_noise(Addresses.of(0, range(5), "grade")) == {}
    assert torch.equal(classifier(images()), classifier(images()))
    seen = [model.look(images(), noise_for(model, indices)) for indices in (range(5), range(5, 10))]
    assert torch.equal(seen[0].logits, seen[1].logits)
    assert torch.equal(classifier(images()), seen[0].logits[-1])
    assert (seen[0].fixations == 0).all()
    assert seen[0].means.abs().max() > 0  # the policy still has its wishes, but nobody follows them
    assert model.gradient_modes == ("detached",)


@for_every_model
def test_a_random_gaze_asks_no_image(build: Build) -> None:
    model = made(build, policy="random", glimpses=6)
    noise = noise_for(model, range(400))
    one, other = images(1).expand(400, -1, -1, -1), 1 - images(1).expand(400, -1, -1, -1)
    first, second = model.look(one, noise), model.look(other, noise)
    assert torch.equal(first.fixations, second.fixations)
    assert (first.logits != second.logits).any()
    assert torch.equal(first.fixations[0], noise["first_fixation"].double())
    assert (model.stochastic, model.gradient_modes) == (True, ("detached",))


def test_a_random_gaze_is_uniform_on_its_square() -> None:
    model = made(ram, policy="random", glimpses=11)
    spread = model.random_spread
    drawn = model.look(images(1).expand(500, -1, -1, -1), noise_for(model, range(500))).fixations[1:].flatten()
    n = len(drawn)
    assert drawn.abs().max() < spread
    assert abs(float(drawn.mean())) < 4 * spread / math.sqrt(3 * n)
    # u² of a uniform u on [-s, s] has mean s²/3 and variance 4 s⁴/45.
    assert abs(float(drawn.square().mean()) - spread**2 / 3) < 4 * spread**2 * math.sqrt(4 / (45 * n))
    quarters = torch.histc(drawn, bins=4, min=-spread, max=spread) / n
    assert (quarters - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / n)


@for_every_model
def test_without_the_policy_s_noise_the_gaze_goes_where_the_policy_wants(build: Build) -> None:
    model = made(build, sigma=0.0)
    noise = noise_for(model, range(5))
    found = model.look(images(), noise)
    assert torch.equal(found.fixations[1:], found.means[:-1])
    assert torch.equal(found.fixations[0], noise["first_fixation"].double())
    assert (model.stochastic, model.gradient_modes) == (True, GRADIENT_MODES[:-1])  # the first fixation is random still
    for mode in model.gradient_modes:
        assert torch.isfinite(gradient(model, noise, mode, to="images")).all()
    quiet = noise | {"policy": torch.zeros_like(noise["policy"])}
    loud = made(build, sigma=0.1)
    assert torch.equal(loud(images(), quiet), model(images(), noise))


CONTROLS = [
    (base, kind) for base in ("ramlpm", "ram", "ramlpm-sim2mnist-fast") for kind in ("centre", "random", "quiet")
]


@pytest.mark.parametrize(("base", "kind"), CONTROLS)
def test_the_controls_on_cards_are_the_model_but_for_one_thing(base: str, kind: str) -> None:
    card, original = cards.model(f"{base}-{kind}"), cards.model(base)
    changed = {"policy": kind, "random_spread": 0.5} if kind == "random" else {"policy": kind}
    changed = {"sigma": 0.0} if kind == "quiet" else changed
    assert card.parameters == original.parameters | changed
    assert (card.control_of, card.weights, card.input) == (base, original.weights, original.input)
    assert (card.entry, card.trained, card.recipe) == (original.entry, None, None)


def test_the_rectangular_control_has_as_many_samples_and_parameters() -> None:
    networks = {name: zoo.build(cards.model(name)) for name in ("ramlpm", "ramlpm-rectangular")}
    shapes = {name: {n: p.shape for n, p in network.state_dict().items()} for name, network in networks.items()}
    assert shapes["ramlpm"] == shapes["ramlpm-rectangular"]
    samples = {name: network.retina.points[0][..., 0].numel() for name, network in networks.items()}
    assert samples == {"ramlpm": 288, "ramlpm-rectangular": 288}


# The score function.


def test_the_log_density_is_that_of_a_normal_distribution() -> None:
    """Its gradient to mu[t] is (l[t+1] - mu[t]) / sigma²; the last mean and the fixations themselves get none."""
    found = made(ramlpm, sigma=0.3).look(images(), noise_for(made(ramlpm), range(5)))
    means, fixations = found.means.detach().requires_grad_(), found.fixations.detach().requires_grad_()
    density = dataclasses.replace(found, means=means, fixations=fixations).log_density(0.3)
    expected = torch.distributions.Normal(means[:-1], 0.3).log_prob(fixations[1:]).sum((0, 2))
    constant = 3 * 2 * math.log(0.3 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(density, expected + constant)
    to_means, to_fixations = torch.autograd.grad(density.sum(), [means, fixations], allow_unused=True)
    torch.testing.assert_close(to_means[:-1], ((fixations[1:] - means[:-1]) / 0.3**2).detach())
    assert (to_means[-1] == 0).all()
    assert to_fixations is None


class Analytic(RecurrentAttention):
    """Two glimpses. The policy is mu = (slope · mean pixel, 0), the answer z_0 = l_x² + mean pixel at the last glimpse.

    The expected z_0 is mu_x² + sigma² + m, m the mean pixel: its derivative to m is 2 slope² m + 1, of which the
    second term alone does not pass the fixation.
    """

    def __init__(self, slope: float, sigma: float) -> None:
        super().__init__(glimpses=2, sigma=sigma)
        self.slope = slope

    def start(self, images: Tensor, runs: int) -> None:
        return None

    def glance(self, images: Tensor, fixations: Tensor, state: None) -> Glance:
        pixel = images.flatten(1).mean(1)
        answer = fixations[:, 0].square() + pixel
        mean = torch.stack([self.slope * pixel, torch.zeros_like(pixel)], dim=1)
        return Glance(torch.stack([answer, torch.zeros_like(answer)], dim=1), mean, torch.zeros_like(pixel), None)


class Drifting(Analytic):
    """From where it looks it wants to go on by slope · mean pixel, to the right.

    With u the first fixation and m the mean pixel, mu[0] = u + slope m and mu[1] = u + 2 slope m + sigma noise. Half
    the sum of their squares has the expected derivative 5 slope² m, of which 3 slope² m does not pass the fixation.
    """

    def glance(self, images: Tensor, fixations: Tensor, state: None) -> Glance:
        found = super().glance(images, fixations, state)
        return dataclasses.replace(found, mean=fixations * torch.tensor([1.0, 0.0]) + found.mean)


@pytest.mark.parametrize(("draws", "runs"), [(1, 2), (4, 1)])
def test_the_gradient_of_the_gaze_passes_the_fixations_in_the_way_asked_for(draws: int, runs: int) -> None:
    slope, pixel, copies = 0.5, 0.4, 4000
    classifier = Classifier(Drifting(slope, sigma=0.1))
    given = torch.full((copies, 1, 2, 2), pixel, dtype=torch.float64)
    for mode, true in (("score-function", 5), ("reparameterised", 5), ("detached", 3)):
        oracle = ClassifierOracle(
            classifier if runs == 1 else MonteCarlo(classifier, runs), given, range(copies),
            Rules(0, 2, 10_000), gradient_mode=mode,
        )  # fmt: skip
        found = oracle.gaze_gradient(given, oracle.noise(draws), lambda means: means.square().sum((-1, -2)) / 2)
        slopes = found.flatten(1).sum(1)
        error = float(slopes.std()) / math.sqrt(copies)
        assert abs(float(slopes.mean()) - true * slope**2 * pixel) < 4 * error, mode
        assert error < 0.2 * slope**2 * pixel
        assert oracle.ledger.backwards.tolist() == [draws * runs] * copies


@pytest.mark.parametrize(("draws", "runs"), [(1, 2), (4, 1)])
def test_the_score_function_gives_the_gradient_of_the_expected_loss(draws: int, runs: int) -> None:
    """Many copies of one image are as many independent estimates; "detached" misses what passes the fixation."""
    slope, pixel, copies = 1.5, 0.4, 4000
    classifier = Classifier(Analytic(slope, sigma=0.2))
    given = torch.full((copies, 1, 2, 2), pixel, dtype=torch.float64)
    slopes: dict[str, Tensor] = {}
    for mode in ("score-function", "reparameterised", "detached"):
        oracle = ClassifierOracle(
            classifier if runs == 1 else MonteCarlo(classifier, runs), given, range(copies),
            Rules(0, 2, 10_000), gradient_mode=mode,
        )  # fmt: skip
        gradients, losses, logits = oracle.gradient(given, oracle.noise(draws), lambda logits: logits[..., 0])
        assert losses.shape == logits.shape[:-1] == (draws, copies)
        slopes[mode] = gradients.flatten(1).sum(1)  # the derivative to m
    true = 2 * slope**2 * pixel + 1
    for mode in ("score-function", "reparameterised"):
        error = float(slopes[mode].std()) / math.sqrt(copies)
        assert abs(float(slopes[mode].mean()) - true) < 4 * error, mode
        assert error < 0.1 * (true - 1)  # far too small to confuse it with the detached one
    torch.testing.assert_close(slopes["detached"], torch.ones(copies, dtype=torch.float64))


@pytest.mark.parametrize("mode", GRADIENT_MODES)
@pytest.mark.parametrize("build", [ramlpm, ramlpm_with_mlp, rectangular])
def test_glimpses_that_are_trained_together_are_those_of_the_loop(build: Build, mode: str) -> None:
    """On an accelerator one batch of the what path holds all glimpses; each keeps its own batch statistics."""
    alone = made(build).train()
    together = copy.deepcopy(alone)
    noise = noise_for(alone, range(5))

    def loss(found: Trajectory) -> Tensor:
        weights = torch.linspace(-1, 1, 4, dtype=torch.float64, device=found.logits.device)
        value = (found.logits.log_softmax(2)[..., 0] + found.baselines).mean(1) @ weights
        return value + found.means[..., 0].square().mean() + found.fixations.prod(2).mean()

    by_loop = alone.look(images(), noise, gradient_mode=mode)
    loss(by_loop).backward()
    with counted() as waits:
        together.to(DEVICE)
        there = {source: values.to(DEVICE) for source, values in noise.items()}
        seen = images().to(DEVICE)
        waits.counts.clear()
        at_once = together.look(seen, there, gradient_mode=mode)
        loss(at_once).backward()
        assert waits.total == 0, waits.places
        found = {part: getattr(at_once, part).cpu() for part in ("logits", "means", "fixations", "baselines")}
        gradients = {name: parameter.grad.cpu() for name, parameter in together.named_parameters()}
        buffers = {name: buffer.cpu() for name, buffer in together.named_buffers()}
    for part, values in found.items():
        torch.testing.assert_close(values, getattr(by_loop, part), rtol=1e-10, atol=1e-10)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-10, atol=1e-10)
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name
    for name, buffer in alone.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-10, atol=1e-10)
        assert not torch.equal(buffer, dict(made(build).named_buffers())[name]), name  # training moved it


@pytest.mark.parametrize(("build", "same"), [(normed_together, True), (ramlpm, False)])
def test_norms_of_all_glimpses_are_in_use_what_they_are_in_training(build: Build, same: bool) -> None:
    """With the statistics of one batch as running ones, a trained network repeats its training pass on that batch."""
    model = made(build).train()
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    counts: dict[torch.nn.Module, int] = {}
    for norm in norms:
        norm.momentum = 1.0
        norm.register_forward_hook(
            lambda norm, inputs, _: counts.update({norm: inputs[0].numel() // inputs[0].shape[1]})
        )
    noise = noise_for(model, range(5))
    trained = model.look(images(), noise)
    for norm in norms:
        assert norm.running_var is not None
        norm.running_var *= 1 - 1 / counts.get(norm, 5)  # torch keeps the unbiased variance, and divides by the biased
    used = model.eval().look(images(), noise)
    assert torch.allclose(used.logits, trained.logits, rtol=1e-9, atol=1e-9) == same
    assert torch.allclose(used.fixations, trained.fixations, rtol=1e-9, atol=1e-9) == same
