"""The foveal blur is linear, leaves constants and the centre alone, and blurs as much as it says."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from robustbench_lpm.architectures.cnn import Cnn
from robustbench_lpm.architectures.foveated import FovealBlur, FoveatedCnn, gaussian
from robustbench_lpm.architectures.retina import log_polar_retina
from robustbench_lpm.registry import cards

TOLERANCE = 1e-12
RETINA = {"height": 12, "width": 24, "r_min": 0.05, "r_max": 1.0}
SIZES = [(32, 32), (33, 33), (20, 48), (7, 5), (1, 3)]


def blur(**changes: float) -> FovealBlur:
    return FovealBlur(**(RETINA | changes))  # type: ignore[arg-type]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_image_stays_as_it_is(size: tuple[int, int]) -> None:
    images = torch.full((2, 3, *size), 0.7, dtype=torch.float64)
    assert largest(blur()(images) - images) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_it_is_linear_and_its_gradient_is_the_adjoint(size: tuple[int, int]) -> None:
    x, z, y = (random(2, 3, *size, seed=seed) for seed in range(3))
    module = blur()
    assert largest(module(2 * x - 3 * z) - (2 * module(x) - 3 * module(z))) < TOLERANCE
    (adjoint,) = torch.autograd.grad((module(z.requires_grad_()) * y).sum(), z)
    assert abs(float((module(x) * y).sum() - (x * adjoint).sum())) < 1e-10


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(blur(), random(1, 1, 6, 5).requires_grad_())


@pytest.mark.parametrize("retina", [(12, 24), (24, 12), (5, 40)])
def test_sigma_is_half_the_larger_spacing_of_the_retina_s_samples(retina: tuple[int, int]) -> None:
    """Measured on the retina's own points."""
    height, width = retina
    points = log_polar_retina(height, width, 0.05, 1.0).points[0]
    radii = points.norm(dim=-1)[:, 0]
    along_a_ray = torch.log(radii[1:] / radii[:-1])
    around_the_pole = 2 * math.pi / width
    expected = max(float(along_a_ray.mean()), around_the_pole) / 2
    module = blur(height=height, width=width)
    assert module.relative_sigma == pytest.approx(expected, rel=1e-12)
    sigma = module.sigma(41, 41)
    assert float(sigma[20, 20]) == pytest.approx(0.05 * expected)  # the centre, inside r_min
    assert float(sigma[20, 40]) == pytest.approx(40 / 41 * expected)
    assert float(sigma[0, 0]) == pytest.approx(40 / 41 * math.sqrt(2) * expected)


def test_the_blur_of_a_point_has_the_variance_that_is_asked_for() -> None:
    """Rows of the map are what a pixel sees: their second moment is sigma², away from the edge and above a pixel."""
    size = 65
    module = blur()
    pixels = torch.arange(size, dtype=torch.float64)
    for column in (32 + 16, 32 + 22):
        images = (pixels - column).square().expand(1, 1, size, size)
        asked = float(module.sigma(size, size)[32, column]) * size / 2
        seen = float(module(images)[0, 0, 32, column])
        assert asked > 1
        assert seen == pytest.approx(asked**2, rel=0.01)


def test_the_centre_is_sharp_and_the_periphery_smooth() -> None:
    board = torch.ones(32, 32, dtype=torch.float64)
    board[::2, ::2] = board[1::2, 1::2] = -1
    contrast = blur()(board[None, None])[0, 0].abs()
    assert contrast[15:17, 15:17].min() > 0.999
    assert contrast[[4, 4, 27, 27], [4, 27, 4, 27]].max() < 0.02  # away from the edge, whose pixels repeat
    assert (contrast[16, 16:26].diff() < TOLERANCE).all()


def test_it_turns_and_flips_with_the_image() -> None:
    images = random(1, 2, 20, 20)
    assert largest(blur()(images.rot90(1, (2, 3))) - blur()(images).rot90(1, (2, 3))) < TOLERANCE
    assert largest(blur()(images.flip(3)) - blur()(images).flip(3)) < TOLERANCE


@pytest.mark.parametrize("size", [1, 2, 5, 30])
@pytest.mark.parametrize("sigma", [0.01, 0.7, 3.0, 50.0])
def test_the_edge_of_a_line_repeats_outside_it(size: int, sigma: float) -> None:
    reach = math.ceil(4 * sigma)
    line = random(size)
    padded = torch.nn.functional.pad(line[None, None], (reach, reach), mode="replicate")
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    expected = torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])[0, 0]
    assert largest(gaussian(size, sigma) @ line - expected) < TOLERANCE


def test_the_blur_follows_the_image_s_size_and_precision() -> None:
    module = blur()
    images = random(1, 1, 16, 16)
    double, single = module(images), module(images.float())
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    assert 0 < largest(double - single) < 1e-5
    assert module(random(1, 1, 8, 12)).shape == (1, 1, 8, 12)
    assert torch.equal(module(images), double)
    assert not module.state_dict()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_can_be_trained_after_use_in_inference_mode(duplicate: object) -> None:
    module = blur()
    with torch.inference_mode():
        expected = module(random(1, 1, 9, 9))
    twin = duplicate(module)  # type: ignore[operator]
    images = random(1, 1, 9, 9).requires_grad_()
    assert torch.equal(twin(images), expected)
    twin(images).sum().backward()
    assert images.grad is not None


@pytest.mark.parametrize("changes", [
    {"height": 1}, {"width": 0}, {"r_min": 0.0}, {"r_max": 0.05}, {"copies": 1},
])  # fmt: skip
def test_impossible_blurs(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a foveal blur needs"):
        blur(**changes)


def test_a_foveated_cnn_is_a_cnn_behind_the_blur() -> None:
    torch.manual_seed(0)
    network = FoveatedCnn(
        channels=1, classes=3, retina_height=12, retina_width=24, r_min=0.05, r_max=1.0, size=16, width=4, hidden=8
    ).double()
    images = random(2, 1, 16, 16)
    assert torch.equal(network(images), network.cnn(network.blur(images)))
    assert set(network.state_dict()) == {f"cnn.{name}" for name in network.cnn.state_dict()}


def test_the_foveated_control_has_the_retina_of_the_model_that_it_is_a_control_of() -> None:
    card = cards.model("cnn-foveated")
    model = cards.model(str(card.control_of)).parameters
    names = {"retina_height": "height", "retina_width": "width", "r_min": "r_min", "r_max": "r_max"}
    assert {names[name]: card.parameters[name] for name in names} == {name: model[name] for name in names.values()}


@pytest.mark.parametrize("size", [4, 16, 17, 18, 19, 20])
def test_a_cnn_takes_images_of_any_size(size: int) -> None:
    assert Cnn(channels=1, classes=3, size=size, width=2, hidden=4)(torch.rand(2, 1, size, size)).shape == (2, 3)
