"""RAM-LPM repeats the outputs of the original architecture (float64, 1e-9), from its own state dicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustbench_lpm.architectures.ramlpm import RamLpm
from robustbench_lpm.registry import cards

DATA = Path(__file__).parent.parent / "data"
EXPERIMENTS = ["sim2mnist", "imagenet"]
TOLERANCE = 1e-9


def golden_keys(experiment: str) -> dict[str, list[int]]:
    return json.loads((DATA / f"ramlpm_{experiment}.keys.json").read_text())


def golden_state(keys: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """The weights of the golden vectors, given by formulas of a tensor's place and its element index."""
    state = {}
    for i, name in enumerate(sorted(keys)):
        shape = keys[name]
        k = torch.arange(int(np.prod(shape)), dtype=torch.float64)
        wave = torch.sin(0.7 * k + i)
        if name.endswith("num_batches_tracked") or name == "retina.grid_2d":
            values = torch.zeros_like(k)
        elif name.endswith("running_var"):
            values = 1 + 0.5 * wave**2
        elif name.endswith("running_mean"):
            values = 0.1 * wave
        elif (".net." in name or name.startswith("bn_")) and name.endswith("weight") and len(shape) == 1:
            values = 1 + 0.2 * wave
        elif len(shape) >= 2:
            # In this order: the argument reaches 1e11, where another rounding of it moves the cosine by 1e-5.
            values = (0.5 / np.prod(shape[1:])) ** 0.5 * (wave + torch.cos(0.013 * k * k + i))
        else:
            values = 0.05 * wave
        state[name] = values.reshape(shape)
    return state


def golden_images(size: int, channels: int) -> Tensor:
    b, c = torch.arange(2.0).double()[:, None, None, None], torch.arange(channels).double()[None, :, None, None]
    x = torch.linspace(-1, 1, size, dtype=torch.float64)[None, None, None, :]
    y = torch.linspace(-1, 1, size, dtype=torch.float64)[None, None, :, None]
    return (0.5 + 0.25 * torch.sin(3 * x + b + c) + 0.25 * torch.cos(5 * y - 2 * x + b - c)).clamp(0, 1)


def golden_noise(glimpses: int, sigma: float) -> dict[str, Tensor]:
    b = torch.arange(2).double()
    t = torch.arange(glimpses - 1).double()[None, :]
    policy = torch.stack([0.1 * torch.sin(t + b[:, None]), 0.1 * torch.cos(2 * t + b[:, None])], dim=-1)
    first = torch.stack([0.2 * torch.cos(b), -0.15 * torch.sin(b + 1)], dim=-1)
    return {"first_fixation": first, "policy": policy / sigma}


def golden_model(experiment: str, prefix: str = "") -> RamLpm:
    card = cards.model(f"ramlpm-{experiment}")
    parameters: dict[str, Any] = card.parameters | {"padding": "reference", "where_pooling": "max"}
    model = RamLpm(channels=card.input.channels, classes=card.classes, **parameters).double().eval()
    model.load_state_dict(model.translate_reference_state(golden_state(golden_keys(experiment))))
    return model


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_outputs_match_the_original(experiment: str) -> None:
    golden = np.load(DATA / f"ramlpm_{experiment}.npz")
    model = golden_model(experiment)
    channels, size = golden["glimpse"].shape[1], {"sim2mnist": 96, "imagenet": 224}[experiment]
    images, noise = golden_images(size, channels), golden_noise(len(golden["logits"]), model.sigma)
    with torch.no_grad():
        glimpse = model.retina(images, noise["first_fixation"])
        outputs = model.look(images, noise)
        found = {
            "glimpse": glimpse,
            "what": model.what_cnn(glimpse),
            "where": model.where_cnn(glimpse),
            "logits": outputs.logits,
            "mu": outputs.means,
            "baseline": outputs.baselines[..., None],
        }
    for name, values in found.items():
        error = np.abs(values.numpy() - golden[name]).max()
        print(f"{experiment} {name}: {error:.2e}")
        assert error < TOLERANCE, f"{name} is off by {error:.2e}"
