"""A scale of colours whose lightness is in proportion to the number shown, on paper and on a dark screen.

Equal steps are equal steps of lightness in Oklab, so that the order is seen by everyone, in print too; the hue goes from yellow
over green to blue. What is small is close to the background: pale in the light theme, dark in the dark one.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

Theme: TypeAlias = Literal["light", "dark"]

LIGHTNESS: dict[Theme, tuple[float, float]] = {"light": (0.975, 0.30), "dark": (0.26, 0.955)}
PALE_HUE, DEEP_HUE, CHROMA = 105.0, 275.0, 0.095


def scale(theme: Theme, steps: int = 33) -> list[str]:
    """Colours from the smallest to the largest number, as ``#rrggbb``."""
    first, last = LIGHTNESS[theme]
    lightness = [first + (last - first) * i / (steps - 1) for i in range(steps)]
    return ["#" + "".join(f"{round(255 * c):02x}" for c in _in_gamut(x)) for x in lightness]


def _in_gamut(lightness: float) -> tuple[float, float, float]:
    """The colour of this lightness; as much of its chroma as a screen can show."""
    palest, deepest = max(map(max, LIGHTNESS.values())), min(map(min, LIGHTNESS.values()))
    depth = (palest - lightness) / (palest - deepest)
    hue = math.radians(PALE_HUE + (DEEP_HUE - PALE_HUE) * depth)
    chroma = CHROMA * math.sin(math.pi * (0.08 + 0.72 * depth))
    while True:
        rgb = oklab_to_srgb(lightness, chroma * math.cos(hue), chroma * math.sin(hue))
        if all(-1e-6 <= c <= 1 + 1e-6 for c in rgb):
            red, green, blue = (min(max(c, 0.0), 1.0) for c in rgb)
            return red, green, blue
        chroma *= 0.98


def oklab_to_srgb(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    """Björn Ottosson's Oklab, as sRGB numbers that are in 0 to 1 where the screen has the colour."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _encoded(4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short),
        _encoded(-1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short),
        _encoded(-0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short),
    )


def _encoded(linear: float) -> float:
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
