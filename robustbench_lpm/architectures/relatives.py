"""Front ends of published defences that see less, or noisily, before the `Cnn` of this package.

Each is written from its paper, in torch and differentiable in the image: an attack gets the gradient of what is
computed. Where a step has none (which size, which place), it is fixed by the noise, and the sampling that follows is
differentiable. Every random number is an argument, by source:

    `RBlurCnn`        "fixations" (B, F, 2), "pixels" (B, C, size, size)
    `FixationsCnn`    "fixations" (B, F, 2)
    `V1Cnn`           "neurons" (B, 3 · pairs, size / stride, size / stride)
    `ResizedCnn`      "sizes" (B,), "corners" (B, 2)

Fixations are (x, y) in [-1, 1] over the image. The images are square and in [0, 1] (`V1`, `RBlur`), or normalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lpm.allocator import to_device
from robustbench_lpm.architectures.classifier import Noise
from robustbench_lpm.architectures.cnn import Cnn
from robustbench_lpm.architectures.foveated import gaussian, hats
from robustbench_lpm.randomness import Addresses

_calls = count()  # passes without noise, of all networks of this process


class _Drawing(nn.Module):
    """A network that draws its own noise where none is given."""

    def sample_noise(self, addresses: Addresses) -> Noise:
        """Every random number of one pass, one address for each image."""
        raise NotImplementedError

    def noise_for(self, images: Tensor, noise: Noise | None) -> Noise:
        """Noise in the precision and on the device of the images."""
        noise = noise or self.sample_noise(Addresses.of("", range(len(images)), "own", next(_calls)))
        return {source: to_device(values, images.device).to(images.dtype) for source, values in noise.items()}


class _Fixating(_Drawing):
    """The mean logits of a CNN over several fixations of an image; a subclass says what is seen from each.

    In training mode only the first drawn fixation is used, as the papers train.

    Args:
        fixations: drawn for one pass, F; spread: half the side of the square in which they lie.
        places: fixations (x, y) of every pass in place of drawn ones.
    """

    places: Tensor

    def __init__(self, cnn: Cnn, *, fixations: int, spread: float, places: Sequence[Sequence[float]]) -> None:
        super().__init__()
        if fixations < 1 or spread < 0:
            raise ValueError("a network that fixates needs fixations >= 1 and a spread >= 0")
        self.cnn, self.fixations, self.spread = cnn, fixations, spread
        self.register_buffer("places", torch.tensor([list(place) for place in places]), persistent=False)

    @property
    def stochastic(self) -> bool:
        """Whether two passes over one image may differ."""
        return not len(self.places)

    def sample_noise(self, addresses: Addresses) -> Noise:
        if len(self.places):
            return {}
        return {"fixations": (addresses.uniform("fixations", self.fixations, 2) * 2 - 1) * self.spread}

    def see(self, images: Tensor, fixations: Tensor) -> Tensor:
        """What is seen of images (N, C, size, size), of each from one fixation (N, 2)."""
        raise NotImplementedError

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (B, classes)."""
        if len(self.places):
            fixations = self.places.to(images.dtype).expand(len(images), -1, -1)
        else:
            drawn = self.noise_for(images, noise)["fixations"]
            fixations = drawn[:, :1] if self.training else drawn
        seen = self.see(images.repeat_interleave(fixations.shape[1], 0), fixations.flatten(0, 1))
        return self.cnn(seen).unflatten(0, fixations.shape[:2]).mean(1)


def _pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """The centres of the rows (h, 1) and columns (w,) of images, in [-1, 1]."""
    y, x = ((2 * torch.arange(n, device=images.device, dtype=images.dtype) + 1) / n - 1 for n in images.shape[-2:])
    return y[:, None], x


