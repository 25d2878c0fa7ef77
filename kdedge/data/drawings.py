"""Draws a colored, textured shape on a cluttered background, as seen by a good or a dim camera.

It uses NumPy only, and only uniform random draws, which are the least likely to change between
NumPy's versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE_PX = 64
"""Width and height of an image."""

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.12),
    "orange": (0.96, 0.52, 0.08),
    "yellow": (0.94, 0.88, 0.14),
    "green": (0.14, 0.66, 0.22),
    "blue": (0.14, 0.30, 0.88),
    "purple": (0.56, 0.16, 0.74),
}
"""Color words and their RGB, 0-1."""

TEXTURES = ("plain", "striped", "dotted", "checkered")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")

Floats = NDArray[np.floating[Any]]
"""Float arrays: [H, W] maps, or [H, W, 3] images with values 0-1."""


@dataclass(frozen=True)
class Camera:
    """How a camera changes a scene.

    Attributes:
        gain: lowest and highest brightness factor; drawn for each image.
        cast: RGB factors of the light's color.
        blur_passes: how often a 3x3 binomial filter runs.
        noise: half width of the triangular noise, in units of full brightness.
    """

    gain: tuple[float, float]
    cast: tuple[float, float, float]
    blur_passes: int
    noise: float


CLEAN = Camera(gain=(0.85, 1.1), cast=(1.0, 1.0, 1.0), blur_passes=0, noise=0.02)
"""A good camera in white light: what the demo's CLIPs were trained on."""

DIM = Camera(gain=(0.4, 0.6), cast=(1.0, 0.85, 0.6), blur_passes=1, noise=0.05)
"""A dim camera in yellow light, slightly out of focus: what the demo's users have."""


def draw_image(
    rng: np.random.Generator, *, color: str, texture: str, shape: str, camera: Camera
) -> NDArray[np.uint8]:
    """Draws an image whose object has the three attributes; all else is random.

    Args:
        rng: draws everything but the attributes.
        color: a key of `COLORS`.
        texture: one of `TEXTURES`.
        shape: one of `SHAPES`.
        camera: `CLEAN` or `DIM`.

    Returns:
        [64, 64, 3], RGB.
    """
    scene = _background(rng)
    u, v, pixel = _object_coordinates(rng)
    coverage = _edge(_inside(shape, u, v), pixel)
    paint = _paint(rng, color, texture, u, v, pixel)
    scene += coverage[..., None] * (paint - scene)
    return _photograph(rng, scene, camera)


@cache
def _grid() -> tuple[Floats, Floats]:
    """Pixel centers, -1 to 1; y grows upward."""
    steps = (np.arange(SIZE_PX, dtype=np.float32) + 0.5) * (2 / SIZE_PX) - 1
    x, y = np.meshgrid(steps, -steps)
    return x, y


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _background(rng: np.random.Generator) -> Floats:
    """[H, W, 3]: a gradient between two muted colors, with blobs and bars in other colors."""
    x, y = _grid()
    angle = _uniform(rng, 0, 2 * np.pi)
    ramp = 0.5 + 0.35 * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
    first = _muted(rng)
    second = _muted(rng)
    scene: Floats = first + ramp[..., None] * (second - first)
    for _ in range(1 + int(3 * rng.random())):
        dx = x - np.float32(_uniform(rng, -1, 1))
        dy = y - np.float32(_uniform(rng, -1, 1))
        half_width = _uniform(rng, 0.06, 0.35)
        half_height = _uniform(rng, 0.06, 0.35)
        reach = np.maximum(abs(dx) / np.float32(half_width), abs(dy) / np.float32(half_height))
        scene += _edge(1 - reach, 0.2)[..., None] * (_muted(rng) - scene)
    return scene


def _muted(rng: np.random.Generator) -> Floats:
    """[3]: a color with little saturation."""
    gray = _uniform(rng, 0.15, 0.85)
    tint = rng.random(3, dtype=np.float32)
    color: Floats = np.float32(0.75 * gray) + np.float32(0.25) * tint
    return color


def _object_coordinates(rng: np.random.Generator) -> tuple[Floats, Floats, float]:
    """Coordinates in which the object spans about -1 to 1, and a pixel's size in their units."""
    x, y = _grid()
    radius = _uniform(rng, 0.55, 0.82)
    room = 0.95 - radius
    angle = _uniform(rng, -0.3, 0.3)  # radians
    dx = (x - np.float32(_uniform(rng, -room, room))) / np.float32(radius)
    dy = (y - np.float32(_uniform(rng, -room, room))) / np.float32(radius)
    cosine = np.float32(np.cos(angle))
    sine = np.float32(np.sin(angle))
    return cosine * dx + sine * dy, cosine * dy - sine * dx, 2 / SIZE_PX / radius


