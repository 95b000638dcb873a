"""TokenPacker: each point of a coarse grid attends to the patches of its own region. arXiv 2407.02392."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from vtc_demo.core.card import Card
from vtc_demo.core.parameters import param
from vtc_demo.cost import linear_flops

from .base import RECIPE, Connected, Connector, Trained, attend, attend_flops, blocks, split_heads

SIDES = (2, 3, 4)  # of a region


def region_side(grid: tuple[int, int], budget: int) -> int:
    """The smallest side of a region with no more than `budget` regions. ValueError if even the largest has more."""
    for side in SIDES:
        if grid[0] % side == grid[1] % side == 0 and grid[0] // side * (grid[1] // side) <= budget:
            return side
    least = grid[0] * grid[1] // SIDES[-1] ** 2
    raise ValueError(f"tokenpacker: {budget} tokens are too few; it makes {least} or more of this picture")


class PackerConnector(Connector):
    """Queries from the bilinear coarse map, keys and values from MLPs on the patches; no residual, as released."""

    def __init__(self, dims, heads: int = 4):
        super().__init__()
        c, d, self.heads = dims.vision, dims.hidden, heads
        self.query, self.query_norm = nn.Linear(c, c, bias=False), nn.LayerNorm(c, eps=1e-6)
        mlp = lambda a, b: nn.Sequential(nn.Linear(a, b), nn.GELU(), nn.Linear(b, b))  # noqa: E731
        self.key, self.key_norm = mlp(c, c), nn.LayerNorm(c, eps=1e-6)
        self.value, self.value_norm = mlp(c, c), nn.LayerNorm(c, eps=1e-6)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(c, c) for _ in range(4))
        self.mlp = mlp(c, d)

    def forward(self, features, grid, budget):
        side, patches = region_side(grid, budget), features[:, 1:]  # [B, n, C]
        members = blocks(grid, side, features.device)  # [m, s * s]
        read, weights = self.inject(self.points(patches, grid, side), patches, members)
        share = weights.new_zeros(*read.shape[:2], features.shape[1])
        share.scatter_(2, (1 + members).expand(len(read), -1, -1), weights)  # [B, m, 1 + n]
        anchor = (1 + members).expand(len(read), -1, -1).gather(2, weights.argmax(-1, keepdim=True))[..., 0]
        return Connected(self.mlp(self.o_proj(read)), anchor, share, soft=True)

    def points(self, patches: Tensor, grid: tuple[int, int], side: int) -> Tensor:
        """The coarse map as queries, [B, m, C]. Bilinear: at side 3 the centre patch, at 4 the middle four."""
        size = (grid[0] // side, grid[1] // side)
        coarse = F.interpolate(patches.transpose(1, 2).unflatten(2, grid).float(), size=size, mode="bilinear")
        return self.query_norm(self.query(coarse.flatten(2).transpose(1, 2).to(patches.dtype)))

    def inject(self, points: Tensor, patches: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """Each point over its region: ([B, m, C], head mean of the weights [B, m, s * s])."""
        b, m, _ = points.shape
        k, v = self.key_norm(self.key(patches)), self.value_norm(self.value(patches))
        regions = lambda x: split_heads(x[:, members].flatten(0, 1), self.heads)  # noqa: E731  [B m, h, s s, d]
        q = split_heads(self.q_proj(points).reshape(b * m, 1, -1), self.heads)  # [B m, h, 1, d]
        out, weights = attend(q, regions(self.k_proj(k)), regions(self.v_proj(v)))
        return out.view(b, m, -1), weights.view(b, m, -1)

    def flops(self, n, m):
        c, d = self.q_proj.in_features, self.mlp[0].out_features
        keys = 6 * linear_flops(n, c, c)  # two MLPs and two projections
        points = 3 * linear_flops(m, c, c) + attend_flops(1, n, c)  # every patch is in one region
        return keys + points + linear_flops(m, c, d) + linear_flops(m, d, d)

    def draw(self, chance, n):
        return {"budget": n // chance.choice(SIDES) ** 2}


@dataclass(frozen=True)
class TokenPacker(Trained):
    """A coarse map asks, the fine patches of each region answer."""

    connector = PackerConnector

    retention: float = param(
        0.25,
        "share of the visual tokens that is kept: a quarter, a ninth or a sixteenth",
        low=0.01,
        high=1.0,
        step=0.01,
    )


TokenPacker.card = Card(
    name="tokenpacker",
    title="TokenPacker",
    family="learned queries",
    summary="A shrunken picture is refined: each of its points reads the fine patches of its own region.",
    sites=("projector",),
    faithfulness="in the style of",
    paper="arXiv 2407.02392",
    code="CircleRadon/TokenPacker",
    training_free=False,
    deviations=(
        RECIPE,
        "Keys and values come from the one layer that all connectors here read, not from four layers of the tower.",
        "4 heads of width 32 in place of 8 of width 128.",
        "One checkpoint for regions of 2 x 2, 3 x 3 and 4 x 4, drawn at random per step; the budget picks the "
        "largest count within it: 144, 64 or 36 of 576.",
        "As in the released code the point itself is not added to what it reads; at 3 x 3 its query is the centre "
        "patch alone.",
    ),
    reported="75 to 89 % fewer tokens at comparable or better accuracy (README of the released code).",
    order=206,
)
