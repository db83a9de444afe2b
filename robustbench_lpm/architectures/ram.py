"""RAM: the recurrent attention model with a multi-scale rectangular retina (Mnih et al. 2014, arXiv 1406.6247)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lpm.architectures.recurrent_attention import Glance, Policy, RecurrentAttention
from robustbench_lpm.architectures.retina import rectangular_retina


class Ram(RecurrentAttention):
    """RAM, in the sizes of the paper's section 4: a glimpse network, a core of rectified units, three linear heads.

    Args:
        channels of the images, classes of the logits.
        patch, scales, extent: the retina (`rectangular_retina`); extent is the half-width of the smallest patch.
        features, hidden: units of the glimpse network's two branches and of the core.
        glimpses, sigma (normalised units), first_fixation_spread, policy, random_spread: see `RecurrentAttention`.
    """

    shares_images = True

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        patch: int = 8,
        scales: int = 3,
        extent: float = 0.25,
        features: int = 128,
        hidden: int = 256,
        glimpses: int = 6,
        sigma: float = 0.16,
        first_fixation_spread: float = 0.25,
        policy: Policy = "learned",
        random_spread: float = 0.5,
        align_corners: bool = False,
    ) -> None:
        super().__init__(glimpses, sigma, first_fixation_spread, policy, random_spread)
        self.retina = rectangular_retina(patch, scales, extent, align_corners=align_corners)
        self.see = nn.Linear(channels * scales * patch**2, features)
        self.place = nn.Linear(2, features)
        self.see_on = nn.Linear(features, hidden)
        self.place_on = nn.Linear(features, hidden)
        self.core_from_glimpse = nn.Linear(hidden, hidden)
        self.core_from_core = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, classes)
        self.locator = nn.Linear(hidden, 2)
        self.baseline = nn.Linear(hidden, 1)

    def start(self, images: Tensor, runs: int) -> Tensor:
        """A core at zero."""
        return images.new_zeros(runs, self.core_from_core.in_features)

    def glance(self, images: Tensor, fixations: Tensor, state: Tensor) -> Glance:
        """One glimpse; as in the paper, the features of content and of place are added."""
        seen = F.relu(self.see(self.retina(images, fixations).flatten(1)))
        placed = F.relu(self.place(fixations))
        glimpse = F.relu(self.see_on(seen) + self.place_on(placed))
        core = F.relu(self.core_from_core(state) + self.core_from_glimpse(glimpse))
        return Glance(
            logits=self.classifier(core),
            mean=self.locator(core),
            baseline=self.baseline(core.detach()).squeeze(1),
            state=core,
        )
