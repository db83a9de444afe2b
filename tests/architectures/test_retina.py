"""Retinas obey the symmetries of their geometry, in float64, to 1e-12."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustbench_lpm.architectures.retina import Retina, cartesian_retina, log_polar_retina, rectangular_retina

TOLERANCE = 1e-12
H, W = 10, 24
either_convention = pytest.mark.parametrize("align_corners", [False, True])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coordinates(size: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The normalised x and y of every pixel's centre, (size, size) each."""
    step = torch.arange(size, dtype=torch.float64)
    line = 2 * step / (size - 1) - 1 if align_corners else (2 * step + 1) / size - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


def at(*fixation: float, batch: int = 1) -> Tensor:
    return torch.tensor([fixation] * batch, dtype=torch.float64)


CENTRE = at(0.0, 0.0)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE


@either_convention
@pytest.mark.parametrize(("u", "inner_rows"), [(1, 0), (1, 3), (2, 0)])
@pytest.mark.parametrize("size", [32, 33])
def test_turning_the_image_by_a_quarter_rolls_the_angles(
    size: int, u: int, inner_rows: int, align_corners: bool
) -> None:
    retina = log_polar_retina(H, W, 0.05, 1.2, oversampling=u, inner_rows=inner_rows, align_corners=align_corners)
    images = random(2, 3, size, size)
    upright = retina(images, at(0.0, 0.0, batch=2))
    for quarters in (1, 2, 3):
        # torch turns from y towards x as seen on the screen; angles grow from x towards y, which points down.
        turned = retina(images.rot90(quarters, dims=(2, 3)), at(0.0, 0.0, batch=2))
        assert_close(turned, upright.roll(-quarters * W // 4, dims=-1))
        assert (turned - upright).abs().max() > 0.01


@either_convention
def test_turning_image_and_fixation_rolls_the_angles(align_corners: bool) -> None:
    retina = log_polar_retina(H, W, 0.05, 0.6, align_corners=align_corners)
    images, x, y = random(1, 1, 32, 32), 0.3, -0.1
    turned = retina(images.rot90(1, dims=(2, 3)), at(y, -x))
    assert_close(turned, retina(images, at(x, y)).roll(-W // 4, dims=-1))


@either_convention
def test_flipping_the_image_reverses_the_angles(align_corners: bool) -> None:
    retina = log_polar_retina(H, W, 0.05, 1.2, align_corners=align_corners)
    images = random(1, 2, 32, 32)
    upright = retina(images, CENTRE)
    reversed_angles = (-torch.arange(W)) % W
    assert_close(retina(images.flip(2), CENTRE), upright[..., reversed_angles])
    assert_close(retina(images.flip(3), CENTRE), upright[..., (W // 2 - torch.arange(W)) % W])


class Analytic(Retina):
    """Samples a function instead of pixels: its geometry without interpolation."""

    function: Callable[[Tensor, Tensor], Tensor]

    def sample(self, images: Tensor, fixations: Tensor, pattern: Tensor) -> Tensor:
        points = pattern + fixations[:, None, None, :]
        return self.function(points[..., 0], points[..., 1])[:, None]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_scaling_by_a_power_of_q_shifts_the_radii(k: int) -> None:
    retina = Analytic([(log_polar_retina(H, W, 0.05, 0.8).points[0], 1)])
    q = (0.8 / 0.05) ** (1 / (H - 1))

    def scene(x: Tensor, y: Tensor) -> Tensor:
        return torch.cos(7 * torch.hypot(x, y)) + torch.sin(3 * x - y)

    retina.function = scene
    plain = retina(random(1, 1, 4, 4), CENTRE)
    retina.function = lambda x, y: scene(x * q**k, y * q**k)  # everything nearer by q^k
    scaled = retina(random(1, 1, 4, 4), CENTRE)
    assert_close(scaled[:, :, :-k], plain[:, :, k:])
    assert (scaled - plain).abs().max() > 0.1


@either_convention
@pytest.mark.parametrize("k", [1, 4])
def test_scaling_an_image_of_pixels_shifts_the_radii(k: int, align_corners: bool) -> None:
    """A plane is interpolated exactly, so that the identity holds through pixels as well."""
    r_min, r_max = 0.02, 0.3
    retina = log_polar_retina(H, W, r_min, r_max, align_corners=align_corners)
    q = (r_max / r_min) ** (1 / (H - 1))
    x, y = coordinates(40, align_corners)
    plain, scaled = ((0.5 + 0.3 * s * x - 0.2 * s * y)[None, None] for s in (1, q**k))
    assert_close(retina(scaled, CENTRE)[:, :, :-k], retina(plain, CENTRE)[:, :, k:])


@either_convention
@pytest.mark.parametrize(("u", "inner_rows"), [(1, 0), (3, 0), (2, 4)])
def test_a_constant_image_gives_a_constant(u: int, inner_rows: int, align_corners: bool) -> None:
    retina = log_polar_retina(H, W, 0.05, 0.6, oversampling=u, inner_rows=inner_rows, align_corners=align_corners)
    glimpse = retina(torch.full((1, 2, 32, 32), 0.7, dtype=torch.float64), at(0.2, -0.1))
    assert_close(glimpse, torch.full((1, 2, H + inner_rows, W), 0.7, dtype=torch.float64))


@either_convention
@pytest.mark.parametrize("size", [32, 57])
def test_a_ramp_returns_the_coordinates_of_the_points(size: int, align_corners: bool) -> None:
    retina = log_polar_retina(H, W, 0.05, 0.6, inner_rows=2, align_corners=align_corners)
    x, y = coordinates(size, align_corners)
    fixation = at(0.21, -0.13)
    glimpse = retina(torch.stack([x, y])[None], fixation)
    j = torch.arange(W, dtype=torch.float64)
    rings = [0.05 * (0.6 / 0.05) ** (i / (H - 1)) for i in range(H)]
    radii = torch.tensor([0.05 * math.sqrt(h / 2) for h in range(2)] + rings, dtype=torch.float64)[:, None]
    expected = torch.stack([radii * (2 * math.pi * j / W).cos() + 0.21, radii * (2 * math.pi * j / W).sin() - 0.13])
    assert_close(glimpse[0], expected)


@either_convention
def test_beyond_the_image_lies_darkness(align_corners: bool) -> None:
    retina = log_polar_retina(H, W, 0.05, 3.0, align_corners=align_corners)
    glimpse = retina(torch.ones(1, 1, 32, 32, dtype=torch.float64), CENTRE)
    assert glimpse[:, :, 0].min() == 1
    assert glimpse[:, :, -1].max() == 0


@either_convention
@pytest.mark.parametrize(("retina_class", "arguments"), [
    (log_polar_retina, (H, W, 0.05, 0.5)),
    (rectangular_retina, (8, 2, 0.2)),
    (cartesian_retina, (8, 9, 0.5)),
])  # fmt: skip
def test_moving_image_and_fixation_together_changes_nothing(
    retina_class: Callable[..., Retina], arguments: tuple[float, ...], align_corners: bool
) -> None:
    retina = retina_class(*arguments, align_corners=align_corners)
    size, down, right = 48, 3, -5
    images = torch.zeros(1, 1, size, size, dtype=torch.float64)
    images[:, :, 12:36, 12:36] = random(1, 1, 24, 24)
    pixel = 2 / (size - 1) if align_corners else 2 / size
    there = retina(images.roll((down, right), dims=(2, 3)), at(0.1 + right * pixel, 0.05 + down * pixel))
    assert_close(there, retina(images, at(0.1, 0.05)))


@pytest.mark.parametrize("retina", [
    log_polar_retina(H, W, 0.05, 1.0),
    log_polar_retina(H, W, 0.05, 1.0, oversampling=2, inner_rows=2, align_corners=True),
    rectangular_retina(6, 3, 0.3),
    cartesian_retina(5, 7, 1.0, oversampling=2),
], ids=["log-polar", "log-polar, oversampled", "rectangular", "Cartesian"])  # fmt: skip
def test_the_gradient_is_the_adjoint(retina: Retina) -> None:
    fixations = random(2, 2) - 0.5
    somewhere = random(2, 3, 20, 20, seed=1).requires_grad_()
    glimpse = retina(somewhere, fixations)
    y = random(*glimpse.shape, seed=2)
    (adjoint,) = torch.autograd.grad((glimpse * y).sum(), somewhere)
    x = random(2, 3, 20, 20, seed=3)  # another image than the one the gradient was taken at
    left, right = (retina(x, fixations) * y).sum(), (x * adjoint).sum()
    assert abs(float(left - right)) < TOLERANCE * float(left.abs())


def test_fixations_belong_to_their_images() -> None:
    retina = log_polar_retina(H, W, 0.05, 1.0)
    images, fixations = random(3, 1, 20, 20), random(3, 2) - 0.5
    alone = [retina(images[i : i + 1], fixations[i : i + 1]) for i in range(3)]
    assert_close(retina(images, fixations), torch.cat(alone))


@pytest.mark.parametrize(("u", "inner_rows"), [(1, 0), (2, 0), (1, 3), (3, 5)])
@pytest.mark.parametrize("size", [16, 300])
def test_the_glimpse_does_not_depend_on_the_size_of_the_image(u: int, inner_rows: int, size: int) -> None:
    retina = log_polar_retina(H, W, 0.05, 1.0, oversampling=u, inner_rows=inner_rows)
    assert retina(random(1, 3, size, size), CENTRE).shape == (1, 3, H + inner_rows, W)
    assert retina.height == H + inner_rows
    assert [tuple(points.shape) for points in retina.points] == [(u * (H + inner_rows), u * W, 2)]


def test_oversampling_averages_a_finer_retina() -> None:
    images, fixation = random(1, 2, 40, 40), at(0.1, 0.2)
    fine = log_polar_retina(3 * H, 3 * W, 0.05, 1.0)(images, fixation)
    found = log_polar_retina(H, W, 0.05, 1.0, oversampling=3)(images, fixation)
    assert_close(found, fine.unflatten(3, (W, 3)).unflatten(2, (H, 3)).mean(dim=(3, 5)))


def test_radii_grow_by_a_constant_factor_around_a_disc_of_equal_areas() -> None:
    points = log_polar_retina(H, W, 0.05, 0.8, inner_rows=4, oversampling=2).points[0]
    radii = points[:, 0, 0]  # along x
    disc, rings = radii[:8], radii[8:]
    assert_close(
        rings[1:] / rings[:-1], torch.full((2 * H - 1,), (0.8 / 0.05) ** (1 / (2 * H - 1)), dtype=torch.float64)
    )
    assert abs(float(rings[0]) - 0.05) < TOLERANCE
    assert abs(float(rings[-1]) - 0.8) < TOLERANCE
    areas = torch.cat([disc, rings[:1]]).square().diff()
    assert_close(areas, torch.full_like(areas, 0.05**2 / 8))


@pytest.mark.parametrize("arguments", [
    {"height": 4, "width": 8, "r_min": 0.0, "r_max": 1.0},
    {"height": 4, "width": 8, "r_min": 0.5, "r_max": 0.5},
    {"height": 1, "width": 8, "r_min": 0.1, "r_max": 1.0},
    {"height": 4, "width": 0, "r_min": 0.1, "r_max": 1.0},
    {"height": 4, "width": 8, "r_min": 0.1, "r_max": 1.0, "oversampling": 0},
    {"height": 4, "width": 8, "r_min": 0.1, "r_max": 1.0, "inner_rows": -1},
])  # fmt: skip
def test_impossible_retinas(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a log-polar retina needs"):
        log_polar_retina(**arguments)


def test_precision_follows_the_images() -> None:
    """The pattern is made anew in float64, not widened from float32."""
    retina = log_polar_retina(H, W, 0.05, 0.6)
    x, y = coordinates(32, align_corners=False)
    ramp = torch.stack([x, y])[None]
    single = retina(ramp.float(), CENTRE.float())
    double = retina(ramp, CENTRE)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert_close(double, log_polar_retina(H, W, 0.05, 0.6)(ramp, CENTRE))
    assert 0 < (single - double).abs().max() < 1e-5


@either_convention
@pytest.mark.parametrize("scales", [1, 3])
def test_a_rectangular_retina_on_a_constant(scales: int, align_corners: bool) -> None:
    retina = rectangular_retina(5, scales, 0.1, align_corners=align_corners)
    glimpse = retina(torch.full((1, 2, 40, 40), 0.3, dtype=torch.float64), at(0.1, -0.2))
    assert_close(glimpse, torch.full((1, 2 * scales, 5, 5), 0.3, dtype=torch.float64))


@either_convention
def test_a_rectangular_retina_on_a_ramp(align_corners: bool) -> None:
    """Every cell of every scale returns the coordinate of its centre."""
    retina = rectangular_retina(4, 3, 0.1, align_corners=align_corners)
    x, y = coordinates(64, align_corners)
    glimpse = retina(torch.stack([x, y])[None], at(0.2, -0.1))[0].unflatten(0, (3, 2))
    for scale in range(3):
        centres = 0.1 * 2**scale * torch.tensor([-0.75, -0.25, 0.25, 0.75], dtype=torch.float64)
        assert_close(glimpse[scale, 0], (0.2 + centres).expand(4, 4))
        assert_close(glimpse[scale, 1], (-0.1 + centres)[:, None].expand(4, 4))


@either_convention
@pytest.mark.parametrize("u", [1, 3])
def test_a_cartesian_retina_on_a_ramp(u: int, align_corners: bool) -> None:
    """Every sample returns the coordinates of its cell's centre; rows and columns may differ in number."""
    retina = cartesian_retina(4, 5, 0.5, oversampling=u, align_corners=align_corners)
    x, y = coordinates(64, align_corners)
    glimpse = retina(torch.stack([x, y])[None], at(0.2, -0.1))[0]
    columns = torch.tensor([-0.4, -0.2, 0.0, 0.2, 0.4], dtype=torch.float64)
    rows = torch.tensor([-0.375, -0.125, 0.125, 0.375], dtype=torch.float64)
    assert_close(glimpse[0], (0.2 + columns).expand(4, 5))
    assert_close(glimpse[1], (-0.1 + rows)[:, None].expand(4, 5))


def test_a_cartesian_retina_of_the_size_of_the_image_returns_it() -> None:
    images = random(2, 3, 9, 7)
    assert_close(cartesian_retina(9, 7, 1.0)(images, at(0.0, 0.0, batch=2)), images)


@either_convention
def test_a_cartesian_retina_on_a_constant(align_corners: bool) -> None:
    retina = cartesian_retina(6, 5, 0.5, oversampling=2, align_corners=align_corners)
    glimpse = retina(torch.full((1, 2, 40, 40), 0.3, dtype=torch.float64), at(0.1, -0.2))
    assert_close(glimpse, torch.full((1, 2, 6, 5), 0.3, dtype=torch.float64))


@pytest.mark.parametrize("arguments", [(0, 5, 1.0), (5, 0, 1.0), (5, 5, 0.0)])
def test_impossible_cartesian_retinas(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="a rectangular retina needs"):
        cartesian_retina(*arguments)
