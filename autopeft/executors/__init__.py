"""Runs a controller's jobs: in this process, on Ray actors, under Ray Tune, or simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autopeft.executors.base import Controller, Done, Event, Executor, Finished, Lost, Progressed, Resized, Wait
from autopeft.spec import SearchSpec

if TYPE_CHECKING:
    from autopeft.executors.cluster import Seen

__all__ = [
    "Controller",
    "Done",
    "Event",
    "Executor",
    "Finished",
    "Lost",
    "Progressed",
    "Resized",
    "Wait",
    "device_there",
    "make",
]


def device_there(spec: SearchSpec) -> Seen | None:
    """What the workers of a cluster compute on; None where they run on this machine, or on whatever it has.

    Raises:
        InputError: The cluster cannot be reached, has no room for the workers, or starts no process beside a GPU.
    """
    if spec.ray_address is None or spec.executor == "inprocess":
        return None
    from autopeft.executors.cluster import look

    return look(spec.ray_address, spec.gpus_per_trial, spec.workers, spec.max_workers)


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

    return RayExecutor(spec.workers, spec.gpus_per_trial, spec.ray_address, spec.max_workers)
