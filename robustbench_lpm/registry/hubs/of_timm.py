"""Models of timm, described by their pretrained_cfg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg
from timm.models._hub import download_cached_file
from torch import nn

from robustbench_lpm.errors import LpmbenchError, unknown
from robustbench_lpm.registry import weight_files
from robustbench_lpm.registry.hubs.downloads import hub_file

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"


def describe(name: str) -> dict[str, Any]:
    """The card of a model, under its name with the tag of its weights."""
    config = _config(name)
    channels, height, width = config.input_size
    named = f"timm:{config.architecture}" + (f".{config.tag}" if config.tag else "")
    if config.num_classes < 2:
        raise LpmbenchError(f"{named} answers with features, not with classes.")
    if config.fixed_input_size and height != width:
        raise LpmbenchError(f"{named} reads images of {height} x {width} pixels only; lpmbench gives it squares.")
    tested = f", tested at {config.test_input_size[-1]}" if config.test_input_size else ""
    return {
        "name": named,
        "summary": f"{config.architecture}, trained on images of {height} x {width}{tested} (crop {config.crop_pct:g})",
        "entry": named,
        "labels": "imagenet" if config.num_classes == 1000 else named,
        "classes": config.num_classes,
        "input": {
            "channels": channels, "mean": list(config.mean), "std": list(config.std),
            "working_size": height if config.fixed_input_size else None,
        },
        "weights": {"hub": True},
    }  # fmt: skip


def files(name: str) -> list[Path]:
    """The file that timm itself would load."""
    config = _config(name)
    if config.file:
        return [Path(config.file)]
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        wanted = [config.hf_hub_filename] if config.hf_hub_filename else [SAFE, PICKLED]
        for file in wanted:
            if found := hub_file(repository, file, revision or None):
                return [found]
        raise LpmbenchError(f"timm:{name}: '{repository}' has no file {' or '.join(wanted)}.")
    return [downloaded(config.url, f"timm:{name}")]


def downloaded(url: Any, address: str) -> Path:
    """The file at a URL, from torch's cache or downloaded into it."""
    try:
        return Path(download_cached_file(url, check_hash=False))
    except OSError as error:
        raise LpmbenchError(f"{address}: {url} could not be downloaded: {error}.") from None


def network(name: str, weights: list[Path]) -> nn.Module:
    """The network, built and loaded by timm, which renames the tensors of some checkpoints."""
    if not weights:
        return timm.create_model(name, pretrained=False)
    config, (path,) = _config(name), weights
    # From a repository timm loads a foreign format only where the configuration names the file.
    foreign = config.custom_load == "hf" if config.hf_hub_id and not config.file else config.custom_load
    if not foreign:
        weight_files.read(path, f"timm:{name}")  # says what is wrong with a file that is none
    source = {"file": str(path), "custom_load": bool(foreign)}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source)


def _config(name: str) -> Any:
    """timm's description of a model. Raises LpmbenchError for an unknown one."""
    tagged, (bare, dot, _) = timm.list_models(pretrained=True), name.partition(".")
    known = {*tagged, *(one.partition(".")[0] for one in tagged)}
    if name not in known:
        known = {one for one in tagged if one.startswith(f"{bare}.")} if dot and bare in known else known
        raise unknown("model", f"timm:{name}", [f"timm:{one}" for one in known], most=3)
    return get_pretrained_cfg(name)
