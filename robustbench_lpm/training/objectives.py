"""The objectives that a recipe can minimise, named in its card by address; optimisers and schedules.

An objective is a function `(classifier, batch, **parameters) -> Terms`, called in training mode to train and in eval
mode, without gradients, to validate. Of its terms, scalars all, "loss" is minimised; "accuracy" (under the conditions
that are trained for) and "classification" (their cross-entropy) choose the best epoch; every scalar is logged. With
"logits" (B, K), which are optional, validation can average a stochastic network's runs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, OneCycleLR

from robustbench_lpm.architectures.classifier import Classifier, Noise, offered
from robustbench_lpm.architectures.recurrent_attention import RecurrentAttention
from robustbench_lpm.errors import LpmbenchError, unknown
from robustbench_lpm.norms import Norm, project, steepest, uniform_in_ball
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry.cards import RecipeCard

Reward = Literal["last", "following", "probability"]
Through = Literal["score-function", "reparameterised", "straight-through", "both"]
Terms = dict[str, Tensor]
Objective = Callable[..., Terms]


@dataclass(frozen=True)
class TrainingBatch:
    """One step's examples and all of its randomness.

    images: (B, C, H, W) in [0, 1]. labels: (B,). noise: of the classifier, one draw for each image, {} when it is
    deterministic. addresses: one for each image, for the objective's own choices.
    """

    images: Tensor
    labels: Tensor
    noise: Noise
    addresses: Addresses


def bind(entry: Callable[..., Any], parameters: Mapping[str, Any], path: Path | str) -> Objective:
    """An objective with the parameters of the recipe at `path`. Raises LpmbenchError for one that it does not take."""
    found = inspect.signature(entry).parameters.values()
    accepted = {p.name: p.default is p.empty for p in found if p.kind is p.KEYWORD_ONLY}
    for name in parameters:
        if name not in accepted:
            raise LpmbenchError(f"{path}: {unknown('parameter', name, accepted)}")
    if missing := [name for name, required in accepted.items() if required and name not in parameters]:
        raise LpmbenchError(f"{path}: parameter(s) {', '.join(missing)} missing from [parameters].")
    return partial(entry, **parameters)


def cross_entropy(classifier: Classifier, batch: TrainingBatch, *, label_smoothing: float = 0.0) -> Terms:
    """The mean cross-entropy; smoothed labels as in Szegedy et al. 2016, section 7."""
    logits = classifier(batch.images, batch.noise)
    return {
        "loss": F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing),
        "classification": F.cross_entropy(logits, batch.labels).detach(),
        "accuracy": _accuracy(logits, batch.labels),
        "logits": logits.detach(),
    }


def adversarial(
    classifier: Classifier,
    batch: TrainingBatch,
    *,
    eps: float,
    steps: int,
    step_size: float,
    norm: Norm = "linf",
    loss: str = "cross_entropy",
    loss_parameters: Mapping[str, Any] = MappingProxyType({}),
) -> Terms:
    """The loss on the adversarial examples that PGD finds (Madry et al. 2018, eq. 2.1).

    "accuracy" is that on those, "clean_accuracy" that on the clean images. The attack uses the network in eval mode,
    without dropout and without changing the statistics of batch norms.

    A stochastic network is attacked on the noise of the batch, and learns on the same noise: with "reinforce", a
    policy is rewarded for the fixations that the images were made against.

    Args:
        eps, steps, step_size, norm: of PGD, which raises the cross-entropy of the network's answer.
        loss: what is minimised on its images, "cross_entropy" or "reinforce"; loss_parameters: of that one.
    """
    losses: dict[str, Objective] = {"cross_entropy": cross_entropy, "reinforce": reinforce}
    if loss not in losses:
        raise unknown("loss of adversarial training", loss, losses)
    minimised = bind(losses[loss], loss_parameters, "loss_parameters")
    training = classifier.training
    classifier.eval()
    attacked = perturb(classifier, batch, norm=norm, eps=eps, steps=steps, step_size=step_size)
    with torch.no_grad():
        clean = _accuracy(classifier(batch.images, batch.noise), batch.labels)
    classifier.train(training)
    return minimised(classifier, replace(batch, images=attacked)) | {"clean_accuracy": clean}


def perturb(
    classifier: Classifier, batch: TrainingBatch, *, norm: Norm, eps: float, steps: int, step_size: float
) -> Tensor:
    """PGD from a random point of the ball; images (B, C, H, W) within eps of the batch's and within [0, 1]."""
    attacked = uniform_in_ball(batch.images, norm, eps, batch.addresses)
    for _ in range(steps):
        with torch.enable_grad():
            attacked = attacked.detach().requires_grad_()
            loss = F.cross_entropy(classifier(attacked, batch.noise), batch.labels, reduction="sum")
            (gradients,) = torch.autograd.grad(loss, attacked)
        moved = attacked.detach() + step_size * steepest(gradients, norm)
        attacked = project(moved, batch.images, norm, eps)
    return attacked


