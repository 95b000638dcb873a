"""DivPrune."""

from vtc_demo.methods.projector.divprune import cosine_distance, farthest_first

METHOD = "divprune"


def divprune(inputs, hp):
    tokens = inputs["visual_tokens"]  # [576, 64]
    distance = cosine_distance(tokens)
    order = farthest_first(distance, round(hp["ratio"] * len(tokens)))
    return {"selection_order": order, "kept_indices": order.sort().values, "first_distance_row": distance[order[0]]}


ADAPTERS = {"divprune": divprune}
