"""The budget: limits that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Target = Literal["any", "peft", "merged", "vllm"]
TARGETS: tuple[str, ...] = get_args(Target)


@dataclass(frozen=True, slots=True)
class Budget:
    """Hard limits; None is no limit.

    Attributes:
        max_adapter_params: Adapter parameters: a count (int), or a share of the base model's parameters (float in
            (0, 1]). The head is not counted.
        max_memory: Live tensor bytes while one configuration trains, base included, at the longest batch; on GPUs what
            PyTorch reserves.
        max_time: Wall-clock seconds from process start to the saved result.
        max_compute: Busy seconds summed over all workers.
        max_trials: Trials that may start, finalists' reruns not counted.
        max_adapter_size: Bytes of the adapter on disk.
        max_latency_overhead: Time of a forward pass as a multiple of the bare base model's.
        target: What must be able to load the winner.
    """

    max_adapter_params: int | float | None = None
    max_memory: int | None = None
    max_time: float | None = None
    max_compute: float | None = None
    max_trials: int | None = None
    max_adapter_size: int | None = None
    max_latency_overhead: float | None = None
    target: Target = "any"

    def param_limit(self, base_params: int) -> int | None:
        """The limit on adapter parameters as a count, for a base of this size."""
        limit = self.max_adapter_params
        return int(limit * base_params) if isinstance(limit, float) else limit

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Budget:
        """A budget from plain values with units (``"1%"``, ``"2GiB"``, ``"5m"``); `InputError` names what is wrong."""
        from autopeft.spec.parse import parse_budget

        return parse_budget(values)
