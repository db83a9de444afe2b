"""RAM-LPM as it is written down: one Monte-Carlo run after the other, one glimpse after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, Noise
from robustbench_lpm.architectures.recurrent_attention import RecurrentAttention


def run_once(network: RecurrentAttention, images: Tensor, noise: Noise) -> Tensor:
    """Logits (B, K) after the last glimpse of one run at prepared images (B, C, H, W)."""
    state = network.start(images, len(images))
    fixations = noise["first_fixation"]
    steps = noise["policy"].unbind(1)
    for t in range(len(steps) + 1):
        glance = network.glance(images, fixations, state)
        state = glance.state
        if t < len(steps):
            fixations = (glance.mean.clamp(-1, 1) + network.sigma * steps[t]).detach()
    return glance.logits


def forward(classifier: Classifier, images: Tensor, noise: Noise) -> Tensor:
    """Mean logits (B, K) over all runs whose noise (R · B, ...) is given."""
    batch, prepared = len(images), classifier.prepare(images)
    runs = len(noise["first_fixation"]) // batch
    total = torch.zeros(())
    for run in range(runs):
        part = {source: values[run * batch : (run + 1) * batch] for source, values in noise.items()}
        total = total + run_once(classifier.network, prepared, part)  # type: ignore[arg-type]
    return total / runs


def gradient(classifier: Classifier, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
    """The gradient (B, C, H, W) of the mean cross-entropy over runs, one run at a time."""
    batch = len(images)
    runs = len(noise["first_fixation"]) // batch
    total = torch.zeros_like(images)
    for run in range(runs):
        part = {source: values[run * batch : (run + 1) * batch] for source, values in noise.items()}
        pixels = images.detach().requires_grad_()
        logits = run_once(classifier.network, classifier.prepare(pixels), part)  # type: ignore[arg-type]
        total += torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), pixels)[0]
    return total / runs