def reinforce(
    classifier: Classifier,
    batch: TrainingBatch,
    *,
    every_glimpse: bool = False,
    policy_weight: float = 1.0,
    baseline_weight: float = 1.0,
    baseline: bool = True,
    reward: Reward = "last",
    entropy_weight: float = 0.0,
    through: Through = "score-function",
) -> Terms:
    """The loss of RAM and RAM-LPM: NLL + MSE(b, R) + mean over the batch of sum_t -log pi(l[t+1]; mu[t]) (R - b[t]).

    Mnih et al. 2014, section 3; Kiritani and Ono 2020. R is 1 for a right answer after the last glimpse, else 0. Of T
    glimpses T-1 lead to another one: the baseline b[t] and the density of l[t+1] belong to mu[t], t = 0..T-2.
    Gradients reach the policy through the means alone; R - b[t] is a constant there. The defaults are the reference.

    Args:
        every_glimpse: classify after every glimpse, not only after the last.
        policy_weight, baseline_weight: of the two terms beside the NLL.
        baseline: subtract b[t] from the reward. Without it the same gradient has more variance, and b is not trained.
        reward: "last" as above; "following" gives mu[t] the share of right answers after glimpses t+1 to T-1;
            "probability" the mean probability of the right class after those.
        entropy_weight: of a bonus on `gaze_entropy`; the policy's own entropy is constant, since sigma is.
        through: "score-function" is REINFORCE. "reparameterised" and "straight-through" train the policy by the
            gradient of the NLL through the sampling grid instead (Jaderberg et al. 2015); "both" adds REINFORCE's term.
    """
    network = classifier.network
    if not isinstance(network, RecurrentAttention):
        raise LpmbenchError(f"The objective 'reinforce' trains glimpsing networks; {type(network).__name__} is none.")
    if network.sigma == 0:
        raise LpmbenchError("The objective 'reinforce' needs sigma > 0: a policy without noise has no density.")
    mode = {"score-function": "detached", "both": "reparameterised"}.get(through, through)
    trajectory = classifier.look(batch.images, batch.noise, gradient_mode=mode)
    right = trajectory.logits[-1].argmax(1) == batch.labels
    answers = trajectory.logits if every_glimpse else trajectory.logits[-1:]
    classification = F.cross_entropy(answers.flatten(0, 1), batch.labels.repeat(len(answers)))
    rewards, baselines = returns(trajectory.logits, batch.labels, reward), trajectory.baselines[:-1]
    regression = (baselines - rewards).square().sum() / max(1, baselines.numel())  # 0, not NaN, at a single glimpse
    terms = {
        "classification": F.cross_entropy(trajectory.logits[-1], batch.labels).detach(),
        "accuracy": right.float().mean(),
        "logits": trajectory.logits[-1].detach(),
    }
    loss = classification
    if baseline:
        loss = loss + baseline_weight * regression
        terms["baseline"] = regression.detach()
    if through in ("score-function", "both"):
        advantages = rewards - baselines if baseline else rewards
        policy = policy_loss(trajectory.means[:-1], trajectory.fixations[1:], network.sigma, advantages)
        loss = loss + policy_weight * policy
        terms["policy"] = policy.detach()
    if entropy_weight:
        entropy = gaze_entropy(trajectory.means[:-1], network.sigma)
        loss = loss - entropy_weight * entropy
        terms["entropy"] = entropy.detach()
    return {"loss": loss} | terms


