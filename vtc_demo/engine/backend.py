"""What the loop runs on: the parts of one model as functions of tokens. `shape_only` has the same without a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vtc_demo.connectors import store
from vtc_demo.connectors.base import Connector, LayerMemory, Trained
from vtc_demo.core.method import Method
from vtc_demo.models import VLM
from vtc_demo.models.attention import DecoderHalves, DecoderProbe, EncoderProbe
from vtc_demo.models.layout import Inputs, Layout, Prompt

from . import compiled
from .state import Rope, Sequence, Tower


class Backend:
    """The tower, projector and decoder of a VLM, or of the connector that a method brings.

    Nothing here keeps state between calls. Shapes as in `state`: tower tokens [N, C], the prompt [1, S, D].
    """

    def __init__(self, vlm: VLM, method: Method):
        self.vlm, self.adapter, self.model = vlm, vlm.adapter, vlm.model
        self.connector: Connector | None = None
        if isinstance(method, Trained):  # with a decoder of its own, on the same tower
            self.connector, self.model = store.fit(vlm, method)
        self.tower_layers = self.adapter.encoder_layers(self.model)
        self.decoder = self.adapter.decoder(self.model)
        self.layers = range(len(self.decoder.layers))
        self.deepstack_layers = self.adapter.deepstack_layers(vlm.config)
        self.kept = self.adapter.kept

    # -- tower --------------------------------------------------------------------------------------------------------
    def embed(self, inputs: Inputs, resized: bool) -> Tower:
        """The patches of the pictures, before layer 0."""
        hidden, details = self.adapter.embed(self.model, inputs, resized)
        layout = inputs.layout
        anchor = torch.arange(layout.extra + layout.units, device=hidden.device)
        return Tower(hidden, layout.segments, layout.sources, layout.extra, anchor, details)

    def tower_layer(self, i: int, tower: Tower) -> Tensor:
        if not tower.segments:  # all tokens are withdrawn
            return tower.hidden
        return self.adapter.run_layer(self.tower_layers[i], i, tower.hidden, tower.segments, tower.details, tower.bias)

    def tower_attend(self, i: int, tower: Tower) -> Tensor:
        if not tower.segments:
            return tower.hidden
        return self.adapter.attend(self.tower_layers[i], i, tower.hidden, tower.segments, tower.details, tower.bias)

    def tower_feed(self, i: int, tower: Tower) -> Tensor:
        return self.adapter.feed(self.tower_layers[i], tower.hidden)

    def tower_probe(self, i: int, tower: Tower) -> EncoderProbe | None:
        """Attention rows of layer i over tokens that enter it; None behind the last layer."""
        if not 0 <= i < len(self.tower_layers):
            return None
        how = self.adapter.attends(i, tower.segments, tower.details)
        return self.adapter.probe(self.tower_layers[i], tower.hidden, tower.members, bias=tower.bias, **how)

    def finish(self, hidden: Tensor) -> Tensor:
        return self.adapter.finish(self.model, hidden)

    # -- projector ----------------------------------------------------------------------------------------------------
    def project(self, features: Tensor, layout: Layout) -> Tensor:
        """features [n, g * C] -> visual tokens [1, m, D]."""
        if not len(features):
            return features.new_zeros(1, 0, self.vlm.spec.hidden)
        return self.adapter.pack(self.model, self.adapter.project(self.model, features[None]), layout)

    def project_deepstack(self, i: int, features: Tensor) -> Tensor:
        if not len(features):
            return features.new_zeros(1, 0, self.vlm.spec.hidden)
        return self.adapter.project_deepstack(self.model, i, features[None])

    # -- decoder ------------------------------------------------------------------------------------------------------
    def words(self, prompt: Prompt) -> Tensor:
        """Embeddings of all that is no visual token, [1, o, D]."""
        words = self.decoder.embed_tokens(prompt.ids[prompt.others].clamp(min=0)[None])
        if len(prompt.newlines):
            words[:, prompt.newlines] = self.adapter.newline(self.model).to(words)
        return words

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """[q] -> [1, q, D]"""
        return self.decoder.embed_tokens(tokens[None])

    def positions(self, prompt: Prompt, layout: Layout) -> tuple[Tensor | None, int]:
        return self.adapter.positions(self.model, prompt, layout)

    def rope(self, hidden: Tensor, positions: Tensor) -> Rope | None:
        """(cos, sin), [1, S, d] each."""
        return self.decoder.rotary_emb(hidden, positions)

    def cache(self) -> DynamicCache:
        return DynamicCache()

    def layer_memory(self, tokens: Tensor, place: int) -> LayerMemory:
        """What a connector's layers hold of tokens outside the sequence. place: of the first word after the picture."""
        assert self.connector is not None
        return self.connector.layer_memory(self.decoder, tokens, place)

    def layer(self, k: int, hidden: Tensor, memory: LayerMemory, sees: Tensor | None, **how: Any) -> Tensor:
        """Decoder layer k: by way of the connector if there is one, or compiled if the model is."""
        layer = self.decoder.layers[k]
        if self.connector is not None:
            return self.connector.run(k, layer, hidden, memory, sees, **how)
        if self.vlm.compiled is not None:
            return compiled.run(self.vlm.compiled, k, layer, hidden, **how)
        return layer(hidden, **how)

    def attend(self, k: int, hidden: Tensor, **how: Any) -> Tensor:
        return DecoderHalves.attend(self.decoder.layers[k], hidden, **how)

    def feed(self, k: int, hidden: Tensor) -> Tensor:
        return DecoderHalves.feed(self.decoder.layers[k], hidden)

    def attention_output(self, k: int, weights: Tensor, values: Tensor) -> Tensor:
        """weights [heads, r, S], values [kv heads, S, d] -> what the attention of layer k adds to r rows, [r, D]."""
        values = values.repeat_interleave(weights.shape[0] // values.shape[0], 0)
        mixed = (weights.to(values) @ values).transpose(0, 1).flatten(1)  # [r, heads * d]
        return self.decoder.layers[k].self_attn.o_proj(mixed)

    def sparse_feed(self, k: int, hidden: Tensor, neurons: Tensor) -> Tensor:
        """The second half of decoder layer k with some of its MLP's inner neurons [p] alone; [1, S, D]."""
        layer = self.decoder.layers[k]
        mlp, x = layer.mlp, layer.post_attention_layernorm(hidden)
        gate, up = (torch.nn.functional.linear(x, part.weight[neurons]) for part in (mlp.gate_proj, mlp.up_proj))
        return hidden + torch.nn.functional.linear(mlp.act_fn(gate) * up, mlp.down_proj.weight[:, neurons])

    def probe(self, k: int, entered: Sequence, cached: Tensor | None = None) -> DecoderProbe:
        """Attention rows of layer k over the sequence that enters it; cached: its keys [kv heads, S, d], if it ran."""
        assert entered.rope is not None
        rope = (entered.rope[0][0], entered.rope[1][0])
        return DecoderProbe(self.decoder.layers[k], entered.hidden[0], rope, cached, entered.bias)

    def step_probe(self, k: int, hidden: Tensor, rope: Rope, keys: Tensor, bias: Tensor | None) -> DecoderProbe:
        """Attention rows of new tokens [1, q, D] over the cached keys [kv heads, n, d], their own included."""
        return DecoderProbe(self.decoder.layers[k], hidden[0], (rope[0][0], rope[1][0]), keys, bias)

    def next_token(self, hidden: Tensor) -> Tensor:
        """hidden [1, S, D] -> the likeliest token after the last position, [1]."""
        logits = self.adapter.lm_head(self.model)(self.decoder.norm(hidden[:, -1]))  # [1, vocabulary]
        return logits.argmax(-1)
