"""What a training costs: arithmetic and memory, counted on the network itself.

    python -m benchmarks.training_cost                     # every model with a recipe on the datasets below
    python -m benchmarks.training_cost ramlpm-imagenet --recipe imagenet --images 1281167

Counted, not timed: floating point operations of one step (torch's FlopCounterMode, which sees convolutions and
matrix products) and the bytes that autograd keeps for the backward pass. The group gpu-training times steps.
"""

from __future__ import annotations

import argparse
from typing import Self

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.registry.cards import ModelCard, RecipeCard
from robustbench_lpm.training.objectives import TrainingBatch, bind

# Side of the images in pixels, and their number in the whole training split.
SPLITS = {"cifar10": (32, 45_000), "tiny-imagenet": (64, 95_000), "imagenet": (512, 1_281_167)}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training costs.")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--recipe")
    parser.add_argument("--side", type=int, help="of the images, in pixels; by default that of the recipe's data")
    parser.add_argument(
        "--images", type=int, help="in the training split; by default as many as the recipe's data have"
    )
    parser.add_argument("--batch", type=int, default=2, help="images of the step that is counted")
    options = parser.parse_args()
    for card in map(cards.model, options.models or _covered()):
        recipe = cards.recipe(options.recipe or str(card.recipe))
        side, images = SPLITS.get(recipe.dataset, (options.side, options.images))
        if not (options.side or side) or not (options.images or images):
            parser.error(f"give --side and --images: those of '{recipe.dataset}' are not known here")
        tell(card, recipe, options.side or side, options.images or images, options.batch)


def _covered() -> list[str]:
    """The models whose own recipe trains them on one of SPLITS."""
    own = {name: cards.model(name).recipe for name in cards.names("model")}
    return [name for name, recipe in own.items() if recipe and cards.recipe(recipe).dataset in SPLITS]


class _NoModules(ModuleTracker):
    """Tells no modules apart. torch's own tracker fails where a gradient is taken of the images."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


def tell(card: ModelCard, recipe: RecipeCard, side: int, count: int, batch: int) -> None:
    """Print what training a model on `count` images of `side` pixels costs, from one step on a batch."""
    network = zoo.build(card, **recipe.model_parameters).train()
    classifier = zoo.wrap(network, card)
    images = torch.rand(batch, card.input.channels, side, side)
    noise = classifier.sample_noise(Addresses.of(0, range(len(images)), "train"))
    objective = bind(cards.resolve(recipe.objective, recipe.path), recipe.parameters, recipe.path)
    weights = {tensor.untyped_storage().data_ptr() for tensor in network.parameters()}  # the same for any batch
    passes: list[dict[int, int]] = [{}]  # what each keeps; adversarial training makes several

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            passes[-1][storage.data_ptr()] = storage.nbytes()
        return tensor

    def use(tensor: Tensor) -> Tensor:  # a backward pass has begun
        if passes[-1]:
            passes.append({})
        return tensor

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, use):
        labels = torch.zeros(len(images), dtype=torch.long)
        addresses = Addresses.of(0, range(len(images)), "objective")
        objective(classifier, TrainingBatch(images, labels, noise, addresses))["loss"].backward()
    parameters = sum(p.numel() for p in network.parameters())
    flops, bytes_kept = (
        counter.get_total_flops() / len(images),
        max(sum(kept.values()) for kept in passes) / len(images),
    )
    print(f"{card.name}, recipe {recipe.name}: {parameters / 1e6:.2f} M parameters")
    print(f"one image, forward and backward: {flops / 1e9:.1f} GFLOP; kept for the backward pass: "
          f"{bytes_kept / 2**20:.0f} MiB in float32")  # fmt: skip
    total = flops * count * recipe.epochs
    print(f"{recipe.epochs} epochs of {count:,} images: {total:.2e} FLOP; "
          f"batch {recipe.batch_size}: {recipe.batch_size * bytes_kept / 2**30:.1f} GiB of activations")  # fmt: skip


if __name__ == "__main__":
    main()