class RBlur(nn.Module):
    """Blur and loss of colour that grow with the distance from a fixation (R-Blur, Shah and Raj 2023, section 2).

    At eccentricity e, the larger of the horizontal and the vertical distance in widths of the image, the acuities of
    cones and rods are

        D_C(e) = max(exp(-e / s_C), 2 / (2.5 π) / (1 + (e / (2.5 s_C))²))        D_R(e) = m (1 - D_C(e) with s_R)

    (Laplace and Cauchy densities over the value at 0). The colours are blurred by a Gaussian of standard deviation
    beta (1 - D_C) widths and the greys by beta (1 - D_R); a pixel is their mean, weighted by D_C and D_R. At the
    fixation the image stays as it is; at a distance of one width 85 % of the colour is gone.

    s_C, s_R and m are those of the authors' public code; beta and the form of D_R are after the paper, and we could not
    compare them with it. It blurs in rings of one sigma each; here every pixel mixes the two of `copies` blurred copies
    that enclose its sigma, linearly in sigma². At 32 pixels the largest sigma is 1.6 pixels. The edge repeats outside
    the image. Grey images have no colour to lose: both blurs apply.
    """

    CONES, RODS, RODS_MOST = 0.12, 0.09, 0.12  # s_C, s_R, m
    GREY = (0.299, 0.587, 0.114)  # of red, green and blue

    blurs: Tensor
    grey: Tensor

    def __init__(self, *, size: int, beta: float = 0.05, copies: int = 5) -> None:
        super().__init__()
        if beta <= 0 or copies < 2:
            raise ValueError("R-Blur needs beta > 0 and two copies")
        self.beta, self.copies = beta, copies
        sigmas = [beta * size * copy / (copies - 1) for copy in range(1, copies)]
        blurs = [torch.eye(size, dtype=torch.float64), *(gaussian(size, sigma) for sigma in sigmas)]
        self.register_buffer("blurs", torch.stack(blurs).float()[:, None, None], persistent=False)
        self.register_buffer("grey", torch.tensor(self.GREY)[:, None, None], persistent=False)

    def acuities(self, images: Tensor, fixations: Tensor) -> tuple[Tensor, Tensor]:
        """D_C and D_R at every pixel of images (N, C, size, size), (N, size, size) each, for fixations (N, 2)."""
        y, x = _pixels(images)
        across, down = (fixations[:, i, None, None] for i in (0, 1))
        eccentricity = torch.maximum((x - across).abs(), (y - down).abs()) / 2
        cones = self._density(eccentricity, self.CONES)
        return cones, self.RODS_MOST * (1 - self._density(eccentricity, self.RODS))

    @staticmethod
    def _density(eccentricity: Tensor, scale: float) -> Tensor:
        wide = 2.5 * scale
        tails = 2 / (2.5 * math.pi) / (1 + (eccentricity / wide).square())
        return torch.maximum(torch.exp(-eccentricity / scale), tails)

    def blurred(self, images: Tensor) -> Tensor:
        """Copies (copies, N, C, size, size) with sigmas from 0 to beta widths, evenly spaced."""
        return self.blurs @ images @ self.blurs.mT

    def forward(self, images: Tensor, fixations: Tensor) -> Tensor:
        """Images (N, C, size, size) to images of the same shape, as seen from fixations (N, 2)."""
        cones, rods = self.acuities(images, fixations)
        knots = torch.linspace(0, self.beta, self.copies, dtype=images.dtype, device=images.device).square()
        colours, greys = (
            hats((self.beta * (1 - acuity)).square(), knots) * (acuity / (cones + rods)) for acuity in (cones, rods)
        )
        copies = self.blurred(images)
        seen = (colours[:, :, None] * copies).sum(0)
        grey = (greys[:, :, None] * copies).sum(0)
        if images.shape[1] == 3:
            grey = (grey * self.grey).sum(1, keepdim=True)
        return seen + grey


