"""Copies that kernels on processors make of their operands and free before they return.

Traced with the allocator's events (``torch.profiler``, PyTorch 2.13) where these passed the live bytes by more than a
per cent: in every such case it was one of two copies, made while the result was already allocated.

* A sum, difference, product or quotient of two dtypes computes in the wider one and first casts the other operand as a
  whole. Under autocast that is every float32 part that meets a bfloat16 activation or weight: HRA's reflections, gates,
  scales and the norms' gradients. CUDA's kernels cast element by element.
* A matrix product of a conjugate view writes the conjugate out: the circular convolutions of C3A, backwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["scratch_bytes"]

_aten = torch.ops.aten
CASTING = frozenset(
    (
        *(_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor),
        *(_aten.add_.Tensor, _aten.sub_.Tensor, _aten.mul_.Tensor, _aten.div_.Tensor),
    )
)
PRODUCTS = frozenset((_aten.mm.default, _aten.bmm.default))


def scratch_bytes(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes of the copies that an operation makes of its operands, 0 for most.

    Args:
        func: The operation, as PyTorch dispatches it.
        args: What it is given; tensors may be fake.
    """
    if func in CASTING:
        left, right = args[0], args[1]
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.dtype == right.dtype:
            return 0
        common = torch.result_type(left, right)
        return sum(_bytes(each, common) for each in (left, right) if each.dtype != common and _here(each))
    if func in PRODUCTS:
        return sum(_bytes(each, each.dtype) for each in args[:2] if each.is_conj() and _here(each))
    return 0


def _here(tensor: Tensor) -> bool:
    return bool(tensor.device.type == "cpu")


def _bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    return int(tensor.numel() * dtype.itemsize)
