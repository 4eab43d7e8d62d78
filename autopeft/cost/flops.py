"""Time by arithmetic, where nothing can be run: floating-point operations of a row over a device's rate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from autopeft.space.modules import ModuleMap

__all__ = ["ACHIEVED", "DECODING", "RowFlops", "expert_weights", "matmul_rate", "row_flops"]

LINEAR = ("query", "key", "value", "qkv", "output", "up", "gate", "down")
BENCHMARK_ROWS = 512
BENCHMARK_WIDTH = 2048
"""Widest matrix of the benchmark: wider ones run no faster."""
BENCHMARK_SECONDS = 0.3
MIN_PRODUCTS = 3
ACHIEVED = 0.6
"""Share of that rate that a step of training reaches: 0.49 to 0.60 in bfloat16, 0.69 to 0.84 in float32 (MiniLM and
SmolLM2-135M on a processor, rows of 29 to 99 tokens)."""
DECODING = 0.25
"""Share of it that generating answers reaches, token after token: 0.16 and 0.36 in the same measurements."""


@dataclass(frozen=True, slots=True)
class RowFlops:
    """Floating-point operations of one row; a multiplication and an addition are two.

    Attributes:
        forward: Of the forward pass of the bare model.
        train: Of a step of training, adapters included.
    """

    forward: float
    train: float


def expert_weights(model: nn.Module) -> float:
    """Weights of a mixture's experts that a token is multiplied with, over all blocks; 0 for other models.

    Experts are stacked in parameters `[experts, ., .]` and are no linear modules, so that a module map lacks them.

    Args:
        model: A transformers model, on any device.
    """
    config = getattr(model, "config", None)
    chosen = None if config is None else getattr(config.get_text_config(), "num_experts_per_tok", None)
    total = 0.0
    for module in model.modules():
        count = getattr(module, "num_experts", None)
        stacked = [p for p in module.parameters(recurse=False) if p.ndim == 3 and p.shape[0] == count]
        total += sum(p.numel() for p in stacked) * (1.0 if chosen is None or not count else min(1.0, chosen / count))
    return total


def row_flops(
    modules: ModuleMap,
    tokens: Sequence[int],
    *,
    adapter_params: int,
    vocabulary: int = 0,
    answers: float = 0.0,
    experts: float = 0.0,
) -> RowFlops:
    """What an average row needs.

    The frozen weights are multiplied twice in training (forward, and backward for the activations), adapter weights
    three times (also for their own gradients), attention's products three times. Norms, activations and softmax are
    not counted.

    Args:
        modules: The module map of the model.
        tokens: Padded length of each row.
        adapter_params: Parameters of the adapter that is trained.
        vocabulary: Width of a language model's output layer; 0 for none.
        answers: Mean answer tokens of a row: only there the output layer is computed.
        experts: What `expert_weights` says.
    """
    linear = experts + sum(site.params for site in modules.select(LINEAR))
    widths = sum(site.in_features for site in modules.select(("output",)))
    mean = statistics.fmean(tokens)
    weights = 2.0 * linear * mean + 2.0 * modules.hidden_size * vocabulary * answers
    attention = 4.0 * widths * statistics.fmean(length * length for length in tokens)
    adapter = 2.0 * adapter_params * mean
    return RowFlops(weights + attention, 2 * weights + 3 * attention + 3 * adapter)


def matmul_rate(
    width: int, dtype: torch.dtype, device: str = "cpu", clock: Callable[[], float] = time.perf_counter
) -> float:
    """Floating-point operations per second of matrix products here, on a GPU or on one thread of the processor.

    Args:
        width: Hidden size of the model; matrices are no wider than that.
        dtype: What the model computes in.
        device: ``cpu`` or ``cuda``.
        clock: Seconds.
    """
    side = min(width, BENCHMARK_WIDTH)
    left = torch.ones(BENCHMARK_ROWS, side, dtype=dtype, device=device)
    right = torch.ones(side, side, dtype=dtype, device=device)

    def timed() -> float:
        began = clock()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The first product pays for what later ones find ready.
        timed()
        seconds: list[float] = []
        while len(seconds) < MIN_PRODUCTS or sum(seconds) < BENCHMARK_SECONDS:
            seconds.append(timed())
    finally:
        torch.set_num_threads(threads)
    return 2.0 * BENCHMARK_ROWS * side * side / statistics.median(seconds)
