"""FastV."""

import torch

from vtc_demo.methods.llm.fastv import FastV, select

METHOD = "fastv"


def fastv(inputs, hp):
    system, image, layers = 5, 576, 6  # the prompt and the stand-in model of the recording
    hidden, last_row = inputs["inputs_embeds"], inputs["last_row_attention"][0, :, 0]  # [1, 601, 8], [heads, 601]
    total, layer = hidden.shape[1], hp["fastv_k"]
    method = FastV(layer=layer, retention=1 - hp["fastv_r"])
    visual = torch.arange(system, system + image)
    kept = visual[select(last_row, visual, method.keep(image))]
    kept = torch.cat([torch.arange(system), kept, torch.arange(system + image, total)])
    return {
        "kept_positions": kept,
        "tokens_per_layer": torch.tensor([total] * layer + [len(kept)] * (layers - layer)),
        "hidden_out": hidden[:, kept],  # identity layers
        "attention_taken_from_layer": layer - 1,
    }


ADAPTERS = {"fastv": fastv}
