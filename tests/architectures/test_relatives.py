"""The front ends of related defences, against answers that can be derived."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier, Noise
from robustbench_lpm.architectures.cnn import Cnn
from robustbench_lpm.architectures.foveated import gaussian
from robustbench_lpm.architectures.relatives import (
    V1,
    FixationsCnn,
    RBlur,
    RBlurCnn,
    ResizeAndPad,
    ResizedCnn,
    RetinalWarp,
    V1Cnn,
)
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.admission import admit, handed_over

SIZE = 16
SMALL = {"channels": 3, "classes": 4, "size": SIZE, "width": 4, "hidden": 8}
BANK = {"orientations": 4, "frequencies": (0.15, 0.25)}
NETWORKS: dict[str, tuple[Callable[..., nn.Module], dict[str, object], tuple[str, ...]]] = {
    "rblur": (RBlurCnn, {"fixations": 2}, ("fixations", "pixels")),
    "fixations": (FixationsCnn, {"fixations": 3}, ("fixations",)),
    "v1": (V1Cnn, {"kernel": 7, "bottleneck": 4} | BANK, ("neurons",)),
    "resized": (ResizedCnn, {"canvas": 19}, ("sizes", "corners")),
}


def made(name: str) -> nn.Module:
    network, parameters, _ = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network(**SMALL, **parameters).eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def addresses(count: int) -> Addresses:
    return Addresses.of(0, range(count), "clean")


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def centre_of(column: int, row: int, size: int = SIZE) -> Tensor:
    """The fixation (1, 2) at the centre of a pixel."""
    return torch.tensor([[(2 * column + 1) / size - 1, (2 * row + 1) / size - 1]], dtype=torch.float64)


# Every network


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_admitted_with_its_sources_of_noise_and_a_gradient(name: str) -> None:
    _, admission = admit(handed_over(made(name)), random(4, 3, SIZE, SIZE).float(), "cpu")
    assert (admission.classes, admission.sources) == (4, NETWORKS[name][2])
    assert not admission.no_gradient
    assert not admission.notes


@pytest.mark.parametrize("name", NETWORKS)
def test_noise_decides_the_answer_and_every_source_of_it_matters(name: str) -> None:
    network, images = made(name), random(3, 3, SIZE, SIZE).float()
    noise = network.sample_noise(addresses(3))
    assert torch.equal(network(images, noise), network(images, noise))
    assert not torch.equal(network(images), network(images))  # without noise it draws its own
    other = network.sample_noise(Addresses.of(0, range(3), "clean", 1))
    for source in noise:
        assert largest(network(images, noise | {source: other[source]}) - network(images, noise)) > 1e-5, source


@pytest.mark.parametrize("name", NETWORKS)
def test_row_i_of_several_runs_belongs_to_image_i_mod_b_whatever_else_is_in_the_batch(name: str) -> None:
    classifier, images = Classifier(made(name)), random(3, 3, SIZE, SIZE).float()
    noise = classifier.sample_noise(addresses(3).draws(2))
    answers = classifier(images, noise)
    assert answers.shape == (6, 4)
    for row in range(6):
        alone = classifier(images[row % 3 :][:1], {source: values[row : row + 1] for source, values in noise.items()})
        assert largest(answers[row] - alone[0]) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_its_gradient_agrees_with_finite_differences(name: str) -> None:
    network = made(name).double()
    images, direction = random(2, 3, SIZE, SIZE), random(2, 3, SIZE, SIZE, seed=1) - 0.5
    noise = network.sample_noise(addresses(2))

    def score(moved: Tensor) -> Tensor:
        return F.log_softmax(network(moved, noise), dim=1)[:, 0].sum()

    (gradient,) = torch.autograd.grad(score(images.requires_grad_()), images)
    step = 1e-6  # short, since ReLU has kinks
    with torch.no_grad():
        slope = float(score(images + step * direction) - score(images - step * direction)) / (2 * step)
    assert abs(slope) > 1e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


# R-Blur


def test_rblur_leaves_the_fixated_pixel_alone() -> None:
    images, blur = random(1, 3, SIZE, SIZE), RBlur(size=SIZE).double()
    for column, row in ((3, 9), (0, 0), (15, 2)):
        seen = blur(images, centre_of(column, row))
        assert largest(seen[..., row, column] - images[..., row, column]) < 1e-6


def test_rblur_keeps_constants_and_blurs_more_with_eccentricity() -> None:
    blur, size = RBlur(size=33).double(), 33
    grey = torch.full((1, 3, size, size), 0.3, dtype=torch.float64)
    assert largest(blur(grey, torch.zeros(1, 2).double()) - grey) < 1e-6
    stripes = torch.ones(1, 3, size, size, dtype=torch.float64)
    stripes[..., ::2] = -1  # of grey colours: what is lost is lost to the blur
    contrast = blur(stripes, torch.zeros(1, 2).double())[0, 0, 16].abs()
    assert contrast[16] > 1 - 1e-6
    assert (contrast[16:26].diff() < 0).all()  # nearer to the edge its pixels, which repeat, have a part
    assert contrast[25] < 0.001


def test_rblur_desaturates_as_its_acuities_say() -> None:
    """Flat colours cannot blur: the share of the colour that is left is D_C / (D_C + D_R), by hand."""
    size = 32
    red = torch.zeros(1, 3, size, size, dtype=torch.float64)
    red[:, 0] = 1
    seen = RBlur(size=size).double()(red, centre_of(0, 5, size))[0, :, 5]
    for column in (0, 2, 8, 31):
        e = column / size

        def density(s: float, e: float = e) -> float:
            return max(math.exp(-e / s), 2 / (2.5 * math.pi) / (1 + (e / (2.5 * s)) ** 2))

        cones, rods = density(0.12), 0.12 * (1 - density(0.09))
        left = cones / (cones + rods)
        expected = [left + (1 - left) * 0.299, (1 - left) * 0.299, (1 - left) * 0.299]
        assert seen[:, column].tolist() == pytest.approx(expected, abs=1e-6)
    assert float(seen[0, 31] - seen[1, 31]) < 0.2  # nearly grey


def test_rblur_far_from_the_fixation_is_a_gaussian_blur_of_beta_widths() -> None:
    size = 32
    images = random(1, 1, size, size)
    blur = RBlur(size=size).double()
    seen = blur(images, centre_of(0, 0, size))
    kernel = gaussian(size, 0.05 * size)
    cones, rods = (acuity[0, 31, 31] for acuity in blur.acuities(images, centre_of(0, 0, size)))
    assert float(cones) < 0.03  # so colours have 0.97 of that sigma, and greys 0.88
    assert float(seen[0, 0, 31, 31] - (kernel @ images @ kernel.T)[0, 0, 31, 31]) == pytest.approx(0, abs=0.02)
    assert float(rods) == pytest.approx(0.12, abs=0.005)


# Fixations


def test_the_mean_over_fixations_is_the_mean_of_single_ones() -> None:
    for name in ("rblur", "fixations"):
        network, images = made(name), random(2, 3, SIZE, SIZE).float()
        noise = network.sample_noise(addresses(2))
        single = [
            network(images, noise | {"fixations": noise["fixations"][:, i : i + 1]})
            for i in range(noise["fixations"].shape[1])
        ]
        assert len(single) > 1
        assert largest(network(images, noise) - torch.stack(single).mean(0)) < 1e-6


def test_chosen_places_take_the_place_of_drawn_ones() -> None:
    drawn, images = made("fixations"), random(2, 3, SIZE, SIZE).float()
    places = [[0.0, 0.0], [0.5, -0.5]]
    fixed = FixationsCnn(**SMALL, places=places).eval()
    fixed.load_state_dict(drawn.state_dict())
    noise: Noise = {"fixations": torch.tensor([places, places])}
    assert torch.equal(fixed(images), drawn(images, noise))
    assert (Classifier(fixed).stochastic, fixed.sample_noise(addresses(2))) == (False, {})
    quiet = RBlurCnn(**SMALL, places=places, noise=0.0).eval()
    assert not Classifier(quiet).stochastic
    assert torch.equal(quiet(images), quiet(images))


def test_training_takes_the_first_fixation_alone() -> None:
    network, images = made("fixations"), random(2, 3, SIZE, SIZE).float()
    noise = network.sample_noise(addresses(2))
    first = {"fixations": noise["fixations"][:, :1]}
    assert torch.equal(network.train()(images, noise), network.eval()(images, first))


def test_drawn_fixations_lie_in_their_square() -> None:
    drawn = FixationsCnn(**SMALL, spread=0.5).sample_noise(addresses(400))["fixations"]
    assert drawn.shape == (400, 5, 2)
    assert 0.48 < float(drawn.max()) <= 0.5
    assert -0.5 <= float(drawn.min()) < -0.48


def test_the_retinal_warp_keeps_the_fixation_and_the_circle_of_radius_one() -> None:
    warp = RetinalWarp(ratio=10.0)
    radii = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert warp.radius(radii).tolist() == pytest.approx([0, 1], abs=1e-12)
    images = random(1, 3, SIZE, SIZE)
    for column, row in ((8, 8), (5, 11)):
        seen = warp(images, centre_of(column, row))
        assert largest(seen[..., row, column] - images[..., row, column]) < 1e-5


def test_the_spacing_of_the_retinal_warp_grows_as_the_root_of_its_ratio() -> None:
    """The derivative of r(u) is the spacing: c · ratio^(r / 2), everywhere in the unit circle."""
    warp = RetinalWarp(ratio=10.0)
    u = torch.linspace(0, 0.999, 50, dtype=torch.float64).requires_grad_()
    radii = warp.radius(u)
    (spacing,) = torch.autograd.grad(radii.sum(), u)
    assert largest(spacing / spacing[0] - 10 ** (radii / 2)) < 1e-9
    assert float(warp.radius(torch.tensor(1.5)) - warp.radius(torch.tensor(1.25))) == pytest.approx(
        0.25 * float(spacing[-1]), rel=5e-3
    )


def test_a_ratio_near_one_does_not_warp() -> None:
    images = random(2, 3, SIZE, SIZE)
    fixations = torch.tensor([[0.3, -0.2], [0.0, 0.5]], dtype=torch.float64)
    assert largest(RetinalWarp(ratio=1 + 1e-7)(images, fixations) - images) < 1e-5


# V1


def grating(phase: float, frequency: float, orientation: float, size: int = 48) -> Tensor:
    """A wave of contrast 1 in [0, 1], (1, 1, size, size)."""
    places = torch.arange(size, dtype=torch.float64)
    across = math.cos(orientation) * places[None, :] + math.sin(orientation) * places[:, None]
    return ((2 * math.pi * frequency * across + phase).cos() / 2 + 0.5)[None, None]


def test_complex_cells_do_not_see_the_phase_and_simple_cells_do() -> None:
    v1 = V1(channels=1, orientations=4, frequencies=(0.125, 0.2), kernel=25).double()
    answers = torch.cat([v1.answers(grating(phase, 0.2, 0.0)) for phase in (0.0, 0.7, 1.6, 2.9)])[:, :, 12, 12]
    pair = 1  # orientation 0, frequency 0.2
    energy, simple = answers[:, 2 * v1.pairs + pair], answers[:, pair]
    assert float(energy.std() / energy.mean()) < 0.01
    assert float(simple.max() - simple.min()) > 0.5 * float(energy.mean())
    # An envelope of weight 1 answers to a wave with half its amplitude, which is 1; the energy is that over sqrt 2.
    assert float(energy.mean()) == pytest.approx(25 * 0.5 / math.sqrt(2), rel=0.02)


def test_cells_prefer_their_own_orientation_and_frequency() -> None:
    v1 = V1(channels=1, orientations=4, frequencies=(0.125, 0.25), kernel=25).double()
    for pair in range(v1.pairs):
        turn, frequency = divmod(pair, 2)
        answers = v1.answers(grating(0.4, (0.125, 0.25)[frequency], math.pi * turn / 4))
        assert int(answers[0, 2 * v1.pairs :, 12, 12].argmax()) == pair


def test_the_variance_of_a_cell_s_spikes_is_their_mean() -> None:
    v1 = V1(channels=1, kernel=7, **BANK)  # type: ignore[arg-type]
    draws, images = 4000, random(1, 1, 8, 8).float()
    normal = Addresses.of(0, range(draws), "clean").normal("neurons", v1.cells, 4, 4)
    noisy = v1(images.expand(draws, -1, -1, -1), normal)
    spikes = v1.SCALE * noisy + v1.LEVEL
    mean = v1.SCALE * v1.answers(images)[0] + v1.LEVEL
    assert float(mean.max() / mean.min()) > 10  # so that a constant variance would show
    # Standard errors: sqrt(mean / draws) of the mean, mean · sqrt(2 / draws) of the variance; 384 cells, 5 of them.
    assert largest((spikes.mean(0) - mean) / mean.sqrt()) < 5 / math.sqrt(draws)
    assert largest(spikes.var(0) / mean - 1) < 5 * math.sqrt(2 / draws)


def test_a_uniform_image_hardly_excites_v1_and_has_a_finite_gradient() -> None:
    v1 = V1(channels=1, kernel=15, orientations=6, frequencies=(0.177, 0.25))
    images = torch.full((1, 1, 32, 32), 0.5).requires_grad_()
    answers = v1.answers(images)
    assert largest(answers.detach()) < 1e-4
    (gradient,) = torch.autograd.grad(answers.sum(), images)
    assert gradient.isfinite().all()


def test_each_filter_reads_one_colour_and_every_colour_is_read() -> None:
    filters = V1(channels=3, **BANK).filters  # type: ignore[arg-type]
    read = filters.abs().sum((2, 3)) > 0
    assert (read.sum(1) == 1).all()
    assert read.any(0).all()


# Resizing


def test_the_largest_size_without_padding_is_the_identity() -> None:
    images = random(2, 3, SIZE, SIZE)
    sizes, corners = torch.full((2,), float(SIZE)).double(), torch.zeros(2, 2).double()
    assert largest(ResizeAndPad(SIZE)(images, sizes, corners) - images) < 1e-12
    network = ResizedCnn(**SMALL, canvas=SIZE).double()
    assert largest(network(images, network.sample_noise(addresses(2))) - network.cnn(images)) < 1e-12


@pytest.mark.parametrize(("size", "column", "row"), [(16, 3, 0), (17, 1, 2), (18, 0, 1), (8, 5, 9)])
def test_it_is_torch_s_resize_with_zeros_around_it(size: int, column: int, row: int) -> None:
    images, canvas = random(1, 3, SIZE, SIZE), 19
    resized = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    expected = F.pad(resized, (column, canvas - size - column, row, canvas - size - row))
    corners = torch.tensor([[column, row]], dtype=torch.float64)
    found = ResizeAndPad(canvas)(images, torch.tensor([size], dtype=torch.float64), corners)
    assert largest(found - expected) < 1e-12


def test_sizes_and_places_take_every_value_that_fits() -> None:
    network = ResizedCnn(**SMALL, canvas=19)
    noise = network.sample_noise(addresses(500))
    assert set(noise["sizes"].tolist()) == {16, 17, 18}
    corners = (noise["corners"] * (19 - noise["sizes"][:, None] + 1)).floor()
    for size, room in ((16, 3), (17, 2), (18, 1)):
        assert set(corners[noise["sizes"] == size].flatten().tolist()) == set(range(room + 1))


# What cannot be


@pytest.mark.parametrize(("make", "message"), [
    (lambda: RBlur(size=8, beta=0.0), "R-Blur needs"),
    (lambda: RetinalWarp(ratio=1.0), "ratio > 1"),
    (lambda: V1(channels=1, orientations=2, frequencies=(0.2,), kernel=8), "Gabor bank"),
    (lambda: ResizedCnn(**SMALL, canvas=15), "canvas"),
    (lambda: FixationsCnn(**SMALL, fixations=0), "fixations >= 1"),
])  # fmt: skip
def test_impossible_parameters(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("data", ["", "-cifar10"])
def test_the_cards_wrap_the_cnn_of_the_plain_card(data: str) -> None:
    plain = cards.model(f"cnn{data}").parameters
    for name in ("cnn-rblur", "cnn-fixations", "cnn-v1", "cnn-resized"):
        card = cards.model(f"{name}{data}").parameters
        assert {key: card[key] for key in plain} == plain, name
    assert "size" in plain
    assert Cnn(channels=1, classes=2, **plain) is not None
