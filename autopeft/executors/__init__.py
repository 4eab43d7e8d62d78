"""Runs a controller's jobs: in this process, on Ray actors, under Ray Tune, or simulated."""

from __future__ import annotations

import importlib
from concurrent.futures import Future, ThreadPoolExecutor
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
    "Starting",
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


class Starting:
    """An executor that comes up while the data is read and the libraries are loaded here. Final.

    Args:
        spec: What was asked for.
    """

    def __init__(self, spec: SearchSpec) -> None:
        self._spec = spec
        self._made: Future[Executor] | None = None
        if spec.executor != "inprocess":
            # Two threads must not be the first to load it at once.
            importlib.import_module("ray")
        # Linux ends Ray's processes with the thread that began them: this one lives as long as they shall.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="workers")
        if spec.ray_address is None:
            # A cluster that is there already is asked for its GPUs first, by a connection of its own.
            self._begin()

    def _begin(self) -> Future[Executor]:
        if self._made is None:
            self._made = self._thread.submit(make, self._spec)
        return self._made

    def take(self) -> Executor:
        """The executor, once it is there. It lives until `drop`.

        Raises:
            InputError: As `make`.
        """
        return self._begin().result()

    def drop(self) -> None:
        """Let go of it: now, or without waiting for it as soon as it is there. Harmless when repeated."""
        made, self._made = self._made, None
        there = made is None or made.done()
        if made is not None:
            self._thread.submit(_close, made)
        self._thread.shutdown(wait=there)


def _close(made: Future[Executor]) -> None:
    """What could not be made was raised where it was taken, or nobody wanted it."""
    if made.exception() is None:
        made.result().close()


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

    executor = RayExecutor(spec.workers, spec.gpus_per_trial, spec.ray_address, spec.max_workers)
    executor.begin()
    return executor
