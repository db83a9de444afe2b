"""A small convolutional network for small images."""

from __future__ import annotations

from torch import Tensor, nn


class Cnn(nn.Module):
    """Four 3x3 convolutions with two max-poolings and two linear layers, in the manner of Carlini and Wagner (2017).

    Images (B, channels, size, size), size at least 4, to logits (B, classes). The poolings round down, as torch's do.
    """

    def __init__(
        self, *, channels: int, classes: int, size: int = 32, width: int = 32, hidden: int = 128, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout),
            nn.Linear(2 * width * (size // 4) ** 2, hidden), nn.ReLU(), nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.classifier(self.features(images))
