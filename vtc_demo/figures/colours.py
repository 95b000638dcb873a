"""One colour per method, the same in every figure."""

from __future__ import annotations

from collections.abc import Iterable

# One colour per method, in the order of lists within its family. Red and green are left to wrong and right.
PALETTE = {
    "baseline": ("#94a3b8", "#f59e0b", "#c2884a", "#b0a48a", "#e0b75e"),
    "pooling": ("#f08fb4", "#d4708f"),
    "pruning by vision attention": ("#38bdf8", "#6f8dfb", "#22a7d0", "#7cb7ff"),
    "pruning by text attention": ("#a78bfa", "#d177f0", "#8f6df2", "#e39bf5"),
    "diversity/coverage": ("#2fc6b7", "#5fb8a5"),
    "multi-stage": ("#e08bd0", "#c46fb4"),
    "merging": ("#b7c94f", "#93a83e", "#d3e07f"),
    "learned queries": ("#ff9d6c", "#d9784a", "#ffc2a1"),
    "linear merger": ("#d9c26a",),
    "space-to-depth": ("#a89a4a",),
    "learned sampler": ("#9fb8d9",),
    "attention rework": ("#8c8fd6", "#6d73c4", "#b4b6ee"),
    "weights instead of tokens": ("#c7a7e8",),
}
OTHER = ("#b59df0", "#5fb3d6", "#d9a05b", "#8fa8c8", "#c9b458")


def colours(cards: Iterable) -> dict[str, str]:
    """Method name -> colour, for cards (`.name`, `.family`) in the order of lists. A colour stays with its method."""
    seen: dict[str, int] = {}
    out = {}
    for card in cards:
        place = seen[card.family] = seen.get(card.family, -1) + 1
        shades = PALETTE.get(card.family, OTHER)
        out[card.name] = shades[place % len(shades)]
    return out