class RBlurCnn(_Fixating):
    """`Cnn` behind Gaussian noise and `RBlur`; images (B, channels, size, size) in [0, 1] to logits (B, classes).

    The paper trains on random fixations anywhere in the image and tests on the mean over five, centre and corners:
    fixations = 5, or places. The noise of its networks for CIFAR-10 is uncertain to us (0.125, the default, or 0.0625);
    it is drawn once for all fixations of a pass and is not clipped.
    """

    exact_parts = ("blur",)

    def __init__(
        self, *, channels: int, classes: int, size: int = 32, width: int = 32, hidden: int = 128, dropout: float = 0.0,
        noise: float = 0.125, fixations: int = 1, spread: float = 1.0, places: Sequence[Sequence[float]] = (),
    ) -> None:  # fmt: skip
        cnn = Cnn(channels=channels, classes=classes, size=size, width=width, hidden=hidden, dropout=dropout)
        super().__init__(cnn, fixations=fixations, spread=spread, places=places)
        self.blur, self.noise, self.shape = RBlur(size=size), noise, (channels, size, size)

    @property
    def stochastic(self) -> bool:
        """Whether two passes over one image may differ."""
        return self.noise > 0 or super().stochastic

    def sample_noise(self, addresses: Addresses) -> Noise:
        """Fixations (B, F, 2) unless places are given, and the pixels' noise (B, channels, size, size)."""
        pixels = {"pixels": addresses.normal("pixels", *self.shape)} if self.noise else {}
        return super().sample_noise(addresses) | pixels

    def see(self, images: Tensor, fixations: Tensor) -> Tensor:
        return self.blur(images, fixations)

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (B, classes)."""
        noise = self.noise_for(images, noise)
        return super().forward(images + self.noise * noise["pixels"] if self.noise else images, noise)


class RetinalWarp(nn.Module):
    """Samples an image densely near a fixation and sparsely far from it, in place (Vuyyuru et al. 2020, section 3.1).

    The spacing of samples grows as ratio^(r / 2) with the distance r from the fixation in half widths, so that their
    density at r = 1 is 1 / ratio of that at the fixation. A sample at distance u before the warp then lies at

        r(u) = -2 / ln(ratio) ln(1 - u (1 - ratio^(-1/2)))

    which keeps r = 0 and r = 1; beyond 1 it goes on straight. The paper takes the nearest pixel and fits a parabola to
    r(u); here samples are bilinear. Outside the image is 0.
    """

    def __init__(self, *, ratio: float = 10.0) -> None:
        super().__init__()
        if ratio <= 1:
            raise ValueError("a retinal warp needs a ratio > 1")
        self.ratio = ratio

    def radius(self, distance: Tensor) -> Tensor:
        """r(u) for distances u >= 0 of any shape."""
        reach = 1 - self.ratio**-0.5
        inside = -2 / math.log(self.ratio) * torch.log1p(-reach * distance.clamp(max=1))
        slope = 2 / math.log(self.ratio) * reach * self.ratio**0.5
        return inside + slope * (distance - 1).clamp(min=0)

    def forward(self, images: Tensor, fixations: Tensor) -> Tensor:
        """Images (N, C, h, w) to images of the same shape, as seen from fixations (N, 2)."""
        y, x = _pixels(images)
        points = torch.stack(torch.broadcast_tensors(x, y), dim=-1)
        centres = fixations[:, None, None, :]
        offsets = points - centres
        distance = offsets.norm(dim=-1, keepdim=True).clamp(min=1e-6)  # no division by 0 at the fixation
        grid = centres + offsets * (self.radius(distance) / distance)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class FixationsCnn(_Fixating):
    """`Cnn` behind `RetinalWarp`, averaged over fixations; images (B, channels, size, size) to logits (B, classes).

    The paper trains on one random fixation within 8 of CIFAR-10's 32 pixels from the centre, a spread of 0.5, and
    averages the answers over five at test: here drawn from the same square, or `places`.
    """

    exact_parts = ("warp",)

    def __init__(
        self, *, channels: int, classes: int, size: int = 32, width: int = 32, hidden: int = 128, dropout: float = 0.0,
        ratio: float = 10.0, fixations: int = 5, spread: float = 0.5, places: Sequence[Sequence[float]] = (),
    ) -> None:  # fmt: skip
        cnn = Cnn(channels=channels, classes=classes, size=size, width=width, hidden=hidden, dropout=dropout)
        super().__init__(cnn, fixations=fixations, spread=spread, places=places)
        self.warp = RetinalWarp(ratio=ratio)

    def see(self, images: Tensor, fixations: Tensor) -> Tensor:
        return self.warp(images, fixations)


class V1(nn.Module):
    """Gabor filters, simple and complex cells and noise like that of spikes (VOneBlock, Dapello et al. 2020).

    For every orientation and frequency there is a quadrature pair of Gabor filters, even q0 and odd q1, of which two
    simple cells answer gain · relu(q) and one complex cell gain · sqrt((q0² + q1²) / 2), whatever the phase. An answer
    r stands for scale · r + level spikes on average, and their variance is their mean.

    gain 25, scale 0.35, level 0.07 and the range of images, [-1, 1], are the paper's. It draws 512 filters of 25
    pixels from measured distributions, for images of 224 pixels and 8 degrees, and steps by 4 pixels. At 32 pixels
    that leaves nothing: here a regular bank of fewer filters has frequencies in cycles a pixel, an envelope whose
    standard deviation is half a period (the middle of the measured ones), and steps of 2 pixels. As there, a filter
    reads one colour, here in turn. The edge repeats outside the image.

    Args:
        channels: of the images. orientations, frequencies (cycles a pixel): of the bank.
        kernel: side of a filter, odd. stride: pixels from one cell to the next.
    """

    GAIN, SCALE, LEVEL = 25.0, 0.35, 0.07
    filters: Tensor

    def __init__(
        self, *, channels: int, orientations: int, frequencies: Sequence[float], kernel: int = 15, stride: int = 2
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or orientations < 1 or not frequencies or min(frequencies) <= 0:
            raise ValueError("a Gabor bank needs an odd kernel, an orientation and frequencies > 0")
        self.kernel, self.stride, self.pairs = kernel, stride, orientations * len(frequencies)
        bank = torch.zeros(2, self.pairs, channels, kernel, kernel)
        for pair in range(self.pairs):
            turn, frequency = divmod(pair, len(frequencies))
            found = quadrature_pair(kernel, math.pi * turn / orientations, frequencies[frequency])
            bank[:, pair, (turn + frequency) % channels] = found.float()
        self.register_buffer("filters", bank.flatten(0, 1), persistent=False)

    @property
    def cells(self) -> int:
        """Channels of the answer."""
        return 3 * self.pairs

    def answers(self, images: Tensor) -> Tensor:
        """What the cells answer to images (N, C, h, w) in [0, 1] without noise, (N, cells, h / stride, w / stride)."""
        half = self.kernel // 2
        padded = F.pad(2 * images - 1, (half,) * 4, mode="replicate")
        linear = F.conv2d(padded, self.filters, stride=self.stride)
        even, odd = linear.chunk(2, dim=1)
        energy = ((even.square() + odd.square()) / 2 + 1e-12).sqrt()  # the root has no gradient at 0
        return self.GAIN * torch.cat([linear.relu(), energy], dim=1)

    def forward(self, images: Tensor, normal: Tensor) -> Tensor:
        """The answers with noise, from standard normal numbers (N, cells, h / stride, w / stride)."""
        spikes = self.SCALE * self.answers(images) + self.LEVEL
        return (spikes + spikes.sqrt() * normal - self.LEVEL) / self.SCALE


def quadrature_pair(kernel: int, orientation: float, frequency: float) -> Tensor:
    """The even and the odd Gabor filter (2, kernel, kernel), float64, of a frequency in cycles a pixel.

    orientation: the direction of the wave in radians, from x towards y. The envelope is round, with a standard
    deviation of half a period, and sums to 1 where the kernel does not cut it.
    """
    places = torch.arange(kernel, dtype=torch.float64) - kernel // 2
    y, x = places[:, None], places[None, :]
    sigma = 0.5 / frequency
    envelope = torch.exp(-(x.square() + y.square()) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    wave = 2 * math.pi * frequency * (math.cos(orientation) * x + math.sin(orientation) * y)
    return torch.stack([envelope * wave.cos(), envelope * wave.sin()])


class V1Cnn(_Drawing):
    """`Cnn` behind `V1` and a 1 x 1 convolution; images (B, channels, size, size) in [0, 1] to logits (B, classes).

    Args:
        bottleneck: channels between the two, as in the paper (64 there).
        orientations, frequencies, kernel, stride: of `V1`.
    """

    exact_parts = ("v1",)

    def __init__(
        self, *, channels: int, classes: int, size: int = 32, width: int = 32, hidden: int = 128, dropout: float = 0.0,
        bottleneck: int = 32, orientations: int = 6, frequencies: Sequence[float] = (0.125, 0.177, 0.25),
        kernel: int = 15, stride: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.v1 = V1(
            channels=channels, orientations=orientations, frequencies=frequencies, kernel=kernel, stride=stride
        )
        self.side = -(-size // stride)
        self.bottleneck = nn.Conv2d(self.v1.cells, bottleneck, 1)
        self.cnn = Cnn(
            channels=bottleneck, classes=classes, size=self.side, width=width, hidden=hidden, dropout=dropout
        )

    def sample_noise(self, addresses: Addresses) -> Noise:
        """One normal number for each cell."""
        return {"neurons": addresses.normal("neurons", self.v1.cells, self.side, self.side)}

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (B, classes)."""
        return self.cnn(self.bottleneck(self.v1(images, self.noise_for(images, noise)["neurons"])))


