"""The drawings. One small function per thing, in unit coordinates (x right, y down, both 0..1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

SCALE = 4  # supersampling


class Pen:
    """Draws on two L images of side `4 * size_px`: `mask` (where the thing is) and `dark` (where it is darker)."""

    def __init__(self, size_px: int, turn: float = 0.0):
        self.side = size_px * SCALE
        self.mask, self.dark = (Image.new("L", (self.side, self.side), 0) for _ in range(2))
        self._on = {"mask": ImageDraw.Draw(self.mask), "dark": ImageDraw.Draw(self.dark)}
        self.turn(turn)

    def turn(self, degrees: float) -> None:
        """Rotate what is drawn from now on about the centre, clockwise."""
        self._cos, self._sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def at(self, x: float, y: float) -> tuple[float, float]:
        x, y = x - 0.5, y - 0.5
        u, v = x * self._cos - y * self._sin, x * self._sin + y * self._cos
        return (u + 0.5) * (self.side - 1), (v + 0.5) * (self.side - 1)

    def poly(self, points: Sequence[tuple[float, float]], on: str = "mask", fill: int = 255) -> None:
        self._on[on].polygon([self.at(*p) for p in points], fill=fill)

    def disc(self, x: float, y: float, rx: float, ry: float | None = None, on: str = "mask", fill: int = 255) -> None:
        self.arc(x, y, rx, ry if ry else rx, 0, 360, on, fill)

    def arc(self, x, y, rx, ry, start: float, end: float, on: str = "mask", fill: int = 255) -> None:
        """Fill the part of an ellipse between two angles (degrees, clockwise from the right)."""
        steps = [math.radians(start + (end - start) * i / 72) for i in range(73)]
        self.poly([(x + rx * math.cos(t), y + ry * math.sin(t)) for t in steps], on, fill)

    def bar(self, x0, y0, x1, y1, on: str = "mask", fill: int = 255, round_by: float = 0.0) -> None:
        r = min(round_by, (x1 - x0) / 2, (y1 - y0) / 2)
        if not r:
            return self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], on, fill)
        points = []
        for cx, cy, start in ((x1 - r, y0 + r, -90), (x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180)):
            for i in range(10):
                t = math.radians(start + 10 * i)
                points.append((cx + r * math.cos(t), cy + r * math.sin(t)))
        self.poly(points, on, fill)


def circle(p: Pen) -> None:
    p.disc(0.5, 0.5, 0.49)


def square(p: Pen) -> None:
    p.bar(0.05, 0.05, 0.95, 0.95, round_by=0.05)


def triangle(p: Pen) -> None:
    p.poly([(0.5, 0.03), (0.99, 0.93), (0.01, 0.93)])


def diamond(p: Pen) -> None:
    p.poly([(0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)])


def heart(p: Pen) -> None:
    points = []
    for i in range(120):
        t = math.tau * i / 120
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + x / 33, 0.44 - y / 31))
    p.poly(points)


def star(p: Pen) -> None:
    points = []
    for i in range(10):
        r, t = (0.52 if i % 2 == 0 else 0.22), math.tau * i / 10 - math.pi / 2
        points.append((0.5 + r * math.cos(t), 0.54 + r * math.sin(t)))
    p.poly(points)


def moon(p: Pen) -> None:
    p.disc(0.5, 0.5, 0.49)
    p.disc(0.73, 0.4, 0.41, fill=0)


def umbrella(p: Pen) -> None:
    p.bar(0.47, 0.4, 0.53, 0.88)
    p.bar(0.48, 0.01, 0.52, 0.12)
    p.arc(0.615, 0.85, 0.145, 0.14, 0, 180)
    p.arc(0.615, 0.85, 0.085, 0.08, 0, 180, fill=0)
    p.bar(0.47, 0.46, 0.53, 0.86, on="dark", fill=70)
    p.arc(0.5, 0.54, 0.49, 0.47, 180, 360)
    for i in range(4):
        p.arc(0.01 + 0.1225 + 0.245 * i, 0.545, 0.1225, 0.075, 180, 360, fill=0)
    p.bar(0.47, 0.45, 0.53, 0.6)
    for x in (0.255, 0.745):  # ribs
        side = 1 if x > 0.5 else -1
        p.poly([(0.5, 0.08), (0.5 + side * 0.14, 0.25), (x, 0.52), (0.5 + side * 0.09, 0.27)], on="dark", fill=110)


def airplane(p: Pen) -> None:
    p.turn(45)
    p.bar(0.425, -0.13, 0.575, 1.1, round_by=0.075)
    p.poly([(0.43, 0.3), (-0.02, 0.56), (-0.02, 0.67), (0.5, 0.57), (1.02, 0.67), (1.02, 0.56), (0.57, 0.3)])
    p.poly([(0.45, 0.82), (0.25, 0.94), (0.27, 0.99), (0.5, 0.98), (0.73, 0.99), (0.75, 0.94), (0.55, 0.82)])
    p.bar(0.455, -0.05, 0.545, 0.03, on="dark", fill=150, round_by=0.03)
    for x in (0.22, 0.78):  # engines
        p.bar(x - 0.04, 0.37, x + 0.04, 0.55, round_by=0.035)
        p.bar(x - 0.04, 0.37, x + 0.04, 0.55, on="dark", fill=110, round_by=0.035)


def key(p: Pen) -> None:
    p.turn(-45)
    p.bar(0.3, 0.435, 1.12, 0.565, round_by=0.03)
    p.bar(0.76, 0.5, 0.86, 0.76)
    p.bar(0.94, 0.5, 1.04, 0.68)
    p.disc(0.2, 0.5, 0.28)
    p.disc(0.16, 0.5, 0.125, fill=0)


def house(p: Pen) -> None:
    p.bar(0.7, 0.08, 0.83, 0.4)
    p.bar(0.12, 0.42, 0.88, 0.98)
    p.poly([(0.5, 0.02), (1.0, 0.47), (0.0, 0.47)])
    p.poly([(0.5, 0.02), (1.0, 0.47), (0.0, 0.47)], on="dark", fill=80)
    p.bar(0.7, 0.08, 0.83, 0.2, on="dark", fill=80)
    p.bar(0.54, 0.6, 0.76, 0.98, on="dark", fill=185)
    p.bar(0.22, 0.58, 0.42, 0.78, on="dark", fill=185)


def tree(p: Pen) -> None:
    p.poly([(0.43, 0.6), (0.57, 0.6), (0.61, 0.99), (0.39, 0.99)])
    p.poly([(0.43, 0.6), (0.57, 0.6), (0.61, 0.99), (0.39, 0.99)], on="dark", fill=150)
    crown = ((0.5, 0.23, 0.22), (0.27, 0.36, 0.2), (0.73, 0.36, 0.2), (0.3, 0.55, 0.19), (0.7, 0.55, 0.19))
    for x, y, r in (*crown, (0.5, 0.48, 0.25)):
        p.disc(x, y, r)
        p.disc(x, y, r, on="dark", fill=0)


def fish(p: Pen) -> None:
    p.poly([(0.7, 0.5), (1.0, 0.22), (0.93, 0.5), (1.0, 0.78)])
    p.poly([(0.3, 0.3), (0.42, 0.1), (0.68, 0.16), (0.66, 0.36)])
    p.poly([(0.36, 0.72), (0.52, 0.9), (0.62, 0.84), (0.56, 0.68)])
    p.poly([(0.3, 0.3), (0.42, 0.1), (0.68, 0.16), (0.66, 0.36)], on="dark", fill=90)
    p.poly([(0.7, 0.5), (1.0, 0.22), (0.93, 0.5), (1.0, 0.78)], on="dark", fill=90)
    upper = [(0.01 + 0.8 * i / 40, 0.5 - 0.27 * math.sin(math.pi * (i / 40) ** 0.8)) for i in range(41)]
    lower = [(x, 1.0 - y) for x, y in reversed(upper)]
    p.poly(upper + lower)
    p.poly(upper + lower, on="dark", fill=0)
    p.disc(0.2, 0.44, 0.055, on="dark", fill=235)
    p.arc(0.16, 0.5, 0.19, 0.24, -55, 55, on="dark", fill=90)
    p.arc(0.13, 0.5, 0.19, 0.24, -62, 62, on="dark", fill=0)
    p.disc(0.2, 0.44, 0.055, on="dark", fill=235)


def cup(p: Pen) -> None:
    p.disc(0.75, 0.5, 0.24, 0.25)
    p.disc(0.75, 0.5, 0.13, 0.14, fill=0)
    p.poly([(0.04, 0.14), (0.76, 0.14), (0.68, 0.86), (0.63, 0.93), (0.56, 0.95)]
           + [(0.24, 0.95), (0.17, 0.93), (0.12, 0.86)])  # fmt: skip
    p.disc(0.4, 0.15, 0.36, 0.1)
    p.disc(0.4, 0.15, 0.3, 0.065, on="dark", fill=170)


def flower(p: Pen) -> None:
    for i in range(6):
        t = math.tau * i / 6 - math.pi / 2
        x, y = 0.5 + 0.31 * math.cos(t), 0.5 + 0.31 * math.sin(t)
        p.disc(x, y, 0.18)
    p.disc(0.5, 0.5, 0.25)
    for i in range(6):  # seams between petals
        t = math.tau * (i + 0.5) / 6 - math.pi / 2
        c, s = math.cos(t), math.sin(t)
        p.poly([(0.5 + 0.1 * c - 0.02 * s, 0.5 + 0.1 * s + 0.02 * c), (0.5 + 0.3 * c, 0.5 + 0.3 * s),
                (0.5 + 0.1 * c + 0.02 * s, 0.5 + 0.1 * s - 0.02 * c)], on="dark", fill=120)  # fmt: skip
    p.disc(0.5, 0.5, 0.14, on="dark", fill=185)


def car(p: Pen) -> None:
    p.poly([(0.2, 0.48), (0.32, 0.22), (0.66, 0.22), (0.83, 0.48)])
    p.bar(0.01, 0.45, 0.99, 0.72, round_by=0.09)
    p.poly([(0.28, 0.46), (0.36, 0.28), (0.475, 0.28), (0.475, 0.46)], on="dark", fill=190)
    p.poly([(0.53, 0.46), (0.53, 0.28), (0.63, 0.28), (0.745, 0.46)], on="dark", fill=190)
    for x in (0.25, 0.75):
        p.disc(x, 0.7, 0.135)
        p.disc(x, 0.7, 0.135, on="dark", fill=205)
        p.disc(x, 0.7, 0.055, on="dark", fill=40)
    p.bar(0.92, 0.52, 0.98, 0.58, on="dark", fill=120)


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    f.__name__: f
    for f in (circle, square, triangle, diamond, heart, star, moon, umbrella)
    + (airplane, key, house, tree, fish, cup, flower, car)
}
