"""Live tensor bytes: what a computation holds at its highest point, counted storage by storage.

The count is the same for real tensors and for fake ones, so that a prediction and a measurement mean the same thing.
Scratch memory that a kernel allocates and frees inside one call is no tensor of ours. It is counted where it is known
to be large: kernels on processors copy an operand of another dtype, or a conjugate, before they compute
(`autopeft.cost.scratch`). The rest of it is not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from autopeft.cost.scratch import scratch_bytes

__all__ = ["LiveBytes", "Peak", "measure"]


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest count of live tensor bytes.

    Attributes:
        bytes: Over the whole computation.
        phases: Phase name -> highest count in that phase; empty where none was marked.
        held: Bytes of the tensors that existed before the computation began.
        end: Bytes that are still live after it.
    """

    bytes: int
    phases: dict[str, int]
    held: int
    end: int


class LiveBytes(TorchDispatchMode):
    """Counts the storages that live while the mode is active, each exactly once.

    A storage counts from the operation that makes it until its last owner lets go, whoever that is: a Python variable,
    a parameter, or the autograd graph that saved it for the backward pass. Views and in-place results share a storage
    and add nothing. A storage that is first met as an input was there before, so that it is added to every count that
    has been taken; `hold` names such storages beforehand (those that no operation touches are only known that way).

    Enter it inside a `FakeTensorMode` to count without allocating, or alone to count real tensors.

    Args:
        scratch: Whether copies inside of processors' kernels count; False for fake tensors that stand for a GPU's.
    """

    def __init__(self, *, scratch: bool = True) -> None:
        super().__init__()
        self._scratch = scratch
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._sizes: dict[int, int] = {}
        self._live = 0
        self._held = 0
        self._highest = 0
        self._phase: str | None = None
        self._phases: dict[str, int] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that existed before the computation began."""
        for tensor in tensors:
            self._meet(tensor, before=True)

    def mark(self, phase: str) -> None:
        """Begins a phase; the peaks are kept for each."""
        self._phase = phase
        self._phases[phase] = max(self._phases.get(phase, 0), self._live)

    def peak(self) -> Peak:
        """What was counted so far."""
        return Peak(self._highest, dict(self._phases), self._held, self._live)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for value in args:
            self._visit(value, before=True)
        if kwargs:
            for value in kwargs.values():
                self._visit(value, before=True)
        result = func(*args, **(kwargs or {}))
        self._visit(result, before=False)
        if self._scratch:
            copied = scratch_bytes(func, args)
            if copied:
                self._reach(self._live + copied)
        return result

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        # What outlives the computation is no longer of interest: the callbacks must not keep this object busy.
        self._references.clear()

    def _visit(self, value: Any, *, before: bool) -> None:
        if isinstance(value, Tensor):
            self._meet(value, before=before)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._visit(item, before=before)

    def _meet(self, tensor: Tensor, *, before: bool) -> None:
        if tensor.layout is not torch.strided:
            # A sparse tensor has no storage of its own: its indices and values are tensors, and are met as such.
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        known = self._sizes.get(key)
        if known == size:
            return
        if known is None:
            # The reference goes with the storage itself: PyTorch keeps one Python object for as long as it lives.
            self._references[key] = weakref.ref(storage, partial(self._forget, key))
        self._sizes[key] = size
        grown = size - (known or 0)
        self._live += grown
        if before and known is None:
            self._held += grown
            self._highest += grown
            for phase in self._phases:
                self._phases[phase] += grown
        self._reach(self._live)

    def _reach(self, count: int) -> None:
        self._highest = max(self._highest, count)
        if self._phase is not None:
            self._phases[self._phase] = max(self._phases[self._phase], count)

    def _forget(self, key: int, _: object) -> None:
        self._references.pop(key, None)
        self._live -= self._sizes.pop(key, 0)


def measure(step: Callable[[LiveBytes], object], held: Iterable[Tensor] = (), *, scratch: bool = True) -> Peak:
    """The live tensor bytes of a computation.

    Args:
        step: The computation; it is given the counter, to mark its phases.
        held: Tensors that exist already and count from the start (a model's weights, a batch). Those that the
            computation uses are found without being named.
        scratch: As for `LiveBytes`.

    Returns:
        The peak. On an accelerator this is what the tensors need; the caching allocator's reserve is not in it.
    """
    counter = LiveBytes(scratch=scratch)
    counter.hold(held)
    with counter:
        step(counter)
    return counter.peak()
