"""Counting the arithmetic of plain tensor code while it runs.

torch counts matrix products, convolutions and attention. Code that scores and merges tokens does much of its work
elsewhere: in distances, transforms, decompositions and element by element. `FlopCounter` books these, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import log2, prod

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_off: ContextVar[bool] = ContextVar("uncounted", default=False)


@contextmanager
def uncounted() -> Iterator[None]:
    """What runs within is not booked by any FlopCounter; also a decorator."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


class FlopCounter(TorchDispatchMode):
    """FLOPs of what runs within, 2 per multiply-add: `flops`, by name of the operator in `by_operator`.

    Matrix products, convolutions and attention by torch's own formulas. A distance: 3 per pair and channel. An FFT of n
    points: 5 n log2 n. Decompositions: the counts of textbooks (Golub and Van Loan), lower-order terms left out. Of
    floating tensors, addition, multiplication, division, powers, roots, exponentials, activations, sums, means and
    softmax: 1 per element of the largest operand, so that an elementwise product and its sum make 2; as does a norm.
    Comparisons (min, max, clamp), sorting, indexing, copies, casts and everything on integers: 0.
    """

    def __init__(self):
        super().__init__()
        self.by_operator: Counter[str] = Counter()

    @property
    def flops(self) -> int:
        return self.by_operator.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._overloadpacket not in FORMULAS and _name(func) not in ELEMENTWISE:
            with self:  # inference mode hands over operators that are made of others
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if not _off.get():
            self.book(func, args, kwargs, out)
        return out

    def book(self, func, args, kwargs, out) -> None:
        name = _name(func)
        if (formula := FORMULAS.get(func._overloadpacket)) is not None:
            self.by_operator[name] += int(formula(*args, **kwargs, out_val=out))
        elif name in ELEMENTWISE:
            tensors = [x for x in (*args, *kwargs.values(), out) if isinstance(x, Tensor)]
            if any(t.is_floating_point() or t.is_complex() for t in tensors):
                self.by_operator[name] += max(t.numel() for t in tensors)


def _name(func) -> str:
    """mul for aten::mul, aten::mul_ and the like."""
    return func._schema.name.removeprefix("aten::").removesuffix("_")


# -- element by element -----------------------------------------------------------------------------------------------
_NAMES = """
add sub rsub mul div pow square sqrt rsqrt reciprocal addcmul addcdiv lerp hypot fmod remainder
exp exp2 expm1 log log1p log2 log10 sin cos tan tanh sigmoid erf gelu silu relu softplus logit xlogy
sum mean prod var std var_mean std_mean nansum cumsum cumprod logcumsumexp logsumexp
_softmax _log_softmax softmax log_softmax native_layer_norm native_batch_norm _fused_rms_norm
index_add scatter_add scatter_reduce index_reduce trace avg_pool2d _adaptive_avg_pool2d
upsample_bilinear2d upsample_bicubic2d
"""
ELEMENTWISE = frozenset(_NAMES.split())


# -- operators with a formula of their own --------------------------------------------------------------------------
def cpu_attention(q, k, v, *args, out_shape=None, **kwargs) -> int:
    """The CPU's fused kernel; q, k, v as shapes [B, heads, tokens, d]."""
    batch, heads, rows, dim = q
    return 2 * batch * heads * rows * k[-2] * (dim + v[-1])


def _cpu_attention(q, k, v, *args, out_val=None, **kwargs) -> int:
    return cpu_attention(q.shape, k.shape, v.shape)


def _norm(x, *args, out_val=None, **kwargs) -> int:
    """A square and a sum."""
    return 2 * x.numel()


def _vector_product(a, b, *args, out_val=None, **kwargs) -> int:
    return 2 * max(a.numel(), b.numel())


def _added_product(c, a, b, *args, out_val=None, **kwargs) -> int:
    return 2 * max(a.numel(), b.numel())


def _sparse_product(c, a, b, *args, out_val=None, **kwargs) -> int:
    return 2 * a._nnz() * b.shape[-1]


