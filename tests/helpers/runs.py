"""Runs as `Run.to_dict` gives them, made by hand: a grid of 4 x 6 patches, three LLM layers."""

ROWS, COLUMNS = 4, 6


def site(name, status, home=None, weight=None):
    return {
        "site": name,
        "tokens": status.count(2),
        "soft": False,
        "counts": {"kept": status.count(2), "merged": status.count(1), "dropped": status.count(0)},
        "status": status,
        "weight": weight or [1.0 if s else 0.0 for s in status],
        "home": home or [i if s == 2 else -1 for i, s in enumerate(status)],
    }


def run(title="FastV", name="fastv", sites=(), schedule=(24, 24, 24), answer="407", ttft=100.0, flops=4000):
    return {
        "method": {"method": name, "retention": 0.25},
        "title": title,
        "answer": answer,
        "tokens0": ROWS * COLUMNS,
        "visual_tokens": schedule[-1],
        "schedule": list(schedule),
        "equivalent_tokens": sum(schedule) / len(schedule),
        "timings_ms": {"preprocess": 10.0, "vision": 40.0, "projector": 1.0, "compression": 2.0, "prefill": ttft - 53,
                       "ttft": ttft, "decode": 20.0, "decode_per_token": 5.0, "total": ttft + 20},
        "flops": {"vision": 1000, "prefill": flops - 1500, "decode": 500, "total": flops},
        "new_tokens": 5,
        "kv_bytes": 2048,
        "kv_lengths": [n + 6 for n in schedule],
        "grid": [ROWS, COLUMNS],
        "cells": None,
        "sites": list(sites),
        "vision_shared": False,
        "error": None,
    }  # fmt: skip


def reduced():
    """Merges patch 1 into patch 0 at the projector, then drops the lower half at LLM layer 1."""
    merged = [2, 1] + [2] * 22
    home = [0, 0, *range(2, 24)]
    weight = [0.63, 0.37] + [1.0] * 22
    dropped = merged[:12] + [0] * 12
    return run(
        sites=[site("projector", merged, home, weight), site("llm_layer(1)", dropped, home[:12] + [-1] * 12, weight)],
        schedule=(23, 11, 11),
        ttft=60.0,
        flops=2500,
    )
