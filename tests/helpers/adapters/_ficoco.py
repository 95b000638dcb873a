"""What the recordings of both FiCoCo variants hold."""

import torch


def whole_logits(inputs, spans):
    """The recorded logits [n, n].

    The copies in tests/data hold whole rows only for CLS, text and discarded tokens. The maths uses any other row by
    its mean alone (over the visual, and over the text columns), so these are filled up with their means.
    """
    if "attention_logits" in inputs:
        return inputs["attention_logits"].view(sum(spans), sum(spans))
    logits = inputs["row_means"].repeat_interleave(torch.tensor(spans), 1)  # [n, spans] -> [n, n]
    return logits.index_copy(0, inputs["row_index"], inputs["rows"])
