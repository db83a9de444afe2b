"""What a training costs: arithmetic and memory, counted on the network itself.

    python -m benchmarks.training_cost ramlpm-imagenet --recipe imagenet --images 1281167

Counted, not timed: floating point operations of one step (torch's FlopCounterMode, which sees convolutions and
matrix products) and the bytes that autograd keeps for the backward pass. `python -m benchmarks gpu` times steps.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.training.objectives import TrainingBatch, bind


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training costs.")
    parser.add_argument("model")
    parser.add_argument("--recipe")
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--images", type=int, default=1_281_167, help="in the training split")
    parser.add_argument("--batch", type=int, default=2, help="images of the step that is counted")
    options = parser.parse_args()
    card = cards.model(options.model)
    recipe = cards.recipe(options.recipe or str(card.recipe))
    network = zoo.build(card, **recipe.model_parameters).train()
    classifier = zoo.wrap(network, card)
    images = torch.rand(options.batch, card.input.channels, options.side, options.side)
    noise = classifier.sample_noise(Addresses.of(0, range(len(images)), "train"))
    objective = bind(cards.resolve(recipe.objective, recipe.path), recipe.parameters, recipe.path)
    weights = {tensor.untyped_storage().data_ptr() for tensor in network.parameters()}  # the same for any batch
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        labels = torch.zeros(len(images), dtype=torch.long)
        addresses = Addresses.of(0, range(len(images)), "objective")
        objective(classifier, TrainingBatch(images, labels, noise, addresses))["loss"].backward()
    parameters = sum(p.numel() for p in network.parameters())
    flops, bytes_kept = counter.get_total_flops() / len(images), sum(kept.values()) / len(images)
    print(f"{card.name}, recipe {recipe.name}: {parameters / 1e6:.2f} M parameters")
    print(f"one image, forward and backward: {flops / 1e9:.1f} GFLOP; kept for the backward pass: "
          f"{bytes_kept / 2**20:.0f} MiB in float32")  # fmt: skip
    total = flops * options.images * recipe.epochs
    print(f"{recipe.epochs} epochs of {options.images:,} images: {total:.2e} FLOP; "
          f"batch {recipe.batch_size}: {recipe.batch_size * bytes_kept / 2**30:.1f} GiB of activations")  # fmt: skip


if __name__ == "__main__":
    main()
