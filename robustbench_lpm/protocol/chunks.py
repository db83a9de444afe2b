"""How many rows (images times draws) pass a network at once: a fixed number on a CPU, what fits on a GPU."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from robustbench_lpm.allocator import out_of_memory
from robustbench_lpm.architectures.classifier import Classifier, Noise, on_device
from robustbench_lpm.devices import free_memory
from robustbench_lpm.randomness import Addresses

GIB = 2**30
ON_A_CPU = 2.0  # GiB of activations, unless --memory says otherwise
# A block is at most so many images. It is meant to fill a GPU; but a killed worker loses its block, another process
# loses what came after the last checkpoint, and several GPUs share a run out in blocks.
LARGEST_BLOCK = 512
# Default batches at once on a GPU: 4096 small images, 512 of 224 pixels. An assumption, not measured.
WIDEST = 64
SHARE = 0.5  # of the free memory; the rest is for the images of an attack, its state and fragmentation
PROBED = 4  # rows of the passes that are measured


def default_chunk(height: int, width: int) -> int:
    """The default batch: 64 small images, 8 of 224 pixels; on processors larger ones were measured to be slower."""
    fitting = max(1, 2**19 // (height * width))
    return max(8, min(64, 1 << (fitting.bit_length() - 1)))


def chunk_for(classifier: Classifier, example: Tensor, memory: float | None, *, gradient: bool = True) -> int:
    """The rows that pass a classifier at once, for images like `example` (1, C, H, W).

    On a CPU the default batch, or a smaller one whose activations fit into `memory` GiB (by default 2). On a CUDA
    GPU a power of two whose activations fit into half of the free memory, and into `memory`; measured once a process.

    gradient: whether backward passes are made.
    """
    if example.is_cuda:
        known = _on_gpus.setdefault(classifier, {})
        asked = example.shape, example.device, memory, gradient
        if asked not in known:
            known[asked] = _on_gpu(classifier, example, memory, gradient)
        return known[asked]
    if not gradient:
        return default_chunk(*example.shape[-2:])
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    weights = {tensor.data_ptr() for tensor in [*classifier.parameters(), *classifier.buffers()]}
    noise = noise_for(classifier, example)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # The result keeps all saved tensors alive until they are counted, so that no address comes twice.
        _held = classifier(example.clone().requires_grad_(), noise)
    each = sum(size for address, size in saved.items() if address not in weights) + 4 * example.nbytes
    return max(1, min(default_chunk(*example.shape[-2:]), int((memory or ON_A_CPU) * GIB / each)))


def rows_within(room: float, each: float, most: int) -> int:
    """The rows of `each` bytes that fit into `room` bytes: a power of two, from 1 to `most`."""
    return 1 << (max(1, min(most, int(room / each))).bit_length() - 1)


_on_gpus: WeakKeyDictionary[Classifier, dict[Any, int]] = WeakKeyDictionary()  # all plans of a process agree


def _on_gpu(classifier: Classifier, example: Tensor, memory: float | None, gradient: bool) -> int:
    try:
        each = _bytes_of_a_row(classifier, example, gradient) + 4 * example.nbytes
    except Exception as error:
        if not out_of_memory(error):
            raise
        return 1
    room = SHARE * free_memory(str(example.device))
    most = WIDEST * default_chunk(*example.shape[-2:])
    return rows_within(room if memory is None else min(room, memory * GIB), each, most)


def _bytes_of_a_row(classifier: Classifier, example: Tensor, gradient: bool) -> float:
    """What a row takes at the peak of a pass on a GPU, with workspaces and temporaries, in the costliest mode."""
    device, images = example.device, example.repeat(PROBED, 1, 1, 1)
    noise = noise_for(classifier, images)
    modes = classifier.gradient_modes or (None,)
    peaks = []
    for mode in (*modes, *modes):  # the first round also allocates what libraries keep
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _pass(classifier, images, noise, mode, gradient)
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
    return max(peaks[len(modes) :]) / PROBED


def _pass(classifier: Classifier, images: Tensor, noise: Noise, mode: str | None, gradient: bool) -> None:
    """A pass forwards and, with a gradient, backwards; nothing is kept."""
    images = images.clone().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        logits = classifier(images, noise, gradient_mode=mode)
    if logits.requires_grad:
        torch.autograd.grad(logits.sum(), images, allow_unused=True)


def noise_for(classifier: Classifier, images: Tensor) -> Noise:
    """Some noise for a batch of images (B, C, H, W), on their device."""
    return on_device(classifier.sample_noise(Addresses.of(0, range(len(images)), "clean")), images.device)
