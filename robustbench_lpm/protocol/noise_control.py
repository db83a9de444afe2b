"""Control of a stochastic classifier's noise while it is attacked, source by source.

Each source of randomness (RAM-LPM has two: "first_fixation" and "policy") is in one of four modes:

    averaged   every draw of every query is new: a gradient over N draws averages over this source (EOT). The default.
    fresh      new at every query, the same in all draws of that query: gradients do not average over it.
    replayed   the same N draws at every query: the attack climbs one fixed sample average (common random numbers).
    frozen     one draw for each image, the same in the attack, the selection and the grading: the source is switched
               off, which makes another, less random classifier.

The first three change only what the attack sees. `frozen` shows whether an attack works at all without noise (Carlini
et al. 2019, arXiv 1902.06705, section 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, GloballyRandom, Noise
from robustbench_lpm.errors import LpmbenchError, unknown
from robustbench_lpm.randomness import Addresses, Purpose

AVERAGED, FRESH, REPLAYED, FROZEN = MODES = ("averaged", "fresh", "replayed", "frozen")


@dataclass(frozen=True)
class NoiseControl:
    """The mode of each source that is not averaged, as sorted (source, mode) pairs."""

    modes: tuple[tuple[str, str], ...] = ()

    def sources(self, mode: str) -> set[str]:
        """The sources in a mode (of those that are not averaged)."""
        return {source for source, found in self.modes if found == mode}

    def leaves_noise(self, classifier: Classifier) -> bool:
        """Whether two passes over one image may still differ."""
        if not classifier.stochastic:
            return False
        frozen = self.sources(FROZEN)
        return not frozen or bool(sources_of(classifier) - frozen)

    def sample(
        self, classifier: Classifier, seed: int, indices: Sequence[int], purpose: Purpose, draw: int = 0, draws: int = 1
    ) -> Noise:
        """Noise of `draws` draws from `draw` on, one after the other, that an attack does not control."""
        addresses = Addresses.of(seed, indices, purpose, draw).draws(draws)
        return self._freeze(classifier, classifier.sample_noise(addresses), addresses, draws)

    def attack_noise(self, classifier: Classifier, fresh: Addresses, draws: int) -> Noise:
        """Noise of `draws` draws for B images, (draws · B, ...) for each source, one draw after the other.

        fresh: the addresses of these draws, which no query had before.
        """
        noise, batch = classifier.sample_noise(fresh), len(fresh) // draws
        for source in self.sources(FRESH):
            noise[source] = _repeated(noise[source][:batch], draws)
        if replayed := self.sources(REPLAYED):
            seed, _, stream = fresh.key
            same = Addresses.of(seed, fresh.places[2, :batch], "replayed", stream=stream).draws(draws)
            first = classifier.sample_noise(same)
            noise |= {source: first[source] for source in replayed}
        return self._freeze(classifier, noise, fresh, draws)

    def _freeze(self, classifier: Classifier, noise: Noise, addresses: Addresses, draws: int) -> Noise:
        """Noise in which each frozen source has its one draw of each image in all draws."""
        if frozen := self.sources(FROZEN):
            indices = addresses.places[2, : len(addresses) // draws]
            still = classifier.sample_noise(Addresses.of(addresses.key[0], indices, "frozen"))
            noise = noise | {source: _repeated(still[source], draws) for source in frozen}
        return noise


def _repeated(values: Tensor, draws: int) -> Tensor:
    return values.repeat(draws, *[1] * (values.dim() - 1))


def sources_of(classifier: Classifier) -> set[str]:
    """The names of a classifier's sources of randomness."""
    return set(classifier.sample_noise(Addresses.of(0, [0], "clean")))


def can_freeze(classifier: Classifier) -> bool:
    """Whether noise can be frozen: not that of a network that draws from the global generators, for a whole batch."""
    return not isinstance(classifier.network, GloballyRandom)


def parse_noise_control(settings: str | Iterable[str], classifier: Classifier) -> NoiseControl:
    """Settings like "policy=frozen", or a mode alone for every source; later ones override earlier ones.

    Raises LpmbenchError for a mode or a source that does not exist.
    """
    known = sources_of(classifier)
    found: dict[str, str] = {}
    for setting in [settings] if isinstance(settings, str) else settings:
        source, equals, mode = setting.partition("=")
        if not equals:
            source, mode = "", source
        if mode not in MODES:
            raise unknown("noise mode", mode, MODES)
        if source and source not in known:
            if not known:
                raise LpmbenchError("The model is deterministic: it has no source of noise to control.")
            raise unknown("source of noise", source, known)
        found |= dict.fromkeys([source] if source else known, mode)
    if FROZEN in found.values() and not can_freeze(classifier):
        raise LpmbenchError(
            "The model draws from the global generators, so that its noise depends on the batch: it cannot be frozen."
        )
    return NoiseControl(tuple(sorted((source, mode) for source, mode in found.items() if mode != AVERAGED)))