def _edge(inside: Floats, pixel: float) -> Floats:
    """Coverage 0-1 from a distance to the edge: soft over one pixel."""
    coverage: Floats = np.clip(inside * np.float32(1 / pixel) + np.float32(0.5), 0, 1)
    return coverage


def _inside(shape: str, u: Floats, v: Floats) -> Floats:
    """Distance to the shape's edge, roughly: positive inside."""
    distance: Floats
    if shape == "circle":
        distance = 0.92 - np.hypot(u, v)
    elif shape == "square":
        distance = 0.8 - np.maximum(abs(u), abs(v))
    elif shape == "triangle":
        distance = np.minimum(v + 0.7, 0.5 - 0.5 * v - 0.866 * abs(u))
    elif shape == "cross":
        wide = np.minimum(0.92 - abs(u), 0.3 - abs(v))
        tall = np.minimum(0.3 - abs(u), 0.92 - abs(v))
        distance = np.maximum(wide, tall)
    elif shape == "heart":  # x^2 + (y - sqrt|x|)^2 < r^2
        lifted = 1.15 * (v + 0.2) - 0.75 * np.sqrt(abs(u))
        distance = 0.5 * (0.8 - u * u - lifted * lifted)
    else:
        distance = _inside_star(u, v)
    return distance


def _inside_star(u: Floats, v: Floats) -> Floats:
    """Distance to a star's edge: folded into half of one point, the edge is a straight line."""
    fifth = np.float32(2 * np.pi / 5)
    angle = np.arctan2(u, v)
    folded = abs(angle - fifth * np.round(angle / fifth))
    radius = np.hypot(u, v)
    outer = 1.0
    inner = 0.42
    tip_to_notch = np.array([inner * np.cos(fifth / 2) - outer, inner * np.sin(fifth / 2)])
    normal = np.array([tip_to_notch[1], -tip_to_notch[0]]) / np.hypot(*tip_to_notch)
    normal = normal.astype(np.float32)
    across = normal[0] * (radius * np.cos(folded) - outer) + normal[1] * radius * np.sin(folded)
    distance: Floats = -across
    return distance


def _paint(
    rng: np.random.Generator, color: str, texture: str, u: Floats, v: Floats, pixel: float
) -> Floats:
    """[H, W, 3]: the object's surface."""
    jitter = rng.random(3, dtype=np.float32) - np.float32(0.5)
    main = np.clip(np.array(COLORS[color], np.float32) + np.float32(0.14) * jitter, 0, 1)
    shade = _uniform(rng, 0.02, 0.2) if rng.random() < 0.5 else _uniform(rng, 0.85, 1.0)
    angle = _uniform(rng, 0, np.pi)
    period = _uniform(rng, 0.42, 0.58)
    shift = rng.random(2, dtype=np.float32)
    if texture == "plain":
        return np.broadcast_to(main, (*u.shape, 3))  # [H, W, 3]
    cosine = np.float32(np.cos(angle))
    sine = np.float32(np.sin(angle))
    across = (cosine * u + sine * v) / np.float32(period) + shift[0]  # in periods
    along = (cosine * v - sine * u) / np.float32(period) + shift[1]
    pattern = _edge(_second_color(texture, across, along), pixel / period)
    painted: Floats = main + pattern[..., None] * (np.float32(shade) - main)
    return painted


def _second_color(texture: str, across: Floats, along: Floats) -> Floats:
    """Distance, in periods, to the edge of the texture's second color: positive inside it."""
    across = abs(across - np.floor(across) - 0.5)  # 0 in the middle of a period, 0.5 at its ends
    along = abs(along - np.floor(along) - 0.5)
    distance: Floats
    if texture == "striped":
        distance = across - 0.27
    elif texture == "dotted":
        distance = 0.32 - np.hypot(across, along)
    else:
        distance = 4 * (across - 0.25) * (along - 0.25)
    return distance


def _photograph(rng: np.random.Generator, scene: Floats, camera: Camera) -> NDArray[np.uint8]:
    """The scene as seen by the camera."""
    light = np.array(camera.cast, np.float32) * np.float32(_uniform(rng, *camera.gain))
    image = scene * light
    for _ in range(camera.blur_passes):
        image = _blur(image)
    noise = rng.random((2, *image.shape), dtype=np.float32)
    image += np.float32(camera.noise) * (noise[0] - noise[1])
    pixels: NDArray[np.uint8] = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    return pixels


def _blur(image: Floats) -> Floats:
    """A 3x3 binomial filter; border pixels are repeated outward."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16
