"""The common interface of all classifiers: images in [0, 1] and noise in, logits out.

A `Classifier` wraps any network. It holds the steps between the attacked pixels and the network (normalisation, a
resize to the network's own working size), and it makes the network's randomness an argument:

    noise = classifier.sample_noise(addresses)   # every random number one forward pass uses, one address an image
    logits = classifier(images, noise)           # deterministic given noise

Noise is a dictionary from the name of a source of randomness to a tensor whose first dimension is the batch; it is
empty for a deterministic network. Noise for R · B runs over B images gives R · B answers, row i of them for image i mod
B: a network that looks at images in glimpses need not copy them.

With `smoothing` a classifier adds Gaussian noise to the image itself (Cohen, Rosenfeld and Kolter 2019, arXiv
1902.02918). That makes any network a stochastic one, with a source of noise called "smoothing": addresses, at which a
pass draws the pixels.

`Offers` lists what else a network may provide, with the defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lpm.allocator import to_device
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import Addresses, isolated_globals, key, normal_at

if TYPE_CHECKING:
    from robustbench_lpm.architectures.recurrent_attention import Trajectory

Noise = dict[str, Tensor]
SMOOTHING = "smoothing"  # the source of the noise on an image

_calls = count()  # passes without noise, of all smoothed classifiers of this process


def on_device(noise: Noise, device: torch.device) -> Noise:
    """Noise on a device, without waiting for the copies."""
    return {source: to_device(values, device) for source, values in noise.items()}


class Offers(Protocol):
    """The optional attributes of a network, with their defaults; `offered` reads one.

    A network with `sample_noise(addresses) -> Noise` takes that noise as the second argument of a call. One with
    `look(images, noise, *, gradient_mode) -> Trajectory` sees images in glimpses.
    """

    sample_noise: Callable[[Addresses], Noise] | None = None
    stochastic: bool = True  # with sample_noise: whether two passes over one image may differ
    look: Callable[..., Trajectory] | None = None
    glimpses: int = 0  # in one pass; 0 if the image is seen whole
    policy: str = "learned"  # how fixations are chosen: "learned", or not from the image
    sigma: float = 0.0  # of a policy with a normal density, in normalised coordinates
    gradient_modes: tuple[str, ...] = ()  # the ways in which a gradient may pass its decisions
    shares_images: bool = False  # whether images (B, ...) may come with noise for R · B runs
    retina: nn.Module | None = None  # samples an image around a fixation, for pictures of what is seen
    exact_parts: Sequence[str] = ()  # submodules that stay in float32 where the rest is in bfloat16
    parameter_groups: Callable[[], dict[str, list[nn.Parameter]]] | None = None  # that may have learning rates
    is_reference_state: Callable[[Mapping[str, Tensor]], bool] | None = None  # whether load_state_dict translates it


def offered(network: nn.Module, name: str) -> Any:
    """An attribute of a network that is named in `Offers`, or its default."""
    return getattr(network, name, getattr(Offers, name))


class Classifier(nn.Module):
    """A network with its preprocessing, as a function of images (B, C, H, W) in [0, 1] and noise.

    Args:
        network: images, normalised, to logits (B, K), with any attributes of `Offers`.
        mean, std: per channel; empty for none.
        working_size: side of the square that the network needs; None for any size. The resize is bilinear with
            antialiasing, and differentiable: epsilon counts pixels before it.
        smoothing: the standard deviation of Gaussian noise on every pixel of the image, before anything else and
            without clipping; 0 for none.
    """

    mean: Tensor
    std: Tensor
    in_place: bool
    dtype: torch.dtype | None
    differentiates: bool

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        working_size: int | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.working_size, self.smoothing = working_size, smoothing
        # Set at admission: whether it overwrites its input images, the only precision that it reads, and whether it
        # takes gradients itself in a pass.
        self.in_place, self.dtype, self.differentiates = False, None, False
        self.register_buffer("mean", torch.tensor(list(mean)).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).reshape(-1, 1, 1), persistent=False)

    def around(self, network: nn.Module) -> Classifier:
        """The same preprocessing before another network."""
        other = type(self).__new__(type(self))
        nn.Module.__init__(other)
        other.network, other.working_size = network, self.working_size
        other.in_place, other.dtype, other.training = self.in_place, self.dtype, self.training
        other.differentiates, other.smoothing = self.differentiates, self.smoothing
        for name in ("mean", "std"):
            other.register_buffer(name, getattr(self, name), persistent=False)
        return other

    def smoothed(self, sigma: float) -> Classifier:
        """The same classifier with noise of this standard deviation on its images, instead of its own `smoothing`."""
        other = self.around(self.network)
        other.smoothing = sigma
        return other

    @property
    def stochastic(self) -> bool:
        """Whether two passes over one image may differ."""
        return self.smoothing > 0 or self._draws

    @property
    def _draws(self) -> bool:
        """Whether the network itself is stochastic."""
        return offered(self.network, "sample_noise") is not None and bool(offered(self.network, "stochastic"))

    @property
    def glimpsing(self) -> bool:
        """Whether the network sees images in glimpses, at places of its own choice."""
        return offered(self.network, "look") is not None

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        """The ways in which gradients may pass the network's own decisions; empty for a plain network."""
        return tuple(offered(self.network, "gradient_modes"))

    @property
    def passes(self) -> int:
        """Forward passes of the network that one call costs."""
        return 1

    @property
    def glimpses(self) -> int:
        """Glimpses that one call takes at each image; 0 for a network that sees it whole."""
        return int(offered(self.network, "glimpses"))

    @property
    def sigma(self) -> float:
        """The standard deviation of a glimpsing network's policy, in normalised coordinates."""
        return float(offered(self.network, "sigma"))

    def sample_noise(self, addresses: Addresses) -> Noise:
        """The random numbers of one call on B images, one address for each, on the CPU."""
        own = self.network.sample_noise(addresses) if self._draws else {}  # type: ignore[operator]
        return own | self.smoothing_noise(addresses)

    def smoothing_noise(self, addresses: Addresses) -> Noise:
        """The part of `sample_noise` that is not the network's own: the addresses (B, 4) of noise on the images."""
        return {SMOOTHING: addresses.packed(SMOOTHING)} if self.smoothing else {}

    def forward(self, images: Tensor, noise: Noise | None = None, *, gradient_mode: str | None = None) -> Tensor:
        """Logits (B, K), or (R · B, K) with noise for R runs, in the precision of the images.

        Without noise a stochastic network draws its own.
        """
        if self.differentiates and not torch.is_grad_enabled():
            with torch.enable_grad():
                return self(images, noise, gradient_mode=gradient_mode).detach()
        if not self.stochastic:
            return logits_of(self.network(self.prepare(images))).to(images.dtype)
        if gradient_mode == "score-function":
            return self.scored(images, noise)[0]
        seen, own = self._seen(images, noise)
        modes = {"gradient_mode": gradient_mode} if gradient_mode else {}
        return logits_of(self.network(seen, *([own] if self._draws else []), **modes)).to(images.dtype)

    def look(self, images: Tensor, noise: Noise | None = None, *, gradient_mode: str = "detached") -> Trajectory:
        """The trajectory of a glimpsing network, for each of the B · `passes` runs."""
        seen, own = self._seen(images, noise)
        return self.network.look(seen, own, gradient_mode=gradient_mode)  # type: ignore[operator]

    def scored(self, images: Tensor, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, K), and the log-density (B,) of the decisions of the pass, for score-function gradients."""
        trajectory = self.look(images, noise, gradient_mode="score-function")
        return trajectory.logits[-1], trajectory.log_density(self.sigma)

    def _seen(self, images: Tensor, noise: Noise | None) -> tuple[Tensor, Noise | None]:
        """What the network reads: its input, one for each run unless it shares them, and noise of its own."""
        if not self.smoothing:
            return self._for_runs(self.prepare(images), noise), noise
        where = (noise or self.smoothing_noise(Addresses.of("", range(len(images)), "own", next(_calls))))[SMOOTHING]
        images = images.repeat(len(where) // len(images), 1, 1, 1)
        drawn = normal_at(where, *images.shape[1:]).to(images)
        own = {source: values for source, values in (noise or {}).items() if source != SMOOTHING}
        return self.prepare(images + self.smoothing * drawn), own or None

    def _for_runs(self, images: Tensor, noise: Noise | None) -> Tensor:
        """The images once for each run, unless the network shares them among runs."""
        if not noise or offered(self.network, "shares_images"):
            return images
        runs = len(next(iter(noise.values()))) // len(images)
        return images.repeat(runs, 1, 1, 1) if runs > 1 else images

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input for images in [0, 1]: resized and normalised."""
        size = self.working_size
        if size is not None and tuple(images.shape[-2:]) != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        images = (images - self.mean) / self.std if self.mean.numel() else images
        images = images.to(self.dtype) if self.dtype is not None else images
        return images.clone() if self.in_place else images


