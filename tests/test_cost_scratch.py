"""Copies inside of kernels, against the allocator's own events."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from compose_models import alone
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

import autopeft.cost.memory as memory
from autopeft.compose.base import Carrier, meta_carrier
from autopeft.cost.live import measure
from autopeft.cost.memory import MemoryModel
from autopeft.cost.reserved import reserved_bytes
from autopeft.space.configuration import Configuration

Step = Callable[[torch.Tensor, torch.Tensor], object]
BIG = 64 * 1024


def allocated(step: Callable[[], object]) -> int:
    """The highest sum of what the allocator gave out during a step."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"), default=0)


@pytest.mark.parametrize(
    ("step", "dtypes"),
    [
        (torch.add, (torch.float32, torch.bfloat16)),
        (torch.sub, (torch.bfloat16, torch.float32)),
        (torch.mul, (torch.bfloat16, torch.float32)),
        (torch.div, (torch.float32, torch.bfloat16)),
        (torch.Tensor.add_, (torch.float32, torch.bfloat16)),
        (torch.Tensor.mul_, (torch.float32, torch.bfloat16)),
        # Nothing is copied where the dtypes are equal.
        (torch.add, (torch.float32, torch.float32)),
        (torch.mul, (torch.bfloat16, torch.bfloat16)),
    ],
)
def test_a_cast_operand_counts_as_the_allocator_says(step: Step, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    left, right = (torch.ones(BIG, dtype=dtype) for dtype in dtypes)
    real = allocated(lambda: step(left, right))
    counted = measure(lambda counter: step(left, right), [left, right])
    assert counted.bytes - counted.held == real
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = [torch.ones(BIG, dtype=dtype) for dtype in dtypes]
        assert measure(lambda counter: step(*fakes), fakes).bytes == counted.bytes
        plain = measure(lambda counter: step(*fakes), fakes, scratch=False)
    copied = 4 * BIG if dtypes[0] != dtypes[1] else 0
    assert counted.bytes - plain.bytes == copied


def test_a_conjugate_is_written_out_for_a_product() -> None:
    left, right = (torch.ones(4, 128, 128, dtype=torch.complex64) for _ in range(2))
    real = allocated(lambda: left @ right.conj())
    counted = measure(lambda counter: left @ right.conj(), [left, right])
    plain = measure(lambda counter: left @ right.conj(), [left, right], scratch=False)
    assert counted.bytes - plain.bytes == 8 * right.numel()
    assert counted.bytes - counted.held == pytest.approx(real, rel=0.15)
    assert measure(lambda counter: left @ right, [left, right]).bytes == plain.bytes


def test_a_plan_for_a_gpu_has_no_copies_of_processors(
    bert: Carrier, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What GPUs compute in float32 is another matter.
    monkeypatch.setattr(memory, "Widened", nullcontext)
    task = {"kind": "sequence_classification", "head": "mean"}
    whole = alone(bert.modules, "hra")
    some = Configuration.of({name: parts for name, parts in whole.sites if ".2." in name}, whole.training)

    def predicted(gpu: bool, dtype: str) -> int:
        model = MemoryModel(
            lambda: meta_carrier(folders["bert"], **task, labels=3),
            bert.modules,
            length=16,
            dtype=dtype,
            gpu=gpu,
        )
        return model.predict(some).bytes

    live = predicted(False, "float32")
    assert predicted(True, "float32") == reserved_bytes(live) > live
    assert predicted(True, "bfloat16") < reserved_bytes(predicted(False, "bfloat16"))
