"""Train a model card's network by a recipe, and write the result as a model card.

All random numbers depend on (seed, epoch, batch or example) alone. So on one device with the same number of threads, a
training that was killed and resumed is bit-identical to an uninterrupted one.
"""

from robustbench_lpm.training.loop import TrainingResult, train

__all__ = ["TrainingResult", "train"]
