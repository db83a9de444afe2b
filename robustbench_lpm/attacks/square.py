"""The Square Attack: random search with square-shaped updates (Andriushchenko et al. 2020, arXiv 1912.00049).

Its l1 version is that of Croce and Hein 2021 (arXiv 2103.01208): the one for l2 with sums of absolute values as sizes.
Its l0 version is Sparse-RS (Croce et al. 2022, arXiv 2006.12834), which exchanges the values that are at 0 or 1.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from robustbench_lpm.allocator import to_device
from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.attacks.losses import objective
from robustbench_lpm.norms import Norm, distance, largest, per_image, project
from robustbench_lpm.randomness import Addresses

# Section 4.1 of the paper: the share p of pixels that change is halved at these queries of 10,000.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_POWERS = {"l2": 2, "l1": 1}  # of the offsets whose sum a norm bounds
# In l0 this share of the changes is exchanged, divided by one of these after each halving (the authors' public code).
EXCHANGED, DIVISORS = 0.3, (1, 2, 4, 5, 6, 8, 10, 12, 15, 20)
TILES = 5  # the l2 and l1 attacks start from a grid of so many tiles by so many


@Declaration(cost=lambda queries, draws: Cost(queries * draws))
@torch.no_grad()
def square(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    queries: PositiveInt = 1000, draws: PositiveInt = 1, p_init: PositiveFloat = 0.8,
) -> Tensor:  # fmt: skip
    """Change a square at a random place, and keep the change if the margin decreases (algorithm 1).

    With a deterministic classifier a change costs one query, and a misclassified image is left alone. With a
    stochastic one the changed and the present image have the same fresh noise (common random numbers), so that no
    change is kept by chance; a change then costs two queries.

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        queries: the budget of each image, including one for the start with a deterministic classifier.
        draws: draws of noise over which a stochastic classifier's answer to a query is averaged.
        p_init: share of the pixels that the first squares cover; the paper's schedule is scaled to the budget. Not
            used in l0.
    """
    start = _start(images, norm, eps, oracle.choices())
    changes = queries // 2 if oracle.stochastic else queries - 1
    known = torch.full((len(images),), torch.inf, device=images.device)
    if not oracle.stochastic:
        known = objective("margin", oracle(start, oracle.noise()), labels, targets)[0]
    # `active` are the positions (b,) of the images under attack, `known` their margins: infinite if stochastic.
    state = {"result": start, "active": torch.arange(len(images), device=images.device), "known": known}
    for number in oracle.resumable(range(changes), state):
        active, known = state["active"], state["known"]
        if oracle.looks(number) and len(remaining := oracle.rows(active).remaining(known < 0)) < len(active):
            active, known = active[remaining], known[remaining]
        if len(active) == 0:
            break
        here, present, originals = oracle.rows(active), state["result"][active], images[active]
        target = targets[active] if targets is not None else None
        if norm == "l0":
            exchanged = max(1, int(EXCHANGED / DIVISORS[_halvings(number, changes)] * eps))
            moved = _exchange(present, originals, here.choices(), exchanged, eps)
        else:
            side = side_at(number, changes, p_init, images.shape[-2:], norm)
            # Two places (row, column), a flip, and a sign for each channel.
            choices = to_device(here.choices().uniform("square", 5 + images.shape[1]), images.device)
            moved = _change(present, originals, choices, side, norm, eps)
        if oracle.stochastic:
            better = _beats(here, moved, present, labels[active], target, draws)
        else:
            found = objective("margin", here(moved, here.noise()), labels[active], target)[0]
            better = (found < known) & (known >= 0)  # a misclassified image keeps its pixels
            known = torch.where(better, found, known)
        state["result"][active] = torch.where(per_image(better, moved), moved, present)
        state |= {"active": active, "known": known}
    return state["result"]


def side_at(number: int, changes: int, p_init: float, shape: torch.Size, norm: Norm) -> int:
    """The side in pixels of the square of a change, of images of a shape (H, W) (section 4.1 of the paper)."""
    share = p_init / 2 ** _halvings(number, changes)
    side = round((share * shape[0] * shape[1]) ** 0.5)
    # In l2 and l1 a square needs two halves and a centre.
    side = max(side, 1) if norm == "linf" else max(side, 3) // 2 * 2 + 1
    return min(side, *shape)


def _halvings(number: int, changes: int) -> int:
    return sum(number * 10_000 / max(changes, 1) > halving for halving in HALVINGS)


def _beats(
    oracle: Oracle, moved: Tensor, present: Tensor, labels: Tensor, targets: Tensor | None, draws: int
) -> Tensor:
    """Whether changed images have a smaller mean margin than the present ones, on the same noise: (b,)."""
    both = torch.cat([moved.expand(draws, *moved.shape), present.expand(draws, *present.shape)])
    margins = objective("margin", oracle(both, oracle.noise(draws, paired=True)), labels, targets)
    of_moved, of_present = margins.chunk(2)
    return of_moved.mean(0) < of_present.mean(0)


def _start(images: Tensor, norm: Norm, eps: float, addresses: Addresses) -> Tensor:
    """Vertical stripes of ± eps in linf; in l0 eps values at the end of the box; else a grid of tiles of the shape that
    the squares have later."""
    channels, height, width = images.shape[1:]
    if norm == "l0":
        return _exchange(images, images, addresses, 0, eps)
    if norm == "linf":
        stripes = addresses.signs("stripe", channels, 1, width)
        return project(images + eps * stripes.to(images), images, norm, eps)
    side = max(1, min(height, width) // TILES)
    grid = (height // side, width // side)
    signs, flips = addresses.signs("sign", channels, *grid), addresses.signs("flip", 1, *grid) > 0
    tile = _tile(side, signs.device, _POWERS[norm])
    tiles = signs[..., None, None] * torch.where(flips[..., None, None], tile.T, tile)  # (B, C, rows, columns, h, h)
    offsets = torch.zeros(images.shape)
    offsets[..., : grid[0] * side, : grid[1] * side] = tiles.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    offsets /= per_image(offsets.flatten(1).double().norm(_POWERS[norm], dim=1).to(offsets), offsets)
    return project(images + eps * offsets.to(images), images, norm, eps)


def _change(present: Tensor, originals: Tensor, choices: Tensor, side: int, norm: Norm, eps: float) -> Tensor:
    """The images after one change each, by choices (b, 5 + C)."""
    flips, signs = choices[:, 4] < 0.5, _signs(choices[:, 5:])[..., None, None]
    free = [size - side + 1 for size in (*present.shape[-2:], *present.shape[-2:])]
    rows, columns, other_rows, other_columns = (
        (places * n).long() for places, n in zip(choices[:, :4].unbind(1), free, strict=True)
    )
    window = _window(rows, columns, side, present)
    if norm == "linf":  # algorithm 2: all of the square goes to the same side of the ball
        return project(torch.where(window, originals + eps * signs, present), originals, norm, eps)
    tile = _tile(side, present.device, _POWERS[norm])
    shape = signs * torch.where(per_image(flips, present), tile.T, tile)  # (b, C, h, h)
    steps = torch.arange(side, device=present.device)
    inside = (rows[:, None, None] + steps[:, None]) * present.shape[-1] + columns[:, None, None] + steps  # (b, h, h)
    other = _window(other_rows, other_columns, side, present)
    return _change_in_sum(present, originals, window, other, inside.flatten(1)[:, None], shape, norm, eps)


def _exchange(present: Tensor, originals: Tensor, addresses: Addresses, count: int, eps: float) -> Tensor:
    """So many of the changes taken back, and new ones made elsewhere, to an end of the box, until there are eps."""
    places, values = (
        to_device(addresses.uniform(source, *present.shape[1:], device=present.device), present.device)
        for source in ("place", "value")
    )
    changed = present != originals
    kept = changed & ~largest(places.masked_fill(~changed, -1), count)
    ends = (values < 0.5).to(originals)
    ends = torch.where(ends == originals, 1 - ends, ends)
    free = eps - distance(torch.where(kept, present, originals), originals, "l0")
    made = largest(places.masked_fill(changed, -1), free)
    return torch.where(made & ~changed, ends, torch.where(kept, present, originals))


def _change_in_sum(
    present: Tensor, originals: Tensor, window: Tensor, other: Tensor, inside: Tensor, shape: Tensor, norm: Norm,
    eps: float,
) -> Tensor:  # fmt: skip
    """Algorithm 3: the norm of one window, and the rest of the budget, move into the other, channel by channel.

    window, other: masks (b, 1, H, W). inside: the positions of the first in a flat channel, (b, 1, h · h). shape: what
    is added there, (b, C, h, h), of norm 1 in each channel.
    """
    power = _POWERS[norm]
    offsets = present - originals
    inside = inside.expand(-1, offsets.shape[1], -1)
    old = offsets.flatten(2).gather(2, inside).reshape(shape.shape)
    unused = (eps**power - offsets.abs().pow(power).sum((1, 2, 3), keepdim=True)).clamp_min(0)
    given_up = (offsets.abs().pow(power) * (window | other)).sum((2, 3), keepdim=True)
    available = (given_up + unused / offsets.shape[1]) ** (1 / power)
    new = shape + old / _size(old, power)
    offsets = offsets.masked_fill(other, 0).flatten(2)
    offsets.scatter_(2, inside, (new / _size(new, power) * available).flatten(2))
    return project(originals + offsets.reshape(originals.shape), originals, norm, eps)


def _size(channels: Tensor, power: int) -> Tensor:
    return channels.abs().pow(power).sum((2, 3), keepdim=True).pow(1 / power).clamp_min(1e-12)


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)


def _window(rows: Tensor, columns: Tensor, side: int, images: Tensor) -> Tensor:
    """Masks (b, 1, H, W) of squares whose upper left corners are at rows, columns (b,)."""
    ys = torch.arange(images.shape[-2], device=images.device)[None, :, None] - rows[:, None, None]
    xs = torch.arange(images.shape[-1], device=images.device)[None, None, :] - columns[:, None, None]
    return ((ys >= 0) & (ys < side) & (xs >= 0) & (xs < side))[:, None]


def _tile(side: int, device: torch.device, power: int) -> Tensor:
    """Two pyramids of opposite sign side by side, (h, h), of norm 1 (equation 2 of the paper and the text below it)."""
    left, right = (_pyramid(side, columns, device) for columns in (side // 2, side - side // 2))
    tile = torch.cat([left, -right], dim=1)
    return tile / tile.norm(power)


def _pyramid(long: int, short: int, device: torch.device) -> Tensor:
    """At a distance of d from the middle, Σ_k 1 / (n + 1 - k)² over k = 0 .. n - d, n = long // 2: (long, short)."""
    down = (torch.arange(long, device=device) - long // 2).abs()[:, None]
    right = (torch.arange(short, device=device) - short // 2).abs()[None, :]
    terms = torch.arange(1, long // 2 + 2, dtype=torch.float32, device=device) ** -2
    outer = terms.flip(0).cumsum(0).flip(0)  # outer[d]: the terms from 1 / (d + 1)² on
    return outer[torch.maximum(down, right)]
