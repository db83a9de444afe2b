"""Models of torchvision, as cards of `architectures.torchvision_models`."""

from __future__ import annotations

from typing import Any

import torch
from torchvision import models

from robustbench_lpm.architectures.torchvision_models import torchvision_model
from robustbench_lpm.errors import unknown
from robustbench_lpm.registry.hubs.sizes import fixed_size

# What their builders set where there are weights.
WITH_WEIGHTS = {name: {"transform_input": True, "init_weights": False} for name in ("googlenet", "inception_v3")}


def describe(name: str) -> dict[str, Any]:
    """The card of a model, under its name with that of its weights."""
    architecture, _, wanted = name.partition("@")
    known = models.list_models(module=models)
    if architecture not in known:
        raise unknown("model", f"torchvision:{architecture}", [f"torchvision:{one}" for one in known], most=3)
    offered = models.get_model_weights(architecture)
    if wanted and wanted not in offered.__members__:
        raise unknown("weights", f"torchvision:{name}", [f"torchvision:{architecture}@{one.name}" for one in offered])
    weights = offered[wanted or "DEFAULT"]
    preset, classes = weights.transforms(), len(weights.meta["categories"])
    (side,) = preset.crop_size
    entry = f"{torchvision_model.__module__}:{torchvision_model.__name__}"
    parameters: dict[str, Any] = {"architecture": architecture, **WITH_WEIGHTS.get(architecture, {})}
    given = {**parameters, "channels": 3, "classes": classes}
    if architecture.startswith("vit_"):  # whose table of positions has the size of the weights
        parameters["image_size"] = given["image_size"] = side
    with torch.device("meta"):
        empty = torchvision_model(**given).eval()
    accuracy = weights.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
    told = f", {accuracy} % on ImageNet" if accuracy else ""
    return {
        "name": f"torchvision:{architecture}@{weights.name}",
        "summary": f"{architecture} with {weights}; tested at {side} (of {preset.resize_size[0]}){told}",
        "entry": entry,
        "labels": "imagenet",
        "classes": classes,
        "parameters": parameters,
        "input": {
            "channels": 3, "mean": list(preset.mean), "std": list(preset.std),
            "working_size": side if fixed_size(empty, 3, side) else None,
        },
        "weights": {"torchvision": str(weights)},
    }  # fmt: skip
