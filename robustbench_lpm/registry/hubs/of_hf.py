"""Image classifiers of the Hugging Face hub, through transformers: no code from there, and safetensors only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from robustbench_lpm.datasets.cifar10 import CLASSES as CIFAR10
from robustbench_lpm.datasets.imagenet import imagenet_classes
from robustbench_lpm.errors import LpmbenchError, in_one_line
from robustbench_lpm.registry.hubs.downloads import hub_file
from robustbench_lpm.registry.hubs.sizes import fixed_size

ADDRESS = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
WEIGHTS, PROCESSOR = "model.safetensors", "preprocessor_config.json"
ALIKE = 0.9  # share of the names of classes; spellings differ between lists of ImageNet's
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def describe(name: str) -> dict[str, Any]:
    """The card of a model, from config.json and from what its image processor does to pixels."""
    config, folder = _config(name)
    mean, std, side = _preprocessing(name, folder)
    try:
        with torch.device("meta"):
            empty = AutoModelForImageClassification.from_config(config, trust_remote_code=False).eval()
    except ValueError:
        raise LpmbenchError(f"hf:{name} is no image classifier of transformers, but a {config.model_type}.") from None
    classes = [str(config.id2label[label]) for label in sorted(config.id2label)]
    return {
        "name": f"hf:{name}",
        "summary": f"{type(empty).__name__} of {name}, made for images of {side} x {side}",
        "entry": f"hf:{name}",
        "labels": _label_set(classes) or f"hf:{name}",
        "classes": len(classes),
        "input": {
            "channels": len(mean), "mean": mean, "std": std,
            "working_size": side if fixed_size(empty, len(mean), side) else None,
        },
        "weights": {"hub": True},
    }  # fmt: skip


def files(name: str) -> list[Path]:
    """The safetensors of a model: one file, or those that an index names."""
    if found := _file(name, WEIGHTS):
        return [found]
    index = _file(name, f"{WEIGHTS}.index.json")
    if index is None:
        raise LpmbenchError(
            f"hf:{name} has no {WEIGHTS}. Pickles can run code and are refused: save it with transformers' "
            "save_pretrained and use that, or name a revision that has safetensors."
        )
    parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    found_parts = [_file(name, part) for part in parts if Path(part).name == part and part.endswith(".safetensors")]
    if None in found_parts or len(found_parts) < len(parts):
        raise LpmbenchError(f"hf:{name}: the index of its safetensors names files that are not there.")
    return [part for part in found_parts if part is not None]


def network(name: str, weights: list[Path]) -> nn.Module:
    """The network in float32. Raises LpmbenchError where weights are missing that transformers would make up."""
    config, folder = _config(name)
    with _quiet():
        if not weights:
            return AutoModelForImageClassification.from_config(config, trust_remote_code=False)
        model, report = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **LOCAL
        )
    missing = sorted([*report["missing_keys"], *(key for key, *_ in report.get("mismatched_keys", ()))])
    if missing:
        raise LpmbenchError(
            f"hf:{name} lacks weights of the classifier ({', '.join(missing[:3])}): it was not trained."
        )
    return model.float()


def _config(name: str) -> tuple[Any, Path]:
    """The configuration of a model, and the directory in which the hub's cache holds it."""
    path = _file(name, "config.json")
    content = json.loads(path.read_text()) if path else {}
    if path is None or "model_type" not in content:
        timms = f"; a model of timm is called timm:{content['architecture']}" if "architecture" in content else ""
        raise LpmbenchError(f"hf:{name} is no model of transformers: no config.json names a model_type{timms}.")
    try:
        return AutoConfig.from_pretrained(path.parent, **LOCAL), path.parent
    except ValueError as error:
        own = "auto_map" in content
        reason = "it needs code of its own, which is not run" if own else in_one_line(error)
        raise LpmbenchError(f"hf:{name}: {reason}.") from None


def _file(name: str, file: str) -> Path | None:
    match = ADDRESS.fullmatch(name)
    if match is None:
        raise LpmbenchError(f"'hf:{name}' must look like hf:OWNER/NAME or hf:OWNER/NAME@REVISION.")
    return hub_file(match[1], file, match[2])


def _preprocessing(name: str, folder: Path) -> tuple[list[float], list[float], int]:
    """Mean, standard deviation and side of what an image processor makes of an image, measured on plain colours."""
    if _file(name, PROCESSOR) is None:
        raise LpmbenchError(f"hf:{name} has no {PROCESSOR}, so its normalisation is not known.")
    with _quiet():
        processor = AutoImageProcessor.from_pretrained(folder, **LOCAL)

    def seen(*colour: int) -> Tensor:
        pixels = processor(images=Image.new("RGB", (64, 64), colour), return_tensors="pt")["pixel_values"]
        return torch.as_tensor(pixels)[0].double()

    black, white, mixed = seen(0, 0, 0), seen(255, 255, 255), seen(51, 102, 204)
    low, high = (image.mean((1, 2)) for image in (black, white))
    shares = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
    plain = black.shape[0] == 3 and black.shape[1] == black.shape[2] and bool((high > low).all())
    expected = low + (high - low) * shares if plain else None
    if expected is None or not torch.allclose(mixed.mean((1, 2)), expected, atol=1e-3 * float((high - low).max())):
        raise LpmbenchError(f"hf:{name}: its image processor does more than to resize and to normalise three colours.")
    std = 1 / (high - low)
    return _rounded(-low * std), _rounded(std), black.shape[-1]


def _rounded(values: Tensor) -> list[float]:
    """Numbers as they are written on cards: the rounding of float32 taken off."""
    return [round(float(value), 6) + 0.0 for value in values]


def _label_set(classes: Sequence[str]) -> str | None:
    """The label set whose classes have these names in this order."""
    for labels, known in (("cifar10", CIFAR10), ("imagenet", imagenet_classes())):
        if len(known) == len(classes) and sum(map(_same_name, classes, known)) >= ALIKE * len(known):
            return labels
    return None


def _same_name(one: str, other: str) -> bool:
    """Whether two names of a class agree, each a word or synonyms with commas."""
    names = [{part.strip().lower().replace("_", " ") for part in name.split(",")} for name in (one, other)]
    return bool(names[0] & names[1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and reports: what they say is checked, or an error."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
