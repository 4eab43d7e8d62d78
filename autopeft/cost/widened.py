"""What mixed precision computes in float32 on GPUs, though not on processors.

PyTorch's autocast has a list of operations for each kind of device that it widens to float32; that of CUDA holds norms,
softmax, sums, powers and losses (PyTorch's reference of operations that autocast to float32). A step that is traced on
tensors of a processor keeps their inputs and outputs at half the bytes, which `Widened` makes good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Widened"]

WIDENED = frozenset(
    (
        *("acos", "asin", "cosh", "cosine_embedding_loss", "cdist", "cosine_similarity", "cross_entropy", "cumprod"),
        *("cumsum", "dist", "erfinv", "exp", "expm1", "group_norm", "hinge_embedding_loss", "kl_div", "l1_loss"),
        *("layer_norm", "log", "log10", "log1p", "log2", "log_softmax", "mse_loss", "nll_loss", "norm", "pdist", "pow"),
        *("prod", "reciprocal", "rsqrt", "sinh", "smooth_l1_loss", "soft_margin_loss", "softmax", "softplus", "sum"),
        *("tan", "triplet_margin_loss"),
    )
)
"""Names of functions of ``torch``, ``torch.nn.functional`` and of methods of tensors."""
NARROW = (torch.bfloat16, torch.float16)


class Widened(TorchFunctionMode):
    """Gives those operations float32 operands, as autocast does on a GPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in WIDENED and given.get("dtype") is None:
            args = tuple(map(_wide, args))
            given = {name: _wide(value) for name, value in given.items()}
        return func(*args, **given)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in NARROW else value