class ResizeAndPad(nn.Module):
    """Images resized (bilinearly), each to a size of its own, at a place of its own on a canvas of zeros."""

    def __init__(self, canvas: int) -> None:
        super().__init__()
        self.canvas = canvas

    def forward(self, images: Tensor, sizes: Tensor, corners: Tensor) -> Tensor:
        """Images (N, C, h, w) to (N, C, canvas, canvas).

        sizes: (N,), whole numbers of pixels. corners: (N, 2), the column and row of the upper left pixel.
        """
        pixels = torch.arange(self.canvas, device=images.device, dtype=images.dtype)
        x, y = ((2 * (pixels - corners[:, i, None]) + 1) / sizes[:, None] - 1 for i in (0, 1))
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
        inside = (grid.abs() < 1).all(-1)[:, None]
        # "border" as a resize does at the edges; what is outside becomes 0 after that, without a blend.
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False) * inside


class ResizedCnn(_Drawing):
    """`Cnn` on images of a random size at a random place (Xie et al. 2018); (B, channels, size, size) to logits.

    The paper resizes 299 pixels to [299, 331) and pads with zeros to 331, before networks trained without it: 32
    pixels to [32, 36) and 36. A small CNN is not used to that, so the cards train theirs with it.

    Args:
        canvas: side of what the CNN reads; sizes are drawn from [size, canvas), or are its own if it is no larger.
    """

    exact_parts = ("resize",)

    def __init__(
        self, *, channels: int, classes: int, size: int = 32, canvas: int = 36, width: int = 32, hidden: int = 128,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if canvas < size:
            raise ValueError("the canvas is smaller than the images")
        self.size, self.canvas, self.resize = size, canvas, ResizeAndPad(canvas)
        self.cnn = Cnn(channels=channels, classes=classes, size=canvas, width=width, hidden=hidden, dropout=dropout)

    def sample_noise(self, addresses: Addresses) -> Noise:
        """Sizes (B,) in pixels, and the places of the images in the padding, (B, 2) in [0, 1)."""
        sizes = self.size + addresses.integers("sizes", max(1, self.canvas - self.size))
        return {"sizes": sizes, "corners": addresses.uniform("corners", 2)}

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (B, classes)."""
        noise = self.noise_for(images, noise)
        corners = (noise["corners"] * (self.canvas - noise["sizes"][:, None] + 1)).floor()
        return self.cnn(self.resize(images, noise["sizes"], corners))