def returns(logits: Tensor, labels: Tensor, reward: Reward) -> Tensor:
    """The reward of each of T-1 decisions, (T-1, B) in [0, 1], from the logits (T, B, K) after every glimpse."""
    steps = len(logits) - 1
    if reward == "last":
        return (logits[-1].argmax(1) == labels).float().expand(steps, -1)
    if reward == "following":
        earned = (logits.detach().argmax(2) == labels).float()
    elif reward == "probability":
        earned = logits.detach().float().softmax(2).gather(2, labels.expand(steps + 1, -1)[..., None])[..., 0]
    else:
        raise LpmbenchError(f"reward must be 'last', 'following' or 'probability', not '{reward}'.")
    left = torch.arange(steps, 0, -1, device=logits.device)[:, None]
    return earned[1:].flip(0).cumsum(0).flip(0) / left


def gaze_entropy(means: Tensor, sigma: float) -> Tensor:
    """The entropy of a batch's fixations, of means (T-1, B, 2): the mean over t, in nats.

    That of the normal distribution with the covariance of the fixations: of the means, over the batch, plus sigma^2.
    """
    if not means.numel():
        return means.sum()
    centred = means - means.mean(1, keepdim=True)
    covariance = torch.einsum("tbi,tbj->tij", centred, centred) / means.shape[1]
    covariance = covariance + sigma**2 * torch.eye(2, dtype=means.dtype, device=means.device)
    return (0.5 * torch.logdet(2 * math.pi * math.e * covariance)).mean()


def policy_loss(means: Tensor, fixations: Tensor, sigma: float, advantages: Tensor) -> Tensor:
    """The mean over the batch of sum_t -log N(l; mu, sigma^2) A, whose gradient in mu is the REINFORCE estimate.

    means, fixations: (T-1, B, 2), the second being what was drawn around the first. advantages: (T-1, B).
    """
    # Unchecked, so that a diverged network ends in a loss of NaN, which training reports in one line.
    # Its sigma is a tensor that is made on the device: a number would be copied there, which waits.
    density = Normal(means, means.new_full((), sigma), validate_args=False).log_prob(fixations.detach()).sum(2)
    return -(density * advantages.detach()).sum(0).mean()


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float().mean()


def make_optimiser(network: nn.Module, recipe: RecipeCard, *, fused: bool = False) -> Optimizer:
    """The optimiser, with each group at its own rate: recipe.groups where it names one, else the learning rate.

    fused: one kernel for all parameters, which a GPU runs faster.
    """
    grouping = offered(network, "parameter_groups")
    found: dict[str, list[nn.Parameter]] = grouping() if grouping else {"all": list(network.parameters())}
    for name in recipe.groups:
        if name not in found:
            raise unknown(f"parameter group in recipe {recipe.name}", name, found)
    groups: list[dict[str, Any]] = [
        {"name": name, "params": parameters, "lr": recipe.groups.get(name, recipe.learning_rate)}
        for name, parameters in found.items()
    ]
    if missing := set(network.parameters()).difference(*found.values()):  # they would never be trained
        raise LpmbenchError(f"parameter_groups() of {type(network).__name__} leaves out {len(missing)} parameter(s).")
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused or None)
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=recipe.weight_decay, fused=fused or None)


def make_schedule(optimiser: Optimizer, recipe: RecipeCard, steps: int) -> LRScheduler:
    """The schedule over `steps` optimiser steps in all; it moves every group by the same factors."""
    if recipe.schedule == "one-cycle":
        return OneCycleLR(optimiser, max_lr=[group["lr"] for group in optimiser.param_groups], total_steps=steps)
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimiser, T_max=steps)
    return ConstantLR(optimiser, factor=1.0)


def rates(optimiser: Optimizer) -> dict[str, float]:
    """Columns of the log: the learning rate of now, of each group where there are several."""
    if len(optimiser.param_groups) == 1:
        return {"learning_rate": float(optimiser.param_groups[0]["lr"])}
    return {f"learning_rate_{group['name']}": float(group["lr"]) for group in optimiser.param_groups}
