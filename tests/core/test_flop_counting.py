"""The counter books what textbooks say, and the same in inference mode."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vtc_demo.core.flop_counting import CPU_ATTENTION, FlopCounter, uncounted

N, C = 24, 10
X = torch.randn(N, C, generator=torch.Generator().manual_seed(0))
WIDE = torch.randn(1, 2, N, C, generator=torch.Generator().manual_seed(1))  # [B, heads, tokens, d]
SQUARE = X.T @ X + torch.eye(C)
CASES = {
    "product": (lambda: X @ X.T, 2 * N * N * C),
    "einsum": (lambda: torch.einsum("ic,jc->ij", X, X), 2 * N * N * C),
    "batched": (lambda: WIDE @ WIDE.transpose(-1, -2), 2 * 2 * N * N * C),
    "vector": (lambda: X @ X[0], 2 * N * C),
    "dot": (lambda: X[0] @ X[1], 2 * C),
    "linear": (lambda: F.linear(X, torch.ones(3, C), torch.ones(3)), 2 * N * C * 3),
    "convolution": (lambda: F.conv1d(X[None], torch.ones(5, N, 3)), 2 * 5 * N * 3 * (C - 2)),
    "attention": (lambda: F.scaled_dot_product_attention(WIDE, WIDE, WIDE), 2 * 2 * N * N * 2 * C),
    "cdist": (lambda: torch.cdist(X, X), 3 * N * N * C),
    "few cdist": (lambda: torch.cdist(X[:5], X), 3 * 5 * N * C),
    "squared differences": (lambda: (X[:, None] - X).square().sum(-1), 3 * N * N * C),
    "norm": (lambda: X.norm(dim=-1), 2 * N * C),
    "cosine": (lambda: F.normalize(X, dim=-1) @ X.T, 3 * N * C + 2 * N * N * C),
    "product-sum": (lambda: (X * X).sum(0), 2 * N * C),
    "in place": (lambda: X.clone().mul_(2).add_(X), 2 * N * C),
    "softmax": (lambda: X.softmax(-1), N * C),
    "gathered sums": (lambda: torch.zeros(2, C).index_add_(0, torch.zeros(N).long(), X), N * C),
    "spectrum": (lambda: torch.fft.fft(X, dim=0), int(5 * N * C * math.log2(N))),
    "real spectrum": (lambda: torch.fft.rfft(X, dim=0), int(5 * N * C * math.log2(N))),
    "plane": (lambda: torch.fft.fft2(X), int(5 * N * C * math.log2(N * C))),
    "svd": (lambda: torch.linalg.svd(X, full_matrices=False), 14 * N * C**2 + 8 * C**3),
    "svd, flat": (lambda: torch.linalg.svd(X.T, full_matrices=False), 14 * N * C**2 + 8 * C**3),
    "eigenvectors": (lambda: torch.linalg.eigh(SQUARE), 9 * C**3),
    "qr": (lambda: torch.linalg.qr(X), 4 * N * C**2),
    "cholesky": (lambda: torch.linalg.cholesky(SQUARE), C**3 // 3),
    "inverse": (lambda: torch.linalg.inv(SQUARE), 2 * C**3),
    "solve": (lambda: torch.linalg.solve(SQUARE, X.T), 2 * C**3 // 3 + 2 * C * C * N),
    "log determinant": (lambda: torch.linalg.slogdet(SQUARE), 2 * C**3 // 3),
}
FREE = {
    "sorting": lambda: X.argsort(0),
    "largest": lambda: X.topk(2).values.amax(0),
    "indexing": lambda: X[torch.arange(3)].T.reshape(-1).clone(),
    "bounds": lambda: torch.minimum(X, X.clamp(min=0)),
    "integers": lambda: torch.arange(9).mul(3).sum(),
    "casts": lambda: X.double(),
    "flags": lambda: (X > 0).sum(),
}


def counted(work) -> int:
    with FlopCounter() as counter:
        work()
    return counter.flops


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    work, flops = CASES[name]
    assert counted(work) == flops
    with torch.inference_mode():
        assert counted(work) == flops


@pytest.mark.parametrize("name", FREE)
def test_what_is_no_arithmetic_is_free(name):
    assert counted(FREE[name]) == 0


def test_some_work_is_left_out_on_request():
    @uncounted()
    def aside():
        return X @ X.T

    with FlopCounter() as counter:
        aside()
        X @ X[0]
    assert counter.by_operator == {"mv": 2 * N * C}


def test_torchs_counter_learns_the_cpu_kernel_from_here():
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as mode:
        F.scaled_dot_product_attention(WIDE, WIDE, WIDE)
    assert mode.get_total_flops() == CASES["attention"][1]