def _distances(a, b=None, *args, out_val=None, **kwargs) -> int:
    return 3 * out_val.numel() * a.shape[-1]


def _fft(x, dim, *args, out_val=None, **kwargs) -> int:
    """Of the longer of input and output, which a real transform stores by half."""
    whole = max(x, out_val, key=Tensor.numel)
    points = prod(whole.shape[d] for d in dim)
    return int(5 * whole.numel() * log2(max(2, points)))


def _sizes(a: Tensor) -> tuple[int, int, int]:
    """(matrices, longer side, shorter side)"""
    *batch, rows, columns = a.shape
    return prod(batch), max(rows, columns), min(rows, columns)


def _svd(a, full_matrices=False, compute_uv=True, *args, out_val=None, **kwargs) -> int:
    batch, m, n = _sizes(a)
    return batch * (14 * m * n**2 + 8 * n**3 if compute_uv else 4 * m * n**2)


def _eigh(a, UPLO="L", compute_v=True, *args, out_val=None, **kwargs) -> int:
    batch, n, _ = _sizes(a)
    return batch * (9 * n**3 if compute_v else 4 * n**3 // 3)


def _cubic(share: float) -> Callable[..., int]:
    """share * m * n^2 for a matrix of m x n, n the shorter side; a square one: share * n^3."""

    def formula(a, *args, out_val=None, **kwargs) -> int:
        batch, m, n = _sizes(a)
        return int(share * batch * m * n**2)

    return formula


def _solved(a, b, *args, out_val=None, **kwargs) -> int:
    """A square system with its factorisation."""
    batch, n, _ = _sizes(a)
    return batch * 2 * n**3 // 3 + 2 * n * b.numel()


def _triangular(a, b, *args, out_val=None, **kwargs) -> int:
    return min(a.shape[-1], b.shape[-2]) * b.numel()


def _found(formulas: dict[str, Callable[..., int]]) -> dict:
    """By operator; those that this torch does not have are left out."""
    return {op: f for name, f in formulas.items() if (op := getattr(torch.ops.aten, name, None)) is not None}


CPU_ATTENTION = _found({"_scaled_dot_product_flash_attention_for_cpu": cpu_attention})  # for torch's own counter
FORMULAS = {
    **flop_registry,
    **_found(
        {
            "_scaled_dot_product_flash_attention_for_cpu": _cpu_attention,
            "norm": _norm,
            "linalg_vector_norm": _norm,
            "dot": _vector_product,
            "vdot": _vector_product,
            "mv": _vector_product,
            "addmv": _added_product,
            "addr": lambda *args, out_val, **kwargs: 2 * out_val.numel(),
            "_sparse_addmm": _sparse_product,
            "_cdist_forward": _distances,
            "_euclidean_dist": _distances,
            "_pdist_forward": _distances,
            "_fft_r2c": _fft,
            "_fft_c2c": _fft,
            "_fft_c2r": _fft,
            "_linalg_svd": _svd,
            "_linalg_eigh": _eigh,
            "_linalg_eigvals": _cubic(10),
            "linalg_eig": _cubic(25),
            "linalg_qr": _cubic(4),
            "geqrf": _cubic(2),
            "linalg_householder_product": _cubic(2),
            "linalg_cholesky_ex": _cubic(1 / 3),
            "cholesky": _cubic(1 / 3),
            "linalg_lu_factor_ex": _cubic(2 / 3),
            "linalg_ldl_factor_ex": _cubic(1 / 3),
            "_linalg_det": _cubic(2 / 3),
            "_linalg_slogdet": _cubic(2 / 3),
            "linalg_inv_ex": _cubic(2),
            "linalg_pinv": _cubic(24),
            "linalg_matrix_exp": _cubic(20),
            "linalg_lstsq": _cubic(2),
            "_linalg_solve_ex": _solved,
            "linalg_solve_triangular": _triangular,
            "triangular_solve": lambda b, a, *args, **kwargs: _triangular(a, b),
            "cholesky_solve": lambda b, a, *args, **kwargs: 2 * _triangular(a, b),
        }
    ),
}
