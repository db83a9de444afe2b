"""The ImageNet recipe is the reference's, and runs from class folders to a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.training import examples, train
from robustbench_lpm.training.objectives import make_optimiser

WNIDS = ("n01440764", "n01443537", "n01484850")
SMALL = {
    "height": 6, "width": 8, "r_min": 0.05, "what": [[8, 2, 2]], "where": [[4, 2, 2]], "what_hidden": 8,
    "where_hidden": 8, "glimpses": 3,
}  # fmt: skip


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """train/ and val/ of three classes, JPEGs of unequal shapes; the dataset's card would hold out 10,000."""
    random, root = np.random.default_rng(0), tmp_path / "imagenet"
    for split, count in (("train", 8), ("val", 2)):
        for label, name in enumerate(WNIDS):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (60 + number, 40 + 30 * label, 3), dtype=np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).save(root / split / name / f"{number}.JPEG", format="JPEG")
    (root / "class_index.json").write_text(json.dumps({name: label for label, name in enumerate(WNIDS)}))
    return root


@pytest.fixture
def small_dataset(tmp_path: Path) -> str:
    """The card of ImageNet with four images held out for validation."""
    text = (cards.root() / "datasets" / "imagenet.toml").read_text()
    assert "validation = 10000" in text
    path = tmp_path / "small-imagenet.toml"
    path.write_text(text.replace("validation = 10000", "validation = 4"))
    return str(path)


def test_the_recipe_is_that_of_the_reference() -> None:
    recipe, card = cards.recipe("imagenet"), cards.model("ramlpm-imagenet")
    assert (recipe.size, recipe.fit, recipe.augmentation.flip) == ("512", "pad", 0.5)
    assert (recipe.batch_size, recipe.epochs, recipe.optimiser, recipe.schedule) == (64, 50, "adam", "constant")
    assert (recipe.weight_decay, recipe.gradient_clip, recipe.precision) == (0.0, None, "32-true")
    assert card.parameters["sigma"] == 0.16
    assert card.parameters["glimpses"] == 10
    assert card.input.mean == [0.485, 0.456, 0.406]
    assert card.input.std == [0.229, 0.224, 0.225]
    assert recipe.model_parameters == {"padding": "reference"}
    network = zoo.build(card, **recipe.model_parameters)
    rates = {group["name"]: group["lr"] for group in make_optimiser(network, recipe).param_groups}
    assert rates == {"where": 1e-6, "baseline": 1e-4, "rest": 1e-4}


@pytest.mark.parametrize("on_disk", [False, True])
def test_it_runs_end_to_end_at_a_small_size(
    imagenet: Path, small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    if on_disk:
        monkeypatch.setattr(examples, "LARGEST_IN_MEMORY", 0)
    recipe = cards.recipe("imagenet")
    changes: dict[str, Any] = {
        "dataset": small_dataset, "size": "48", "batch_size": 5, "learning_rate": 1e-2,
        "model_parameters": recipe.model_parameters | SMALL,
    }  # fmt: skip
    small = recipe.model_copy(update=changes)
    small._path = recipe.path
    result = train("ramlpm-imagenet", recipe=small, data=imagenet, epochs=2, out=tmp_path / "out", workers=1)
    assert set(result.accuracy) == {"validation_m1", "validation_m10", "test_m1", "test_m10"}
    assert {"validation_accuracy_random", "validation_accuracy_centre"} <= result.rows[-1].keys()
    assert result.card.parameters["padding"] == "reference"
    assert zoo.load_model(str(result.card_path)).classifier.glimpses == 3


@pytest.mark.slow
def test_it_takes_a_step_as_it_is(imagenet: Path, small_dataset: str, tmp_path: Path) -> None:
    recipe = cards.recipe("imagenet")
    one = recipe.model_copy(update={"dataset": small_dataset})
    one._path = recipe.path
    result = train("ramlpm-imagenet", recipe=one, data=imagenet, epochs=1, out=tmp_path / "out")
    assert result.card.input.channels == 3
    assert np.isfinite(result.rows[0]["train_loss"])
