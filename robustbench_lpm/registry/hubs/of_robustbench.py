"""Models of RobustBench, whose networks hold their normalisation. Their files lie in its own layout of directories."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pyautoattack
import timm
from torch import nn

from robustbench_lpm.errors import LpmbenchError, in_one_line, unknown
from robustbench_lpm.registry import weight_files
from robustbench_lpm.registry.hubs import folder
from robustbench_lpm.registry.hubs.of_timm import downloaded

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of old names that robustbench imports
    sys.modules.setdefault("autoattack", pyautoattack)  # robustbench imports it by its name before it was packaged
    from robustbench import utils
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

DATASETS = {dataset.value: dataset for dataset in model_dicts}
THREATS = {threat.value: threat for threat in ThreatModel if threat is not ThreatModel.corruptions_3d}


def describe(name: str) -> dict[str, Any]:
    """The card of a model, under its name with dataset and threat model."""
    dataset, model, threat = _parsed(name)
    full = f"robustbench:{dataset.value}/{model}/{threat.value}"
    prepared = model_dicts[dataset][threat][model].get("preprocessing")
    return {
        "name": full,
        "summary": f"{model} of RobustBench: {dataset.value}, {threat.value}" + f" ({prepared})" * bool(prepared),
        "entry": full,
        "labels": dataset.value,
        "classes": utils.DATASET_CLASSES[dataset],
        "input": {"channels": 3},
        "weights": {"hub": True},
    }


def files(name: str) -> list[Path]:
    """The files of a model, those of an ensemble in order."""
    dataset, model, threat = _parsed(name)
    if registered := _timm_name(dataset, model, threat):
        made = timm.create_model(registered, pretrained=False, num_classes=utils.DATASET_CLASSES[dataset])
        (config,) = (part.pretrained_cfg for part in made.modules() if hasattr(part, "pretrained_cfg"))
        return [downloaded(config["url"], f"robustbench:{name}")]
    ids = model_dicts[dataset][threat][model]["gdrive_id"]
    if not ids:
        raise LpmbenchError(f"robustbench:{name} has no weights of RobustBench's own; see torchvision: and timm:.")
    path = _models() / dataset.value / threat.value / f"{model}.pt"
    paths = [Path(f"{path}_m{number}.pt") for number in range(len(ids))] if isinstance(ids, list) else [path]
    for file, one in zip(paths, ids if isinstance(ids, list) else [ids], strict=True):
        if not file.is_file():
            _download(one, file, f"robustbench:{name}")
    return paths


def network(name: str, weights: list[Path]) -> nn.Module:
    """The network, built and loaded by RobustBench, which renames the tensors of some files."""
    dataset, model, threat = _parsed(name)
    registered = _timm_name(dataset, model, threat)
    if not weights:
        if registered:
            return timm.create_model(registered, pretrained=False, num_classes=utils.DATASET_CLASSES[dataset])
        return model_dicts[dataset][threat][model]["model"]()
    for path in weights:
        weight_files.read(path, f"robustbench:{name}")  # says what is wrong with a file that is none
    return utils.load_model(model, model_dir=_models(), dataset=dataset, threat_model=threat)


def _parsed(name: str) -> tuple[BenchmarkDataset, str, ThreatModel]:
    """Dataset, model and threat model of NAME, NAME/THREAT, DATASET/NAME or DATASET/NAME/THREAT."""
    parts = name.split("/")
    dataset = parts.pop(0) if len(parts) > 1 and parts[0] in DATASETS else "cifar10"
    threat = parts.pop() if len(parts) > 1 else "Linf"
    if len(parts) != 1:
        raise LpmbenchError(
            f"'robustbench:{name}' must look like robustbench:[DATASET/]NAME[/THREAT], DATASET one of "
            f"{', '.join(DATASETS)}."
        )
    if threat not in THREATS:
        raise unknown("threat model", threat, THREATS)
    known = model_dicts[DATASETS[dataset]].get(THREATS[threat], {})
    if parts[0] not in known:
        listed = [f"robustbench:{dataset}/{one}/{threat}" for one in known]
        raise unknown("model", f"robustbench:{dataset}/{parts[0]}/{threat}", listed, most=3)
    return DATASETS[dataset], parts[0], THREATS[threat]


def _timm_name(dataset: BenchmarkDataset, model: str, threat: ThreatModel) -> str | None:
    """The name under which RobustBench has registered a model with timm; None for the others."""
    name = f"{model.lower().replace('-', '_')}_{dataset.value}_{threat.value.lower()}"
    return name if timm.is_model(name) else None


def _models() -> Path:
    return folder() / "robustbench"


def _download(drive_id: str, path: Path, address: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        utils.download_gdrive_new(drive_id, path)
    except Exception as error:  # of gdown and of its HTTP client
        raise LpmbenchError(f"{address} is not at {path}, and could not be downloaded: {in_one_line(error)}.") from None
    if not path.is_file():
        raise LpmbenchError(f"{address} is not at {path}, and could not be downloaded.")
