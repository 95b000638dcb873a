"""Attention rows on demand: exactly the rows that a method asks for, from a layer's own q and k.

The layers themselves run a fused kernel that returns no weights. A probe holds one layer together with the hidden
states that entered it, and repeats the first half of its attention for some rows. It books the FLOPs it spends.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import rotate_half

from vtc_demo import cost

CHUNK = 1 << 25  # scores computed at a time


def softmax_rows(
    q: Tensor, k: Tensor, scale: float, rows: Tensor | None, mean: bool = False, bias: Tensor | None = None
) -> Tensor:
    """q [heads, r, d], k [kv_heads, n, d] -> softmax(q k^T * scale), [heads, r, n] float32; mean over heads: [r, n].

    rows [r]: places of the queries among the keys for a causal mask; None: every key is seen. bias [n]: added to the
    scores of each key. Each group of
    heads / kv_heads queries shares one key head (GQA). With `mean`, no more than CHUNK scores are held at a time.
    """
    heads, (kv_heads, n, d) = q.shape[0], k.shape
    k = k.transpose(1, 2)  # [kv_heads, d, n]
    step = max(1, CHUNK // (heads * n))
    parts = []
    for start in range(0, q.shape[1], step):
        grouped = q[:, start : start + step].reshape(kv_heads, -1, d)  # [kv_heads, heads / kv_heads * step, d]
        scores = (grouped @ k).view(heads, -1, n) * scale  # [heads, step, n]
        scores = scores if bias is None else scores + bias
        if rows is not None:
            future = torch.arange(n, device=k.device) > rows[start : start + step, None]  # [step, n]
            scores = scores.masked_fill(future, float("-inf"))
        weights = scores.softmax(-1, dtype=torch.float32)
        parts.append(weights.mean(0) if mean else weights)
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def mean_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """q [heads, r, d], k [kv_heads, n, d] -> mean over heads of q k^T * scale, [r, n] float32, without a mask.

    One product over the heads side by side, so that no scores of single heads are held.
    """
    heads = q.shape[0]
    k = k.repeat_interleave(heads // k.shape[0], 0)
    q, k = (x.transpose(0, 1).flatten(1).float() for x in (q, k))  # [r, heads * d], [n, heads * d]
    return (q @ k.T) * (scale / heads)


class Probe:
    """What the probes of tower and decoder have in common: rows in chunks where only sums over them are wanted."""

    entered: Tensor
    flops: int

    @property
    def tokens(self) -> int:
        raise NotImplementedError

    @property
    def heads(self) -> int:
        raise NotImplementedError

    def attention(self, rows: Tensor, mean: bool = False) -> Tensor:
        raise NotImplementedError

    def received(self) -> Tensor:
        """The attention that each token receives, averaged over all heads and rows, [n] float32.

        The map of all rows is never held: no more than CHUNK scores at a time.
        """
        n = self.tokens
        rows = torch.arange(n, device=self.entered.device)
        parts = [self.attention(some, mean=True).sum(0) for some in rows.split(max(1, CHUNK // (self.heads * n)))]
        return torch.stack(parts).sum(0) / n


class EncoderProbe(Probe):
    """One encoder layer and the tokens that entered it, [N, C]; for layers named as in CLIP and SigLIP.

    sources [n, g]: the tokens behind each of the n that a method sees; None: it sees all N as they are. The attention
    of a group is summed over its keys and averaged over its rows, so that rows still add up to 1.
    segments: lengths of the spans that attend to each other; None: one. rope: (cos, sin), [N, d] each, if q and k turn.
    bias [N]: added to the scores of each key.
    """

    def __init__(self, layer: nn.Module, entered: Tensor, sources=None, segments=None, rope=None, bias=None):
        self.layer, self.entered, self.sources, self.rope, self.flops = layer, entered, sources, rope, 0
        self.bias = bias
        self.segments = segments or (entered.shape[0],)
        if sources is None and len(self.segments) > 1:
            self.sources = torch.arange(entered.shape[0], device=entered.device)[:, None]
        self._shared: dict[str, Tensor] = {}

    @property
    def tokens(self) -> int:
        return self.entered.shape[0] if self.sources is None else self.sources.shape[0]

    def only(self, part: Tensor) -> EncoderProbe:
        """The same for some of the tokens, [p] int64: these are its rows and keys."""
        out = copy.copy(self)
        out.sources, out.flops = self.sources[part], 0
        return out

    # -- names of the layer's parts, which differ between towers --------------------------------------------------
    @property
    def block(self) -> nn.Module:
        return self.layer.self_attn

    @property
    def scale(self) -> float:
        return self.block.scale

    @property
    def heads(self) -> int:
        return self.block.num_heads

    def norm(self, x: Tensor) -> Tensor:
        return self.layer.layer_norm1(x)

    def project(self, x: Tensor, which: str) -> Tensor:
        """[n, C] -> [n, heads * d]; which: "q", "k" or "v"."""
        return getattr(self.block, f"{which}_proj")(x)

    # -- attention ------------------------------------------------------------------------------------------------
    def _split(self, x: Tensor) -> Tensor:
        """[n, C] -> [heads, n, d]"""
        return x.view(x.shape[0], self.block.num_heads, -1).transpose(0, 1)

    def _rotated(self, x: Tensor, rows=slice(None)) -> Tensor:
        """[heads, r, d] with RoPE, if the tower has it."""
        if self.rope is None:
            return x
        cos, sin = (part[rows].float() for part in self.rope)
        return (x.float() * cos + rotate_half(x.float()) * sin).to(x.dtype)

    def _once(self, name: str, make) -> Tensor:
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def _input(self) -> Tensor:
        return self._once("normed", lambda: self.norm(self.entered))

    def _projected(self) -> Tensor:
        """k_proj output of every token of the layer, [heads, N, d]; computed and booked once."""

        def make():
            n, width = self.entered.shape
            self.flops += cost.linear_flops(n, width, width)
            return self._split(self.project(self._input(), "k"))

        return self._once("keys", make)

    def keys(self) -> Tensor:
        """k_proj output, bias included, unscaled, without RoPE, [heads, n, d]; the mean over a group."""
        return self._of_groups(self._projected())

    def values(self) -> Tensor:
        """v_proj output, bias included, [heads, n, d]; the mean over a group."""

        def make():
            n, width = self.entered.shape
            self.flops += cost.linear_flops(n, width, width)
            return self._split(self.project(self._input(), "v"))

        return self._of_groups(self._once("values", make))

    def _of_groups(self, x: Tensor) -> Tensor:
        return x if self.sources is None else x[:, self.sources].mean(2)

    def attention(self, rows: Tensor, mean: bool = False) -> Tensor:
        """rows [r] int64 -> [heads, r, n] float32, or its mean over the heads [r, n]."""
        keys = self._rotated(self._projected())
        if self.sources is None:
            return softmax_rows(self._queries(rows), keys, self.scale, None, mean, self.bias)
        lead = () if mean else (keys.shape[0],)
        out = torch.zeros((*lead, len(rows), self.tokens), device=rows.device)
        start = 0
        for length in self.segments:
            span = keys[:, start : start + length]
            bias = None if self.bias is None else self.bias[start : start + length]
            within = lambda x: ((x >= start) & (x < start + length)).nonzero().flatten()  # noqa: B023, E731
            columns, mine = within(self.sources[:, 0]), within(self.sources[rows, 0])
            step = max(1, CHUNK // (keys.shape[0] * length * self.sources.shape[1]))
            for some in mine.split(step) if len(mine) else ():
                grouped = self._grouped(rows[some], span, self.sources[columns] - start, mean, bias)
                out[..., some[:, None], columns] = grouped
            start += length
        return out

    def _grouped(self, rows: Tensor, keys: Tensor, columns: Tensor, mean: bool, bias: Tensor | None) -> Tensor:
        """Attention of rows [r] over the keys of one segment, as groups: [heads, r, n] or [r, n]."""
        members = self.sources[rows]  # [r, g]
        weights = softmax_rows(self._queries(members.flatten(), keys.shape[1]), keys, self.scale, None, mean, bias)
        weights = weights[..., columns].sum(-1)  # [..., r * g, n]
        return weights.unflatten(-2, members.shape).mean(-2)

    def logits(self, rows: Tensor) -> Tensor:
        """rows [r] int64 -> [r, n] float32, see `mean_logits`; of a group, the mean over its members."""
        keys = self._rotated(self._projected())
        if self.sources is None:
            return mean_logits(self._queries(rows), keys, self.scale)
        members = self.sources[rows]
        queries = self._queries(members.flatten(), 0).unflatten(1, members.shape).mean(2)
        self.flops += cost.linear_flops(len(rows), self.entered.shape[1], self.tokens)
        return mean_logits(queries, keys[:, self.sources].mean(2), self.scale)

    def _queries(self, rows: Tensor, keys: int | None = None) -> Tensor:
        """[heads, r, d] with RoPE; books them and their scores over `keys` keys (default: all)."""
        width, heads = self.entered.shape[1], self.block.num_heads
        self.flops += cost.rows_attention_flops(
            len(rows),
            self.entered.shape[0] if keys is None else keys,
            heads,
            width // heads,
            width,
            heads,
            project_keys=False,
        )
        return self._rotated(self._split(self.project(self._input()[rows], "q")), rows)


class DecoderProbe(Probe):
    """One decoder layer and the sequence that entered it, [S, C].

    rope: (cos, sin) each [S, d] at the sequence's positions. cached: the layer's keys after RoPE [kv_heads, S, d] if it
    has run, which spares projecting them again. bias: added to the scores of each key, [S].
    """

    def __init__(
        self,
        layer: nn.Module,
        entered: Tensor,
        rope: tuple[Tensor, Tensor],
        cached: Tensor | None = None,
        bias: Tensor | None = None,
    ):
        self.layer, self.entered, self.rope, self.cached, self.flops = layer, entered, rope, cached, 0
        self.bias = bias

    @property
    def tokens(self) -> int:
        return self.entered.shape[0]

    @property
    def heads(self) -> int:
        return self.layer.self_attn.config.num_attention_heads

    def _rotated(self, projected: Tensor, rows: Tensor | slice, which: str) -> Tensor:
        """[r, heads * d] -> [heads, r, d], normed if the decoder norms its heads (Qwen3), with RoPE."""
        cos, sin = (part[rows] for part in self.rope)
        norm = getattr(self.layer.self_attn, f"{which}_norm", None)
        x = projected.view(projected.shape[0], -1, self.layer.self_attn.head_dim)
        x = (x if norm is None else norm(x)).transpose(0, 1)
        return x * cos + rotate_half(x) * sin

    def keys(self) -> Tensor:
        if self.cached is None:
            attention, everything = self.layer.self_attn, slice(None)
            projected = attention.k_proj(self.layer.input_layernorm(self.entered))
            self.cached = self._rotated(projected, everything, "k")
            self.flops += cost.linear_flops(self.tokens, self.entered.shape[1], projected.shape[1])
        return self.cached

    def attention(self, rows: Tensor, mean: bool = False, at: Tensor | None = None) -> Tensor:
        """rows [r] int64 -> [heads, r, S] float32, causal, or its mean over the heads [r, S].

        at [r]: where they stand among the keys, if not at their own number.
        """
        places = rows if at is None else at
        return softmax_rows(self._queries(rows), self.keys(), self.layer.self_attn.scaling, places, mean, self.bias)

    def logits(self, rows: Tensor) -> Tensor:
        """rows [r] int64 -> [r, S] float32 in both directions, see `mean_logits`."""
        return mean_logits(self._queries(rows), self.keys(), self.layer.self_attn.scaling)

    def _queries(self, rows: Tensor) -> Tensor:
        """[heads, r, d] with RoPE; books them and their scores."""
        attention, keys = self.layer.self_attn, self.keys()
        q = self._rotated(attention.q_proj(self.layer.input_layernorm(self.entered[rows])), rows, "q")
        heads, kv_heads = q.shape[0], keys.shape[0]
        self.flops += cost.rows_attention_flops(
            len(rows), keys.shape[1], heads, attention.head_dim, self.entered.shape[1], kv_heads, project_keys=False
        )
        return q


class EncoderHalves:
    """A CLIP encoder layer in two steps, [1, n, C] each, for a method that acts between them."""

    @staticmethod
    def attend(layer: nn.Module, h: Tensor) -> Tensor:
        return h + layer.self_attn(layer.layer_norm1(h), attention_mask=None)[0]

    @staticmethod
    def feed(layer: nn.Module, h: Tensor) -> Tensor:
        return h + layer.mlp(layer.layer_norm2(h))


class DecoderHalves:
    """A Llama-like decoder layer in two steps, [1, S, C] each."""

    @staticmethod
    def attend(layer: nn.Module, h: Tensor, **state) -> Tensor:
        return h + layer.self_attn(hidden_states=layer.input_layernorm(h), **state)[0]

    @staticmethod
    def feed(layer: nn.Module, h: Tensor) -> Tensor:
        return h + layer.mlp(layer.post_attention_layernorm(h))
