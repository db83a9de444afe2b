"""Cheaper passes: the layout of weights, and networks in bfloat16 for gradients and probes.

bfloat16 steps near 1 are 1/256, half of a budget of 2/255. So the layers that read the pixels stay in float32, and so
do the layer that gives the logits and the network's `exact_parts`. Grading, and the decision whether an image is
misclassified, use the network itself.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier, MonteCarlo, Noise, offered

if TYPE_CHECKING:
    from robustbench_lpm.architectures.recurrent_attention import Trajectory

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
LAYERS = (nn.Conv2d, nn.Linear)


def reduced(classifier: Classifier, example: Tensor, noise: Noise) -> Classifier:
    """The classifier in bfloat16, except for its first layers, its last and its exact parts, which it shares.

    Args:
        classifier: in eval mode.
        example, noise: a batch that it can read, to find the order of its layers.
    """
    if isinstance(classifier, MonteCarlo):
        raise ValueError("reduce the classifier that is averaged, not the average")
    return _Reduced(classifier, _lowered(classifier, example, noise))


def lay_out(classifier: Classifier, device: str) -> Classifier:
    """The same classifier, with its weights in the memory layout that is fastest on the device."""
    if torch.device(device).type == "cpu":
        channels_last(classifier)
    return classifier


def channels_last(module: nn.Module) -> dict[Tensor, Tensor]:
    """Lay out the weights of convolutions channels last, where the processor has kernels for it; returns the old."""
    if not torch.backends.mkldnn.is_available():
        return {}
    weights = [weight for weight in (*module.parameters(), *module.buffers()) if weight.dim() == 4]
    before = {weight: weight.data for weight in weights}
    for weight in weights:
        # `to` would not copy a weight of one channel, which counts as laid out in both ways; kernels go by its strides.
        weight.data = torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)
    return before


def plain_layout(before: dict[Tensor, Tensor]) -> None:
    """Undo `channels_last`."""
    for weight, values in before.items():
        weight.data = values


def keep_exact_parts(network: nn.Module) -> None:
    """Keep a network's `exact_parts` in float32 where the rest is in mixed precision."""
    for name in offered(network, "exact_parts"):
        _keep_full(network.get_submodule(name))


def slow_backwards(classifier: nn.Module, device: str) -> bool:
    """Whether gradients are faster in full precision: processors have no bfloat16 kernel for depthwise convolutions."""
    grouped = (module for module in classifier.modules() if isinstance(module, nn.Conv2d) and module.groups > 1)
    return torch.device(device).type == "cpu" and any(grouped)


def pays(device: str) -> bool:
    """Whether the device computes in bfloat16 faster than in float32, as far as torch can tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    known = [ask() for ask in asked if ask is not None]
    return any(known) or not known


class _Reduced(Classifier):
    def __init__(self, classifier: Classifier, network: nn.Module) -> None:
        nn.Module.__init__(self)
        self.network, self.working_size = network, classifier.working_size
        self.mean, self.std = classifier.mean, classifier.std
        self.in_place, self.dtype = classifier.in_place, classifier.dtype
        self.differentiates, self.smoothing = classifier.differentiates, classifier.smoothing

    def forward(self, images: Tensor, noise: Noise | None = None, *, gradient_mode: str | None = None) -> Tensor:
        with _lower(images):
            return super().forward(images, noise, gradient_mode=gradient_mode).float()

    def look(self, images: Tensor, noise: Noise | None = None, *, gradient_mode: str = "detached") -> Trajectory:
        with _lower(images):
            return super().look(images, noise, gradient_mode=gradient_mode)


def _lower(images: Tensor) -> Any:
    return torch.autocast(images.device.type, torch.bfloat16)


def _keep_full(part: nn.Module) -> None:
    """Keep a part of a network in float32."""
    forward = part.forward

    def in_full(inputs: Tensor, *rest: Any) -> Any:
        with torch.autocast(inputs.device.type, enabled=False):
            return forward(inputs.float(), *rest)

    part.forward = in_full  # a wrapper would hide its other attributes


def _lowered(classifier: Classifier, example: Tensor, noise: Noise) -> nn.Module:
    """A copy of the network with weights in bfloat16, so that no pass converts them; it shares all other tensors."""
    order = _layers_at_work(classifier, example, noise)
    network = classifier.network
    names = {module: name for name, module in network.named_modules()}
    # A glimpsing network may read the pixels several times, once on each of its paths.
    channels = example.shape[1]
    first = [layer for layer in order if isinstance(layer, nn.Conv2d) and layer.in_channels == channels]
    exact = set(offered(network, "exact_parts"))
    full = {names[layer] for layer in [*order[:1], *first, *order[-1:]]}
    full = {name for name in full if not any(name.startswith(f"{part}.") for part in exact)} | exact
    tensors = [*network.parameters(), *network.buffers()]
    lowered = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    for name, module in lowered.named_modules():
        inside = any(f"{name}.".startswith(f"{part}.") for part in full)
        if isinstance(module, (*LAYERS, nn.RNNCellBase)) and not inside:
            for parameter_name, parameter in list(module.named_parameters(recurse=False)):
                values = nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False)
                setattr(module, parameter_name, values)
    for name in full:
        _keep_full(lowered.get_submodule(name))
    return lowered


@torch.no_grad()
def _layers_at_work(classifier: Classifier, example: Tensor, noise: Noise) -> list[nn.Module]:
    """The network's convolutions and linear layers in the order of their first call."""
    order: dict[nn.Module, None] = {}

    def note(module: nn.Module, *_: Any) -> None:
        order[module] = None

    layers = [module for module in classifier.network.modules() if isinstance(module, LAYERS)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        classifier(example, noise)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)
