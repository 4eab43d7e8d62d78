"""Dropout on the input of adapter parts, with a generator of its own.

The base runs in eval mode, so this is the only randomness of a training step. A generator per module keeps a trial's
masks independent of whatever else draws numbers in the process, other members of a pack included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

__all__ = ["AdapterDropout", "replayed", "reseed"]


class AdapterDropout(nn.Module):
    """Dropout that draws from its own generator once `reseed` was called, and from torch's global one before.

    Args:
        p: Probability that an element is zeroed, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.seed: int | None = None
        self.generator: torch.Generator | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Elements of `x` are zeroed and the others scaled up, in training mode; any shape."""
        if not self.training or self.p == 0.0:
            return x
        if self.seed is None:
            return functional.dropout(x, self.p, training=True)
        kept = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        kept.bernoulli_(1.0 - self.p, generator=self._generator_on(x.device)).div_(1.0 - self.p)
        return x * kept.to(x.dtype)

    def _generator_on(self, device: torch.device) -> torch.Generator:
        if self.generator is None or self.generator.device != device:
            self.generator = torch.Generator(device=device)
            self.generator.manual_seed(self.seed)
        return self.generator

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"p={self.p}"


def reseed(model: nn.Module, seed: int) -> None:
    """Give every adapter dropout of a model its own stream, fixed by the seed and the module's place.

    Args:
        model: Any model; without adapter dropout nothing happens.
        seed: E.g. from the trial's seed and the rows that it has seen, so that a resumed trial goes on differently.
    """
    for name, module in model.named_modules():
        if isinstance(module, AdapterDropout):
            module.seed = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
            module.generator = None


@contextmanager
def replayed(dropouts: Sequence[AdapterDropout], states: list[torch.Tensor | None]) -> Iterator[None]:
    """Run with generators at recorded states, and put theirs back: the second forward pass of a checkpointed block.

    Args:
        dropouts: The modules.
        states: What `record` gave for them.
    """
    now = record(dropouts)
    _restore(dropouts, states)
    try:
        yield
    finally:
        _restore(dropouts, now)


def record(dropouts: Sequence[AdapterDropout]) -> list[torch.Tensor | None]:
    """The states of generators; None for one that was not used yet."""
    return [None if dropout.generator is None else dropout.generator.get_state() for dropout in dropouts]


def _restore(dropouts: Sequence[AdapterDropout], states: list[torch.Tensor | None]) -> None:
    for dropout, state in zip(dropouts, states, strict=True):
        if state is None:
            dropout.generator = None
        elif dropout.generator is not None:
            dropout.generator.set_state(state)
