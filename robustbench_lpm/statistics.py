"""From graded outcomes to numbers with intervals. Plain numpy and scipy; knows nothing about torch.

The unit of sampling is the image: draws of a stochastic classifier are nested in images. So intervals take n = number
of images, however many draws there are (conservative for the mean over draws).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_IMAGES_FOR_INTERVAL = 20


@dataclass(frozen=True)
class Rate:
    """A share in [0, 1] over n images, with its Wilson 95 % interval (None below 20 images)."""

    value: float
    n: int
    low: float | None
    high: float | None


def wilson(value: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927) for a share `value` in [0, 1] of n trials; value·n may be fractional."""
    if n <= 0:
        raise ValueError("an interval needs at least one trial")
    z = _half_width(confidence)
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _half_width(confidence: float) -> float:
    """Of the central interval of a standard normal distribution."""
    from scipy.special import ndtri  # imported late: most commands need no interval

    return float(ndtri(0.5 + confidence / 2))


def lower_bound(successes: NDArray[np.integer], trials: int, alpha: float) -> NDArray[np.float64]:
    """Clopper and Pearson's one-sided lower bound (1934) for a probability: it is above the truth with probability at
    most alpha. In [0, 1]; 0 where nothing succeeded."""
    from scipy.special import betaincinv

    counts = np.asarray(successes, dtype=np.float64)
    return np.where(counts > 0, betaincinv(np.maximum(counts, 1), trials - counts + 1, alpha), 0.0)


def certified_radius(lower: float, sigma: float) -> float:
    """The L2 radius within which a smoothed classifier keeps its answer, if that has a probability of at least `lower`
    under Gaussian noise of standard deviation sigma (Cohen et al. 2019, theorem 1 with the other classes at 1 - p)."""
    from scipy.special import ndtri

    return sigma * float(ndtri(lower))


def rate(per_image: NDArray[np.floating] | NDArray[np.bool_]) -> Rate:
    """The mean of one number in [0, 1] per image, with its interval."""
    n = len(per_image)
    return rate_of(float(np.mean(per_image)) if n else float("nan"), n)


def rate_of(value: float, n: int) -> Rate:
    """A share in [0, 1] over n images, with its interval."""
    low, high = wilson(value, n) if n >= MIN_IMAGES_FOR_INTERVAL else (None, None)
    return Rate(value, n, low, high)


def paired_interval(differences: NDArray[np.floating], confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the mean of paired differences, one in [-1, 1] per image, n >= 1.

    The adjusted Wald interval of Agresti and Min (2005, Statistics in Medicine 24, 729-740), which adds half an
    observation to each cell of the paired 2 x 2 table; here in a form that takes shares of draws as well as zeros and
    ones. Without the added observations, pairs that never differ would give an interval of width 0 even from a few
    images; with them, 96 such pairs are needed to bound the difference by two points, and 195 by one.
    """
    n = len(differences) + 2
    mean = float(np.sum(differences)) / n
    variance = (float(np.sum(np.square(differences))) + 1) / n - mean**2
    half = _half_width(confidence) * np.sqrt(variance / n)
    return max(-1.0, float(mean - half)), min(1.0, float(mean + half))


def ratio_interval(
    sums: NDArray[np.floating], statistic: Callable[[NDArray[np.floating]], NDArray[np.floating]], draws: int = 2000
) -> tuple[float, float, float]:
    """A statistic of the mean over images (n, k) -> (k,), and its 95 % interval by the bootstrap over images.

    statistic: from means (..., k) to numbers (...,). Percentiles of `draws` resamples (Efron and Tibshirani 1993,
    chapter 13), from generators of a fixed seed.
    """
    chosen = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    low, high = np.percentile(statistic(sums[chosen].mean(axis=1)), [2.5, 97.5])
    return float(statistic(sums.mean(axis=0))), float(low), float(high)


def mean_draw(correct: NDArray[np.bool_]) -> Rate:
    """Mean over draws and images of `correct` (images, draws): the ranking statistic."""
    return rate(correct.mean(axis=1))


def first_half(places: NDArray[np.integer], draws: int) -> NDArray[np.bool_]:
    """Which draws of which images (images, draws) are in the first of two halves: draw k of the image at place i is, if
    i + k is even.

    As on a chessboard, so that both halves hold every image as often as the number of draws allows, runs of unequal K
    are divided along the same noise (draw k of an image is the same noise in all runs of one seed), and a single draw
    is divided by images.
    """
    return np.add.outer(places, np.arange(draws)) % 2 == 0


def crossed(
    first: NDArray[np.bool_], in_first: NDArray[np.bool_], second: NDArray[np.bool_], in_second: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Accuracy per image (images,), read from one run on the first half of its draws and from another on the second.

    first, second: what each run got right (images, draws); in_first, in_second: their draws of the first half. The mean
    is w·(first's accuracy on the first half) + (1 - w)·(second's on the second), w being the first half's share.
    """
    weight = float(in_first.mean() + in_second.mean()) / 2
    read, other = (first & in_first).sum(axis=1) / in_first.sum(), (second & ~in_second).sum(axis=1)
    return np.asarray(len(first) * (weight * read + (1 - weight) * other / (~in_second).sum()))


def majority(correct: NDArray[np.bool_]) -> Rate:
    """The share of images that more than half of the draws (images, draws) get right."""
    return rate(np.asarray(correct.sum(axis=1) * 2 > correct.shape[1]))


def attempts(correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The share of images that K draws get right one after the other, for K = 1 to the number of draws, (draws,).

    An attacker who may submit one image again and again wins with the first draw that is wrong. From D draws of which r
    are right, all of K are right with a probability of C(r, K) / C(D, K), over the choice of K of them without
    replacement: at K = 1 it is the mean draw, at K = D `worst_of_k`.
    """
    draws = correct.shape[1]
    right = correct.sum(axis=1).astype(np.float64)
    factors = [np.clip(right - taken, 0, None) / (draws - taken) for taken in range(draws)]
    return np.asarray(np.cumprod(factors, axis=0).mean(axis=1))


def worst_of_k(correct: NDArray[np.bool_]) -> Rate:
    """The share of images that every one of the K draws (images, draws) gets right."""
    return rate(np.asarray(correct.all(axis=1)))


def flip_rate(predictions: NDArray[np.integer]) -> float:
    """The probability that two draws disagree on an image, from predictions (images, draws); 0 for one draw."""
    draws = predictions.shape[1]
    if draws < 2:
        return 0.0
    counts = np.stack([(predictions == label).sum(axis=1) for label in np.unique(predictions)], axis=1)
    agreeing_pairs = (counts * (counts - 1)).sum(axis=1) / (draws * (draws - 1))
    return float(1 - agreeing_pairs.mean())
