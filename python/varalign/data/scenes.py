"""The scenes of the built-in data set: their contents, their captions and their drawings."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["one", "same", "pair", "row"]
Point = tuple[float, float]
_T = TypeVar("_T")

COLOURS = {
    "red": (222, 32, 38),
    "orange": (255, 138, 0),
    "yellow": (252, 224, 30),
    "green": (24, 160, 58),
    "blue": (28, 78, 224),
    "purple": (132, 36, 176),
    "pink": (255, 128, 196),
    "white": (252, 252, 252),
    "black": (18, 18, 18),
}
SHAPES = {
    "ball": ("ball", "circle"),
    "box": ("box", "square"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
    "house": ("house",),
    "fish": ("fish",),
    "moon": ("moon", "crescent"),
}
SIZES = {"big": ("big", "large", "huge"), "small": ("small", "little", "tiny")}
PLACES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[str, ...]]] = {
    # sky, ground, the words for it
    "meadow": ((178, 206, 226), (122, 152, 92), ("on the grass", "in a meadow")),
    "beach": ((188, 212, 224), (216, 198, 152), ("on the beach", "on the sand")),
    "night": ((30, 34, 72), (16, 19, 38), ("at night", "in the dark")),
    "snow": ((196, 202, 214), (236, 239, 243), ("in the snow", "on white snow")),
    "sea": ((156, 194, 208), (52, 112, 132), ("on the water", "at sea")),
    "desert": ((222, 184, 146), (184, 112, 72), ("in the desert", "on red earth")),
}
WHERE = {
    "middle": (0.5, 0.5, ("in the middle", "in the centre")),
    "left": (0.29, 0.5, ("on the left", "on the left side")),
    "right": (0.71, 0.5, ("on the right", "on the right side")),
    "top": (0.5, 0.29, ("at the top", "high up")),
    "bottom": (0.5, 0.71, ("at the bottom", "low down")),
}
NUMBERS = {2: "two", 3: "three", 4: "four"}
GROUPS: dict[int, list[Point]] = {
    2: [(0.28, 0.5), (0.72, 0.5)],
    3: [(0.5, 0.28), (0.27, 0.7), (0.73, 0.7)],
    4: [(0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)],
}
PLURALS = {"box": "boxes", "cross": "crosses", "fish": "fish"}


@dataclass(frozen=True)
class Thing:
    """One thing of a scene: names out of COLOURS, SHAPES and SIZES."""

    colour: str
    shape: str
    size: str


@dataclass(frozen=True)
class Scene:
    """Contents of an image.

    kind: "one" thing at `where` (a name of WHERE); `count` of the "same" thing; a "pair", the first thing left of
    (`where` "right") or above (`where` "bottom") the second; three in a "row" from left to right.
    """

    kind: Kind
    place: str
    things: tuple[Thing, ...]
    where: str = ""
    count: int = 1


def imagine_scene(rng: random.Random) -> Scene:
    """Draw a scene: one thing 20 %, the same thing several times 20 %, a pair 40 %, three in a row 20 %."""
    place = _pick(rng, list(PLACES))
    lot = rng.random()
    if lot < 0.2:
        return Scene("one", place, _things(rng, 1, list(SIZES)), _pick(rng, list(WHERE)))
    if lot < 0.4:
        return Scene("same", place, _things(rng, 1, ["big"]), count=_pick(rng, list(NUMBERS)))
    if lot < 0.8:
        return Scene("pair", place, _things(rng, 2, list(SIZES)), _pick(rng, ["right", "bottom"]))
    return Scene("row", place, _things(rng, 3, ["big"]))


def caption_scene(scene: Scene, rng: random.Random) -> list[str]:
    """Five differently worded captions of a scene, each naming colour and shape of all that is in it."""
    templates = _TEMPLATES[scene.kind if scene.kind != "pair" else f"pair {scene.where}"]
    captions: list[str] = []
    for template in _shuffled(rng, templates)[:5]:
        words: dict[str, str] = {"place": _pick(rng, PLACES[scene.place][2])}
        if scene.kind == "one":
            words["where"] = _pick(rng, WHERE[scene.where][2])
        if scene.kind == "same":
            words["things"] = _plural(scene.things[0], rng)
            words["number"] = NUMBERS[scene.count]
        for letter, thing in zip("abc", scene.things, strict=False):
            words[letter] = _noun(thing, rng, sized=scene.kind in ("one", "pair"))
            words[f"{letter}_colour"] = thing.colour
        text = template.format(**words)
        captions.append(text[0].upper() + text[1:])
    return captions


def draw_scene(scene: Scene, size: int, rng: random.Random) -> Image.Image:
    """Draw a scene as an RGB image of `size` pixels a side; `rng` moves things and colours a little."""
    from PIL import Image, ImageDraw

    side = 2 * size  # drawn at twice the size and averaged, which smooths the edges
    sky, ground, _ = PLACES[scene.place]
    shade = 0.94 + 0.12 * rng.random()
    canvas = Image.new("RGB", (side, side), _scaled(sky, shade))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, side * (0.45 + 0.2 * rng.random()), side, side), fill=_scaled(ground, shade))
    outline = (235, 235, 235) if sum(sky) < 300 else (30, 30, 30)
    for thing, (x, y), radius in _layout(scene):
        centre = (x + 0.04 * (rng.random() - 0.5), y + 0.04 * (rng.random() - 0.5))
        colour = _scaled(COLOURS[thing.colour], 0.92 + 0.08 * rng.random())
        _draw_thing(draw, thing.shape, centre, radius * (0.95 + 0.1 * rng.random()), side, colour, outline)
    return canvas.reduce(2)


def _layout(scene: Scene) -> list[tuple[Thing, Point, float]]:
    """Each thing with its centre and radius, in shares of the side."""
    first = scene.things[0]
    if scene.kind == "one":
        x, y, _ = WHERE[scene.where]
        return [(first, (x, y), 0.27 if first.size == "big" else 0.14)]
    if scene.kind == "same":
        return [(first, point, 0.19) for point in GROUPS[scene.count]]
    if scene.kind == "row":
        return [(thing, (x, 0.5), 0.155) for thing, x in zip(scene.things, (0.18, 0.5, 0.82), strict=True)]
    points = [(0.26, 0.5), (0.74, 0.5)] if scene.where == "right" else [(0.5, 0.26), (0.5, 0.74)]
    return [(t, p, 0.23 if t.size == "big" else 0.13) for t, p in zip(scene.things, points, strict=True)]


def _draw_thing(
    draw: Any, shape: str, centre: Point, radius: float, side: int, colour: tuple[int, ...], outline: tuple[int, ...]
) -> None:
    width = max(2, side // 90)
    points = [(side * (centre[0] + radius * x), side * (centre[1] + radius * y)) for x, y in _OUTLINES[shape]]
    draw.polygon(points, fill=colour)
    for edge in (points[:_HOLE], points[_HOLE:]) if shape == "ring" else (points,):
        draw.line([*edge, edge[0]], fill=outline, width=width, joint="curve")


_STEPS = 40
_HOLE = _STEPS + 1  # where the inner edge of a ring starts


def _arc(start: float, end: float, radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> list[Point]:
    """Points along a circle, from one angle in degrees to another."""
    angles = [math.radians(start + (end - start) * k / _STEPS) for k in range(_STEPS + 1)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    tips = [(1.0 if k % 2 == 0 else 0.42, math.radians(36 * k - 90)) for k in range(10)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in tips]


_OUTLINES: dict[str, list[Point]] = {
    # polygons in the square from -1 to 1, y downwards
    "ball": _arc(0, 360),
    "box": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0, -1), (0.98, 0.8), (-0.98, 0.8)],
    "star": _star(),
    "heart": [(0, 1), *_arc(140, 360, 0.52, -0.48, -0.38), *_arc(180, 400, 0.52, 0.48, -0.38)],
    "ring": [*_arc(0, 360), *_arc(360, 0, 0.55)],
    "cross": [
        (-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32),
        (0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32),
    ],
    "house": [(0, -1), (1, -0.1), (0.72, -0.1), (0.72, 0.95), (-0.72, 0.95), (-0.72, -0.1), (-1, -0.1)],
    "fish": [*((x, 0.8 * y) for x, y in _arc(35, 325, 0.76, -0.24)), (1, -0.66), (0.84, 0), (1, 0.66)],
    "moon": [*_arc(50, 310, 1.0), *_arc(290, 70, 0.82, 0.36, 0.0)],
}  # fmt: skip

_TEMPLATES: dict[str, list[str]] = {
    "one": [
        "{a} {where}, {place}",
        "there is {a} {where} {place}",
        "{place} there is {a}, {where}",
        "a picture of {a} {place}, placed {where}",
        "{a} {place}, all alone {where}",
        "{where} one can see {a} {place}",
    ],
    "same": [
        "{number} {things} {place}",
        "there are {number} {things} {place}",
        "{place} there are {number} {things}",
        "a picture of {number} {things} {place}",
        "one can see {number} {things} {place}",
        "{number} {things}, all alike, {place}",
    ],
    "pair right": [
        "{a} to the left of {b} {place}",
        "{place}, {b} to the right of {a}",
        "{a} and, on its right, {b}, both {place}",
        "{a} next to {b} {place}, the {a_colour} one on the left",
        "there is {b} {place} with {a} on its left",
        "{a} on the left and {b} on the right, {place}",
    ],
    "pair bottom": [
        "{a} above {b} {place}",
        "{place}, {b} below {a}",
        "{a} and, under it, {b}, both {place}",
        "{a} over {b} {place}, the {a_colour} one on top",
        "there is {b} {place} with {a} above it",
        "{a} at the top and {b} at the bottom, {place}",
    ],
    "row": [
        "{a}, {b} and {c} in a row {place}",
        "{place}, {b} between {a} and {c}",
        "from left to right {a}, {b} and {c} {place}",
        "three things {place}: {a}, {b} and {c}",
        "{a} on the left, {b} in the middle and {c} on the right, {place}",
        "{b} {place} with {a} on its left and {c} on its right",
    ],
}


def _things(rng: random.Random, count: int, sizes: list[str]) -> tuple[Thing, ...]:
    """Things of different colours and different shapes."""
    colours, shapes = _shuffled(rng, list(COLOURS)), _shuffled(rng, list(SHAPES))
    return tuple(Thing(colours[k], shapes[k], _pick(rng, sizes)) for k in range(count))


def _noun(thing: Thing, rng: random.Random, *, sized: bool) -> str:
    size = f"{_pick(rng, SIZES[thing.size])} " if sized else ""
    text = f"{size}{thing.colour} {_pick(rng, SHAPES[thing.shape])}"
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"


def _plural(thing: Thing, rng: random.Random) -> str:
    noun = _pick(rng, SHAPES[thing.shape])
    return f"{thing.colour} {PLURALS.get(noun, noun + 's')}"


def _scaled(colour: tuple[int, int, int], factor: float) -> tuple[int, ...]:
    return tuple(min(255, int(channel * factor)) for channel in colour)


# random() is the one method of random.Random whose values Python promises never to change.
def _pick(rng: random.Random, items: Sequence[_T]) -> _T:
    return items[int(rng.random() * len(items))]


def _shuffled(rng: random.Random, items: list[_T]) -> list[_T]:
    keys = [rng.random() for _ in items]
    return [items[k] for k in sorted(range(len(items)), key=keys.__getitem__)]
