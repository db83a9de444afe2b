"""RAM-LPM: a recurrent attention model with log-polar mapping (Kiritani and Ono 2020, arXiv 2002.05388)."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lpm.architectures.recurrent_attention import (
    THROUGH,
    Glance,
    Policy,
    RecurrentAttention,
    Trajectory,
)
from robustbench_lpm.architectures.retina import LogPolarPadding, cartesian_retina, log_polar_retina

Pooling = Literal["max", "average"]
Padding = Literal["polar", "reference", "zeros"]
RetinaKind = Literal["log-polar", "rectangular"]
Norms = Literal["of-each-glimpse", "of-all-glimpses"]
CELLS_AT_ONCE = 2**16  # cells of glimpses in one batch of the what path: larger batches do not fit into caches
Cell = tuple[Tensor, Tensor]  # the state of an LSTM cell: output and memory, (runs, hidden) each
Layer = Sequence[int]  # [channels], or [channels, pool rows, pool columns]


def glimpse_block(
    inputs: int,
    layer: Layer,
    *,
    kernel: int = 3,
    padding: Padding = "polar",
    pooling: Pooling = "max",
    layer_norm: bool = False,
) -> nn.Sequential:
    """Padding, convolution, pooling, ReLU, batch norm, in the order of the original.

    Maps (B, inputs, H, W) -> (B, outputs, H // pool rows, W // pool columns). padding: "polar" and "reference" as in
    `LogPolarPadding`; "zeros" for a glimpse that is not a log-polar map. layer_norm: instead of a batch norm.
    """
    outputs, *pool = layer
    before, after = kernel // 2, (kernel - 1) // 2
    pad = nn.ZeroPad2d((before, after) * 2) if padding == "zeros" else LogPolarPadding((kernel, kernel), padding)
    pooled = nn.MaxPool2d if pooling == "max" else nn.AvgPool2d
    parts: dict[str, nn.Module] = {"padding": pad, "conv": nn.Conv2d(inputs, outputs, kernel)}
    parts |= {"pool": pooled((pool[0], pool[1]))} if pool else {}
    norm = nn.GroupNorm(1, outputs) if layer_norm else nn.BatchNorm2d(outputs, momentum=0.01)
    return nn.Sequential(OrderedDict(parts, relu=nn.ReLU(), norm=norm))


class GlimpseCnn(nn.Module):
    """A chain of blocks that ends in flat features."""

    def __init__(
        self,
        channels: int,
        layers: Sequence[Layer],
        *,
        padding: Padding = "polar",
        pooling: Pooling = "max",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        inputs = [channels, *[layer[0] for layer in layers[:-1]]]
        self.layers = layers
        self.blocks = nn.Sequential(
            *[
                glimpse_block(n, layer, padding=padding, pooling=pooling, layer_norm=layer_norm)
                for n, layer in zip(inputs, layers, strict=True)
            ]
        )

    def features(self, height: int, width: int) -> int:
        """The number of flat features for maps of that size."""
        for _, *pool in self.layers:
            if pool:
                height, width = height // pool[0], width // pool[1]
        return self.layers[-1][0] * height * width

    def forward(self, maps: Tensor, glimpses: int = 1) -> Tensor:
        """Maps (B, C, H, W) -> features (B, F). glimpses: see `per_glimpse`."""
        return per_glimpse(self.blocks, maps, glimpses).flatten(1)


def per_glimpse(layer: nn.Module, inputs: Tensor, glimpses: int) -> Tensor:
    """A layer, or a chain of them, on inputs (B · T, ...), of which those of one image follow each other.

    In training every batch norm normalises each glimpse by its own statistics, as T calls would.
    """
    if isinstance(layer, nn.Sequential):
        for part in layer:
            inputs = per_glimpse(part, inputs, glimpses)
        return inputs
    grouped = glimpses > 1 and layer.training and isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    return _norm_of_each(layer, inputs, glimpses) if grouped else layer(inputs)


def _norm_of_each(norm: Any, inputs: Tensor, glimpses: int) -> Tensor:
    """A batch norm in training on inputs (B · T, C, ...), as one of T · C channels; without a copy of contiguous ones.

    The running statistics become those of T calls: r <- (1 - m)^T r + m sum_t (1 - m)^(T-1-t) found_t.
    """
    grouped = inputs.unflatten(0, (-1, glimpses)).flatten(1, 2)
    found = norm.running_mean.new_zeros(2, glimpses * norm.num_features)  # means and variances
    weight, bias = norm.weight.repeat(glimpses), norm.bias.repeat(glimpses)
    grouped = F.batch_norm(grouped, found[0], found[1], weight, bias, training=True, momentum=1.0, eps=norm.eps)
    with torch.no_grad():
        kept = 1 - norm.momentum
        shares = torch.pow(kept, torch.arange(glimpses - 1, -1, -1, dtype=found.dtype, device=found.device))
        recent = (found.unflatten(1, (glimpses, -1)) * shares[:, None]).sum(1)
        for running, part in zip((norm.running_mean, norm.running_var), recent, strict=True):
            running.mul_(kept**glimpses).add_(part, alpha=norm.momentum)
        norm.num_batches_tracked += glimpses
    return grouped.unflatten(1, (glimpses, -1)).flatten(0, 1)


class RamLpm(RecurrentAttention):
    """RAM-LPM. A what path classifies the glimpses, a where path on the same glimpses chooses the next fixation.

    Args:
        channels of the images, classes of the logits.
        retina: "log-polar"; or, as a control, "rectangular": height x width samples spread evenly over
            [-r_max, r_max]² (`cartesian_retina`), which has neither r_min nor inner_rows and needs padding "zeros".
        height, width, r_min, r_max, oversampling, inner_rows, align_corners: of the retina (`log_polar_retina`).
        what, where: the layers of the two CNNs, each [channels] or [channels, pool rows, pool columns].
        what_hidden, where_hidden: units of the two LSTM cells.
        head: "mlp" (Linear to 1024, ReLU, batch norm, Linear; SIM2MNIST) or "linear" (batch norm, Linear; ImageNet).
        glimpses T, sigma (normalised units), first_fixation_spread, policy, random_spread: see `RecurrentAttention`.
        padding: "polar" is exactly equivariant to rotation, "reference" repeats the original's pole padding, "zeros"
            pads with black.
        where_pooling: the original code specifies average pooling in the where path, but uses "max".
        norms: "of-each-glimpse" as in the original: in training, batch norms have the statistics of one glimpse. In use
            they have those of all, which are others where a policy looks elsewhere in every glimpse.
            "of-all-glimpses" trains the what path with the statistics of all T glimpses; the where path, which
            chooses a glimpse before it has seen the following, has layer norms, which need none.
    """

    shares_images = True
    # The fixations decide everything that it sees, so the cheap where path keeps its precision in every copy.
    exact_parts: ClassVar = ("where_cnn", "where_rnn", "where_norm", "locator")

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        height: int,
        width: int,
        r_min: float | None = None,
        r_max: float,
        what: Sequence[Layer],
        where: Sequence[Layer],
        what_hidden: int,
        where_hidden: int,
        head: Literal["mlp", "linear"],
        glimpses: int,
        sigma: float = 0.16,
        first_fixation_spread: float = 0.25,
        policy: Policy = "learned",
        random_spread: float = 0.5,
        oversampling: int = 1,
        inner_rows: int = 0,
        retina: RetinaKind = "log-polar",
        padding: Padding = "polar",
        where_pooling: Pooling = "max",
        align_corners: bool = False,
        norms: Norms = "of-each-glimpse",
    ) -> None:
        super().__init__(glimpses, sigma, first_fixation_spread, policy, random_spread)
        if norms not in ("of-each-glimpse", "of-all-glimpses"):
            raise ValueError(f"norms must be 'of-each-glimpse' or 'of-all-glimpses', not '{norms}'")
        self.together = norms == "of-all-glimpses"
        sampling: dict[str, Any] = {"oversampling": oversampling, "align_corners": align_corners}
        if retina == "log-polar":
            if r_min is None:
                raise ValueError("a log-polar retina needs an r_min")
            self.retina = log_polar_retina(height, width, r_min, r_max, inner_rows=inner_rows, **sampling)
        else:
            _check_rectangular(retina, r_min, inner_rows, padding)
            self.retina = cartesian_retina(height, width, r_max, **sampling)
        self.what_cnn = GlimpseCnn(channels, what, padding=padding)
        self.where_cnn = GlimpseCnn(channels, where, padding=padding, pooling=where_pooling, layer_norm=self.together)
        rows = self.retina.height
        self.what_rnn = nn.LSTMCell(self.what_cnn.features(rows, width) + 2, what_hidden)
        self.where_rnn = nn.LSTMCell(self.where_cnn.features(rows, width) + 2, where_hidden)
        self.what_norm = nn.BatchNorm1d(what_hidden, momentum=0.01)
        self.where_norm = nn.LayerNorm(where_hidden) if self.together else nn.BatchNorm1d(where_hidden, momentum=0.01)
        self.head = _head(head, what_hidden, classes)
        self.baseline = nn.Linear(what_hidden, 1)
        self.locator = nn.Linear(where_hidden, 2)
        if self.together:
            for part in self.modules():
                if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                    part.momentum = 0.1  # one update a step, not one for each glimpse: 0.01 would lag far behind

    def start(self, images: Tensor, runs: int) -> tuple[Cell, Cell]:
        """LSTM states of zeros, of the what path and of the where path."""
        return _blank(images, runs, self.what_rnn), _blank(images, runs, self.where_rnn)

    def glance(self, images: Tensor, fixations: Tensor, state: tuple[Cell, Cell]) -> Glance:
        """One glimpse through both paths."""
        glimpse = self.retina(images, fixations)
        what = self.what_rnn(torch.cat([self.what_cnn(glimpse), fixations], dim=1), state[0])
        mean, where = self._aim(glimpse, fixations, state[1])
        logits, baseline = self._answer(what[0])
        return Glance(logits, mean, baseline, (what, where))

    def _aim(self, glimpse: Tensor, fixations: Tensor, state: Cell) -> tuple[Tensor, Cell]:
        """The next fixation mean of the where path, (runs, 2), and its state."""
        state = self.where_rnn(torch.cat([self.where_cnn(glimpse), fixations], dim=1), state)
        return self.locator(self.where_norm(state[0])), state

    def _answer(self, hidden: Tensor, glimpses: int = 1) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and the baseline (B,) from the output of the what path's LSTM, (B, hidden)."""
        features = per_glimpse(self.what_norm, hidden, glimpses)
        return per_glimpse(self.head, features, glimpses), F.relu(self.baseline(features.detach())).squeeze(1)

    def look(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "detached"
    ) -> Trajectory:
        """As many glimpses as the noise has numbers for; the what path reads all together (see `forward`)."""
        # A CPU trains faster on one glimpse at a time: its maps fit into the caches, and keep their layout.
        if self.training and images.device.type == "cpu" and not self.together:
            return super().look(images, noise, gradient_mode=gradient_mode)
        noise = self.noise_for(images, noise)
        means, fixations, glimpses = self._scan(images, noise, gradient_mode)
        places = torch.stack(fixations)
        if self.training:
            logits, baselines = self._learn(glimpses, places)
        else:
            answers = [self._answer(hidden) for hidden in self._recognise(glimpses, places)]
            logits, baselines = (torch.stack(column) for column in zip(*answers, strict=True))
        return Trajectory(logits, torch.stack(means), places, baselines)

    def forward(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "detached"
    ) -> Tensor:
        """Logits (R · B, K) after the last glimpse at images (B, C, H, W).

        The where path alone decides the fixations, so it runs first; the what path, which costs most, then reads the
        glimpses of all steps and runs together. If no gradient passes the fixations, none is kept for the where path.
        """
        if self.training:
            return super().forward(images, noise, gradient_mode=gradient_mode)
        noise = self.noise_for(images, noise)
        through = gradient_mode in THROUGH
        with torch.set_grad_enabled(torch.is_grad_enabled() and through):
            _, fixations, glimpses = self._scan(images, noise, gradient_mode, last=False)
            places = torch.stack(fixations)
            glimpses.append(self.retina(images, fixations[-1]))
        if torch.is_grad_enabled() and not through:
            glimpses = [self.retina(images, places.flatten(0, 1))]
        return self.head(self.what_norm(self._recognise(glimpses, places)[-1]))

    def _scan(
        self, images: Tensor, noise: dict[str, Tensor], gradient_mode: str, *, last: bool = True
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The where path alone: means and fixations as in `follow`, and the glimpses."""
        state, glimpses = _blank(images, len(noise["first_fixation"]), self.where_rnn), []

        def aim(fixations: Tensor) -> Tensor:
            nonlocal state
            glimpses.append(self.retina(images, fixations))
            mean, state = self._aim(glimpses[-1], fixations, state)
            return mean

        return *self.follow(noise, gradient_mode, aim, last=last), glimpses

    def _recognise(self, glimpses: Sequence[Tensor], fixations: Tensor) -> list[Tensor]:
        """The output of the what path's LSTM after each of T glimpses, (runs, hidden); fixations are (T, runs, 2)."""
        maps = torch.cat(list(glimpses)) if len(glimpses) > 1 else glimpses[0]
        at_once = max(8, CELLS_AT_ONCE // (maps.shape[2] * maps.shape[3]))
        features = torch.cat([self.what_cnn(part) for part in maps.split(at_once)])
        inputs = torch.cat([features.unflatten(0, fixations.shape[:2]), fixations], dim=2)
        state, known = _blank(maps, fixations.shape[1], self.what_rnn), []
        for seen in inputs:
            state = self.what_rnn(seen, state)
            known.append(state[0])
        return known

    def _learn(self, glimpses: Sequence[Tensor], fixations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (T, runs, K) and baselines (T, runs) of the what path in training; fixations are (T, runs, 2)."""
        steps, runs, _ = fixations.shape
        grouped = 1 if self.together else steps
        maps = torch.stack(list(glimpses), dim=1).flatten(0, 1)
        features = self.what_cnn(maps, grouped).unflatten(0, (runs, steps))
        state, known = _blank(maps, runs, self.what_rnn), []
        for seen in torch.cat([features, fixations.transpose(0, 1)], dim=2).unbind(1):
            state = self.what_rnn(seen, state)
            known.append(state[0])
        logits, baselines = self._answer(torch.stack(known, dim=1).flatten(0, 1), grouped)
        return logits.unflatten(0, (runs, steps)).transpose(0, 1), baselines.unflatten(0, (runs, steps)).T

    # Settings of the original authors' checkpoints that differ from our defaults.
    reference_parameters: ClassVar = {"padding": "reference", "where_pooling": "max"}

    @staticmethod
    def is_reference_state(state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict carries the names of the original authors' code."""
        return any(name.startswith("cnn_what.net.") for name in state)

    def translate_reference_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the original authors' code in the names of this class, without the parts it never uses.

        The original numbers convolutions and batch norms by their place in a chain of modules: only the order counts.
        """
        translated: dict[str, Tensor] = {}
        for path in ("what", "where"):
            translated |= _translate_chain(state, f"cnn_{path}.net.", f"{path}_cnn.blocks.")
        hidden_layer = isinstance(self.head[0], nn.Linear)
        names = _REFERENCE_NAMES | (_MLP_NAMES if hidden_layer else _LINEAR_NAMES)
        for name, tensor in state.items():
            module, _, parameter = name.rpartition(".")
            if module in names:
                translated[f"{names[module]}.{parameter}"] = tensor
        return translated


def _blank(like: Tensor, runs: int, cell: nn.LSTMCell) -> Cell:
    zeros = like.new_zeros(runs, cell.hidden_size)
    return zeros, zeros


_REFERENCE_NAMES = {
    "rnn_what": "what_rnn", "rnn_where": "where_rnn", "bn_what": "what_norm", "bn_where": "where_norm",
    "baseliner.fc": "baseline", "locator.fc": "locator",
}  # fmt: skip
_MLP_NAMES = {"fc_before_classifier": "head.0", "bn_before_classifier": "head.2", "classifier.fc": "head.3"}
_LINEAR_NAMES = {"bn_before_classifier": "head.0", "classifier.fc": "head.1"}


def _translate_chain(state: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Rename `old`7.weight, ... to `new`1.norm.weight, ...: convolutions and norms alternate in the chain."""
    found = {name: re.match(rf"{re.escape(old)}(\d+)\.(\w+)$", name) for name in state}
    places = sorted({int(match[1]) for match in found.values() if match})
    block = {place: f"{i // 2}.{('conv', 'norm')[i % 2]}" for i, place in enumerate(places)}
    return {f"{new}{block[int(m[1])]}.{m[2]}": state[name] for name, m in found.items() if m}


def _check_rectangular(retina: str, r_min: float | None, inner_rows: int, padding: str) -> None:
    if retina != "rectangular":
        raise ValueError(f"retina must be 'log-polar' or 'rectangular', not '{retina}'")
    if r_min is not None or inner_rows:
        raise ValueError("a rectangular retina has neither r_min nor inner_rows")
    if padding != "zeros":
        raise ValueError(f"padding '{padding}' is for log-polar maps; a rectangular retina needs 'zeros'")


def _head(kind: str, hidden: int, classes: int) -> nn.Sequential:
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(hidden, 1024), nn.ReLU(), nn.BatchNorm1d(1024, momentum=0.01), nn.Linear(1024, classes)
        )
    if kind == "linear":
        return nn.Sequential(nn.BatchNorm1d(hidden, momentum=0.01), nn.Linear(hidden, classes))
    raise ValueError(f"head must be 'mlp' or 'linear', not '{kind}'")
