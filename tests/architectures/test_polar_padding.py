"""With padding "polar" the log-polar CNN turns with its input, exactly; "reference" breaks that beyond the pole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_lpm.architectures.ramlpm import GlimpseCnn, Pooling, glimpse_block
from robustbench_lpm.architectures.retina import LogPolarPadding

TOLERANCE = 1e-12
H, W = 12, 24


def maps(channels: int = 2, height: int = H, width: int = W) -> Tensor:
    return torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def settled(network: nn.Module) -> nn.Module:
    """In float64 and eval mode, with batch norms that have seen something."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.double().eval()


def difference(found: Tensor, expected: Tensor) -> Tensor:
    """The largest difference in each row."""
    assert found.shape == expected.shape
    return (found - expected).abs().amax(dim=(0, 1, 3))


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3), (3, 5), (2, 3)])
@pytest.mark.parametrize("padding", ["polar", "reference"])
def test_convolution_keeps_the_size(padding: str, kernel: tuple[int, int]) -> None:
    padded = LogPolarPadding(kernel, padding)(maps())  # type: ignore[arg-type]
    assert padded.shape == (3, 2, H + kernel[0] - 1, W + kernel[1] - 1)


def test_padding_by_hand() -> None:
    """Rows are radii 0, 1, 2; columns are the angles 0°, 90°, 180°, 270°."""
    given = torch.tensor([[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]])[None, None]
    found = LogPolarPadding((5, 3), "polar")(given)[0, 0].tolist()
    assert found == [
        [10, 11, 12, 13, 10, 11],
        [0, 1, 2, 3, 0, 1],
        [2, 3, 0, 1, 2, 3],
        [12, 13, 10, 11, 12, 13],
        [22, 23, 20, 21, 22, 23],
        [22, 23, 20, 21, 22, 23],
        [22, 23, 20, 21, 22, 23],
    ]


@pytest.mark.parametrize("shift", [1, 2, 5, 12, 23])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_without_pooling_any_roll_of_the_glimpse_rolls_the_features(kernel: int, shift: int) -> None:
    network = settled(nn.Sequential(*[glimpse_block(n, [4], kernel=kernel) for n in (2, 4, 4)]))
    rolled = network(maps().roll(shift, dims=-1))
    assert difference(rolled, network(maps()).roll(shift, dims=-1)).max() < TOLERANCE
    assert difference(rolled, network(maps())).max() > 0.1


# The layers, and the product of their pools along the angle.
POOLED: list[tuple[list[list[int]], int]] = [
    ([[4], [5]], 1),
    ([[4, 2, 2], [5]], 2),
    ([[4, 2, 2], [5, 1, 3]], 6),
    ([[4], [4, 3, 3], [5, 2, 2], [3, 1, 2]], 12),
]


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize(("layers", "stride"), POOLED)
def test_with_pooling_rolls_by_the_total_stride_roll_the_features(
    layers: list[list[int]], stride: int, pooling: Pooling
) -> None:
    network = settled(GlimpseCnn(2, layers, pooling=pooling))
    assert isinstance(network, GlimpseCnn)
    plain = network.blocks(maps())
    for steps in (1, W // stride - 1):
        rolled = network.blocks(maps().roll(steps * stride, dims=-1))
        assert difference(rolled, plain.roll(steps, dims=-1)).max() < TOLERANCE
    if stride > 1:  # a smaller roll does not
        assert difference(network.blocks(maps().roll(1, dims=-1)), plain).max() > 1e-3
    assert network(maps()).shape == (3, network.features(H, W))
    assert torch.equal(network(maps()), plain.flatten(1))


@pytest.mark.parametrize("shift", [1, 7, 12])
def test_the_padding_of_the_reference_breaks_it_in_row_0_only(shift: int) -> None:
    network = settled(glimpse_block(2, [4], padding="reference"))
    rows = difference(network(maps().roll(shift, dims=-1)), network(maps()).roll(shift, dims=-1))
    assert rows[0] > 0.1
    assert rows[1:].max() < TOLERANCE


def test_the_paddings_differ_in_row_0_only() -> None:
    torch.manual_seed(0)
    polar = settled(glimpse_block(2, [4], padding="polar"))
    reference = settled(glimpse_block(2, [4], padding="reference"))
    reference.load_state_dict(polar.state_dict())
    rows = difference(polar(maps()), reference(maps()))
    assert rows[0] > 0.1
    assert rows[1:].max() < TOLERANCE


def test_what_cannot_be_padded() -> None:
    with pytest.raises(ValueError, match="padding must be 'polar' or 'reference', not 'zero'"):
        LogPolarPadding((3, 3), "zero")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="even number of angles, not 23"):
        LogPolarPadding((3, 3))(maps(width=23))
    assert LogPolarPadding((1, 3))(maps(width=23)).shape[-1] == 25  # no pole, no half-turn


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_zeros_around_a_map_keep_its_size(kernel: int) -> None:
    block = settled(glimpse_block(2, [4], kernel=kernel, padding="zeros"))
    padded = block.padding(maps())
    assert padded.shape == (3, 2, H + kernel - 1, W + kernel - 1)
    assert float(padded.sum()) == pytest.approx(float(maps().sum()))
    assert block(maps()).shape == (3, 4, H, W)


def test_with_zeros_around_it_a_map_is_a_picture() -> None:
    """Equal to torch's own zero padding; neither angles nor a pole are left."""
    block = settled(glimpse_block(2, [4], padding="zeros"))
    own = torch.nn.functional.conv2d(maps(), block.conv.weight, block.conv.bias, padding=1)
    torch.testing.assert_close(block.conv(block.padding(maps())), own, rtol=0, atol=TOLERANCE)
    assert difference(block(maps().roll(1, dims=-1)), block(maps()).roll(1, dims=-1)).min() > 1e-3
    assert block(maps(width=23)).shape[-1] == 23
