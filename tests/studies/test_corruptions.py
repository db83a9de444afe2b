"""The accuracies under corruption are what the models say of the corrupted images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from robustbench_lpm.datasets.corruptions import CORRUPTIONS, corrupted
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.tasks import resolve_data
from robustbench_lpm.studies import study as studies
from robustbench_lpm.studies.corruptions import Corruptions, gallery, make_corruptions

IMAGES = 12


def studied(*names: str, **options: Any) -> Corruptions:
    given: dict[str, Any] = {"limit": IMAGES, "draws": 2, "kinds": ("fog", "contrast"), "severities": (1, 4)}
    return make_corruptions(names, resolve_data("digits"), **given | options)


def test_accuracies_are_what_the_models_say() -> None:
    rows = studies.run(studied("ram", "cnn", seed=3)).rows
    found = {(row["model"], row["corruption"], row["severity"]): row["accuracy"] for row in rows}
    assert len(found) == len(rows) == 10
    examples = resolve_data("digits").read(range(IMAGES))
    images = torch.stack(examples.images)
    for model in ("ram", "cnn"):
        classifier = zoo.load_model(model).classifier
        for kind, severity in [("none", 0), ("fog", 1), ("fog", 4), ("contrast", 1), ("contrast", 4)]:
            seen = images
            if severity:
                seen = corrupted(images, kind, severity, Addresses.of(3, range(IMAGES), "corrupt", stream=kind))
            shares = []
            for draw in range(2):
                noise = classifier.sample_noise(Addresses.of(3, range(IMAGES), "clean", draw))
                shares.append(float((classifier(seen, noise).argmax(1) == examples.labels).double().mean()))
            assert found[model, kind, severity] == pytest.approx(np.mean(shares), abs=1e-12)


def test_all_corruptions_are_studied_by_default() -> None:
    study = studied("cnn", kinds=(), severities=(5, 1))
    assert study.kinds == tuple(CORRUPTIONS)
    assert study.passes(study.models[0]) == 1 + 15 * 2
    assert studies.total_passes(study) == IMAGES * 31


def test_the_reference_is_studied_too_and_named_in_the_command() -> None:
    study = studied("ram", reference="cnn")
    assert [model.name for model in study.models] == ["ram", "cnn"]
    assert study.reference == "cnn"
    assert study.command().startswith(
        "lpmbench corruptions ram cnn --corruption fog,contrast --severity 1,4 --reference cnn --dataset digits"
    )
    again = studied("ram", "cnn", reference="cnn")
    assert again.id == study.id
    assert replace(study, reference="").id != study.id


def test_the_gallery_shows_the_first_image_of_the_study() -> None:
    study = studied("cnn")
    shown = gallery(study)
    assert shown.shape == (2, 2, 1, 32, 32)
    image = resolve_data("digits").read([0]).images[0][None]
    expected = study.seen(image, [0], "contrast", 4)[0]
    assert torch.equal(torch.from_numpy(shown[1, 1]), expected)


def test_mistakes() -> None:
    with pytest.raises(LpmbenchError, match="from 1 to 5, not 6"):
        studied("cnn", severities=(1, 6))
    with pytest.raises(LpmbenchError, match="cnn"):
        studied("ram", reference="cnnn")
