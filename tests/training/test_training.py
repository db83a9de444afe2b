"""Training ends in the same bits however often it is stopped, and never destroys what it made."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.registry import cards, weight_files, zoo
from robustbench_lpm.training import train
from robustbench_lpm.training.checkpoints import Row
from robustbench_lpm.training.examples import load_split
from robustbench_lpm.training.loop import Watch
from robustbench_lpm.training.plans import make_plan
from robustbench_lpm.training.validation import final_accuracy
from tests.training.conftest import CARDS, Finished, Trainer, tiny_recipe

PAIRS = [("cnn", "clean"), ("cnn", "adversarial"), ("ramlpm", "reinforce")]


def stop_at(epoch: int) -> Watch:
    """Presses Ctrl-C after the first batch of an epoch."""

    def watch(done: float, row: Row | None) -> None:
        if done > epoch - 1:
            raise KeyboardInterrupt

    return watch


def tensors(value: Any, where: str = "") -> dict[str, Tensor]:
    """Every tensor in a nested structure, by its place."""
    if isinstance(value, Tensor):
        return {where: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {name: tensor for key, inner in pairs for name, tensor in tensors(inner, f"{where}/{key}").items()}


def last(out: Path) -> dict[str, Any]:
    return torch.load(out / "last.ckpt", weights_only=True)


def rows(out: Path) -> list[dict[str, str]]:
    """The log without its seconds."""
    with (out / "log.csv").open() as file:
        return [{name: text for name, text in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(("model", "recipe"), PAIRS)
def test_a_resumed_training_ends_in_the_same_bits(
    tiny_train: Trainer, finished: Finished, tmp_path: Path, model: str, recipe: str
) -> None:
    whole, broken = finished(model, recipe), tmp_path / "broken"
    straight = whole.card_path.parent
    with pytest.raises(KeyboardInterrupt):
        tiny_train(model, recipe, broken, progress=stop_at(3))
    assert last(broken)["rows"][-1]["epoch"] == 2
    resumed = tiny_train(model, recipe, broken, resume=True)

    expected, found = tensors(last(straight)), tensors(last(broken))
    assert expected.keys() == found.keys()
    assert len(expected) >= 2 * len(list(zoo.build(whole.card).parameters()))  # the optimiser's are among them
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert rows(straight) == rows(broken)
    assert whole.weights.read_bytes() == resumed.weights.read_bytes()
    assert whole.accuracy == resumed.accuracy


def test_another_seed_ends_elsewhere_and_the_global_generators_stay_as_they_were(
    tiny_train: Trainer, finished: Finished, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    other = tiny_train("cnn", "clean", tmp_path, seed=1, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert other.weights.read_bytes() != finished("cnn", "clean", 1).weights.read_bytes()


def test_a_training_stopped_in_its_first_epoch_can_be_resumed(
    tiny_train: Trainer, finished: Finished, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny_train("cnn", "clean", tmp_path, epochs=1, progress=stop_at(1))
    resumed = tiny_train("cnn", "clean", tmp_path, epochs=1, resume=True)
    assert resumed.weights.read_bytes() == finished("cnn", "clean", 1).weights.read_bytes()


@pytest.fixture
def one_epoch(finished: Finished, tmp_path: Path) -> Path:
    """The directory of a training of one epoch."""
    return Path(shutil.copytree(finished("cnn", "clean", 1).card_path.parent, tmp_path / "one"))


def test_a_finished_training_resumes_to_its_own_result(
    tiny_train: Trainer, finished: Finished, one_epoch: Path
) -> None:
    first = finished("cnn", "clean", 1)
    again = tiny_train("cnn", "clean", one_epoch, epochs=1, resume=True)
    assert (again.accuracy, again.card.weights) == (first.accuracy, first.card.weights)


def test_a_loss_that_is_not_finite_ends_in_one_line_and_keeps_the_last_good_epoch(
    tiny_train: Trainer, tmp_path: Path
) -> None:
    with pytest.raises(LpmbenchError, match=r"The loss is (nan|inf) in epoch 1; .*last\.ckpt") as caught:
        tiny_train("cnn", "clean", tmp_path, {"learning_rate": 1e30, "schedule": "constant"})
    assert "\n" not in str(caught.value)
    kept = last(tmp_path)
    assert kept["rows"] == []
    assert all(torch.isfinite(tensor).all() for tensor in tensors(kept["model"]).values())


CHANGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"seed": 1}, "seed was 0, now it is 1"),
    ({}, {"epochs": 3}, "recipe.epochs was 1, now it is 3"),
    ({"learning_rate": 0.5}, {}, "recipe.learning_rate was 0.01, now it is 0.5"),
    ({"model_parameters": {"width": 5}}, {}, "model.parameters.width was 4, now it is 5"),
]


@pytest.mark.parametrize(("recipe_changes", "options", "message"), CHANGES)
def test_a_changed_training_is_not_resumed(
    tiny_train: Trainer, one_epoch: Path, recipe_changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    before = (one_epoch / "last.ckpt").read_bytes()
    with pytest.raises(LpmbenchError) as caught:
        tiny_train("cnn", "clean", one_epoch, recipe_changes, resume=True, **({"epochs": 1} | options))
    assert message in str(caught.value)
    assert (one_epoch / "last.ckpt").read_bytes() == before


def test_a_directory_that_holds_a_training_is_not_overwritten(tiny_train: Trainer, one_epoch: Path) -> None:
    before = {path.name: path.read_bytes() for path in one_epoch.iterdir()}
    with pytest.raises(LpmbenchError, match="--resume"):
        tiny_train("cnn", "clean", one_epoch, epochs=1)
    assert {path.name: path.read_bytes() for path in one_epoch.iterdir()} == before
    assert set(before) == {
        "last.ckpt",
        "best.safetensors",
        "log.csv",
        "curves.png",
        "card.toml",
        "tiny-cnn.safetensors",
    }


def test_a_training_that_failed_at_once_does_not_block_its_folder(tiny_train: Trainer, tmp_path: Path) -> None:
    with pytest.raises(LpmbenchError, match="Cnn is none"):
        tiny_train("cnn", "clean", tmp_path, {"objective": "robustbench_lpm.training.objectives:reinforce"})
    assert tiny_train("cnn", "clean", tmp_path, epochs=1).card_path.is_file()


def test_there_must_be_something_to_resume(tiny_train: Trainer, tmp_path: Path) -> None:
    with pytest.raises(LpmbenchError, match="leave out --resume"):
        tiny_train("cnn", "clean", tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused_by_name(tiny_train: Trainer, one_epoch: Path) -> None:
    (one_epoch / "last.ckpt").write_bytes((one_epoch / "last.ckpt").read_bytes()[:1000])
    with pytest.raises(LpmbenchError, match=r"last\.ckpt cannot be resumed"):
        tiny_train("cnn", "clean", one_epoch, epochs=1, resume=True)


@pytest.mark.parametrize(("model", "recipe"), [("cnn", "clean"), ("ramlpm", "reinforce")])
def test_the_card_that_is_written_runs_and_repeats_its_accuracy(finished: Finished, model: str, recipe: str) -> None:
    result = finished(model, recipe)
    assert result.card.trained is not None
    assert result.card.trained.accuracy == result.accuracy
    loaded = zoo.load_model(str(result.card_path))
    plan = make_plan(
        str(result.card_path),
        recipe=tiny_recipe(recipe), dataset=None, epochs=None, seed=0, command=None, trust=True,
    )  # fmt: skip
    test = load_split(plan, None, "test")
    again = final_accuracy(loaded.classifier, test, 0, "clean", torch.device("cpu"))
    assert {f"test{name}": share for name, share in again.items()}.items() <= result.accuracy.items()
    names = {"cnn": {"validation", "test"}, "ramlpm": {"validation_m1", "validation_m10", "test_m1", "test_m10"}}
    assert set(result.accuracy) == names[model]


def test_the_best_epoch_becomes_the_model(finished: Finished) -> None:
    result = finished("cnn", "clean")
    scores = [(row["validation_accuracy"], -row["validation_classification"]) for row in result.rows]
    assert result.best_epoch == 1 + scores.index(max(scores))
    best = weight_files.read(result.card_path.parent / "best.safetensors")
    written = weight_files.read(result.weights)
    assert all(torch.equal(best[name], written[name]) for name in best)


def test_last_ckpt_serves_as_a_checkpoint(finished: Finished) -> None:
    result = finished("cnn", "clean", 1)
    last_epoch = zoo.load_model(str(result.card_path), checkpoint=result.card_path.parent / "last.ckpt")
    best_epoch = zoo.load_model(str(result.card_path))  # the same: there was one epoch
    image = torch.full((1, 1, 32, 32), 0.5)
    assert torch.equal(last_epoch.classifier(image), best_epoch.classifier(image))


def test_the_card_keeps_the_command_and_the_parameters_of_the_recipe(tiny_train: Trainer, tmp_path: Path) -> None:
    result = tiny_train("cnn", "clean", tmp_path, {"model_parameters": {"width": 3}}, epochs=1, seed=5)
    assert result.card.parameters == {"width": 3, "hidden": 8, "dropout": 0.5}
    assert result.card.trained is not None
    expected = f"lpmbench train {CARDS / 'tiny-cnn.toml'} --seed 5 --epochs 1"
    assert result.card.trained.command == expected


MISTAKES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"parameters": {"label_smothing": 0.1}}, {}, "Did you mean 'label_smoothing'?"),
    ({"groups": {"were": 0.1}}, {}, "Unknown parameter group"),
    ({"objective": "robustbench_lpm.training.objectives:reinforce"}, {}, "Cnn is none"),
    ({"objective": "robustbench_lpm.training.objectives:adversarial"}, {}, "eps, steps, step_size missing"),
    ({}, {"device": "abacus"}, "Device 'abacus' is not available"),
    ({}, {"epochs": 0}, "at least one epoch"),
    ({}, {"dataset": "imagenet"}, "cannot be trained on 'imagenet'"),
]


@pytest.mark.parametrize(("changes", "options", "message"), MISTAKES)
def test_mistakes_are_told_before_training(
    tiny_train: Trainer, tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LpmbenchError) as caught:
        tiny_train("cnn", "clean", tmp_path, changes, **options)
    assert message in str(caught.value)


def test_a_model_without_a_recipe_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(LpmbenchError, match="names no recipe"):
        train(str(CARDS / "tiny-cnn.toml"), out=tmp_path)


def test_batches_of_one_are_refused_for_batch_norms(tiny_train: Trainer, tmp_path: Path) -> None:
    with pytest.raises(LpmbenchError, match="batch norms"):
        tiny_train("ramlpm", "reinforce", tmp_path, {"batch_size": 1})


def test_reduced_precision_trains(tiny_train: Trainer, tmp_path: Path) -> None:
    result = tiny_train("ramlpm", "reinforce", tmp_path, {"precision": "bf16-mixed"}, epochs=1)
    assert {tensor.dtype for tensor in weight_files.read(result.weights).values()} == {torch.float32, torch.int64}


def test_a_glimpsing_network_trains_on_adversarial_images(tiny_train: Trainer, tmp_path: Path) -> None:
    parameters = {"eps": 0.1, "steps": 2, "step_size": 0.06, "loss": "reinforce"}
    more = {"parameters": parameters | {"loss_parameters": {"every_glimpse": True}}}
    result = tiny_train("ramlpm", "adversarial", tmp_path, more, epochs=2)
    assert result.rows[-1].keys() >= {"train_policy", "validation_accuracy", "validation_clean_accuracy"}
    model = zoo.load_model(str(result.card_path), trust=True)
    assert model.classifier.glimpsing


def test_the_recipes_of_the_registry_are_valid() -> None:
    for name in cards.names("recipe"):
        recipe = cards.recipe(name)
        assert callable(cards.resolve(recipe.objective, recipe.path))
        assert recipe.dataset in cards.names("dataset")