def logits_of(answer: Any) -> Tensor:
    """The logits in the output of a network: a tensor, an object with `.logits`, a dictionary with "logits", or the
    first tensor of a tuple. Raises LpmbenchError for anything else."""
    if isinstance(answer, Mapping) and "logits" in answer:
        answer = answer["logits"]
    elif not isinstance(answer, Tensor) and isinstance(getattr(answer, "logits", None), Tensor):
        answer = answer.logits
    elif isinstance(answer, tuple | list):
        answer = next((part for part in answer if isinstance(part, Tensor)), answer)
    if not isinstance(answer, Tensor) or answer.is_complex():
        kind = "complex numbers" if isinstance(answer, Tensor) else f"an object of type {type(answer).__name__}"
        keys = f" with the keys {', '.join(map(str, answer))}" if isinstance(answer, Mapping) else ""
        raise LpmbenchError(f"the answer is {kind}{keys}, not logits: a tensor, or something with `logits`, is needed.")
    return answer


class MonteCarlo(Classifier):
    """The average of M runs of a stochastic classifier: their mean logits on one image with M draws of noise.

    It is a stochastic classifier like any other, whose one draw of noise is M draws of the original.
    """

    def __init__(self, classifier: Classifier, runs: int) -> None:
        nn.Module.__init__(self)
        if runs < 1:
            raise LpmbenchError(f"A Monte-Carlo average needs at least one run, not {runs}.")
        self.classifier, self.runs = classifier, runs

    @property
    def network(self) -> nn.Module:  # type: ignore[override]
        """The network that is averaged."""
        return self.classifier.network

    @property
    def stochastic(self) -> bool:
        return self.classifier.stochastic

    @property
    def passes(self) -> int:
        return self.runs * self.classifier.passes

    @property
    def glimpses(self) -> int:
        return self.runs * self.classifier.glimpses

    def sample_noise(self, addresses: Addresses) -> Noise:
        """Noise (B, M, ...) for each source."""
        drawn = self.classifier.sample_noise(addresses.runs(self.runs))
        return {source: values.unflatten(0, (-1, self.runs)) for source, values in drawn.items()}

    def forward(self, images: Tensor, noise: Noise | None = None, *, gradient_mode: str | None = None) -> Tensor:
        """Mean logits (B, K) over the M runs, all of which share the images."""
        logits = self.classifier(*self._as_runs(images, noise), gradient_mode=gradient_mode)
        return logits.unflatten(0, (self.runs, -1)).mean(dim=0)

    def look(self, images: Tensor, noise: Noise | None = None, *, gradient_mode: str = "detached") -> Trajectory:
        """The trajectory of all runs, (T, M · B, ...): row i belongs to image i mod B."""
        return self.classifier.look(*self._as_runs(images, noise), gradient_mode=gradient_mode)

    def scored(self, images: Tensor, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        logits, density = self.classifier.scored(*self._as_runs(images, noise))
        runs = (self.runs, -1)
        return logits.unflatten(0, runs).mean(dim=0), density.unflatten(0, runs).sum(dim=0)

    def _as_runs(self, images: Tensor, noise: Noise | None) -> tuple[Tensor, Noise | None]:
        """Noise (B, M, ...) as that of M · B runs, one run over all images after the other."""
        if not noise:
            return images.repeat(self.runs, 1, 1, 1), noise
        return images, {source: values.transpose(0, 1).flatten(0, 1) for source, values in noise.items()}


class GloballyRandom(nn.Module):
    """A network that draws from the global generators, with that randomness made an argument.

    The noise is one seed for each image; a call seeds the global generators with all of them. Results are repeatable,
    but depend on which images share a batch: a network with its own `sample_noise` avoids that.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def sample_noise(self, addresses: Addresses) -> Noise:
        """One 62-bit seed for each image."""
        return {"global_seed": addresses.integers("global_seed", 2**62)}

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (B, K)."""
        if noise is None:
            return self.network(images)
        with isolated_globals(key(noise["global_seed"].tolist())):
            return self.network(images)
