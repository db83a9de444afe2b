"""From a recipe to a checkpoint: train a model card's network, and write it down as a model card of its own.

All randomness is keyed by (seed, epoch, batch or example), so that a training that was killed and resumed ends in the
same bits as one that was left alone, on one device with the same number of threads.
"""

from robustbench_lpm.training.loop import TrainingResult, train

__all__ = ["TrainingResult", "train"]
