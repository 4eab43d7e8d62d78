"""Runs a controller's jobs: in this process, on Ray actors, under Ray Tune, or simulated."""

from __future__ import annotations

from autopeft.executors.base import Controller, Done, Event, Executor, Finished, Lost, Progressed, Wait
from autopeft.spec import SearchSpec

__all__ = ["Controller", "Done", "Event", "Executor", "Finished", "Lost", "Progressed", "Wait", "make"]


def make(spec: SearchSpec) -> Executor:
    """The executor that a search asks for; ray is imported only where it is used.

    Raises:
        InputError: The workers asked for do not fit on the cluster, or it cannot be reached.
    """
    if spec.executor == "inprocess":
        from autopeft.executors.inprocess import InProcessExecutor

        return InProcessExecutor()
    if spec.executor == "tune":
        from autopeft.executors.tune import TuneExecutor

        return TuneExecutor(spec.workers, spec.gpus_per_trial, spec.ray_address)
    from autopeft.executors.ray import RayExecutor

    return RayExecutor(spec.workers, spec.gpus_per_trial, spec.ray_address)
