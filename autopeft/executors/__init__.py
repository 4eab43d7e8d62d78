"""Runs a controller's jobs: in this process, on Ray actors, under Ray Tune, or simulated."""

from __future__ import annotations

import importlib
import threading
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
        self._made: Executor | None = None
        self._fault: BaseException | None = None
        self._there, self._released = threading.Event(), threading.Event()
        if spec.executor != "inprocess":
            # Two threads must not be the first to load it at once.
            importlib.import_module("ray")
        self._thread = threading.Thread(target=self._live, args=(spec,), name="workers")
        self._wanted = threading.Event()
        if spec.ray_address is None:
            # A cluster that is there already is asked for its GPUs first, by a connection of its own.
            self._wanted.set()
        self._thread.start()

    def _live(self, spec: SearchSpec) -> None:
        self._wanted.wait()
        if self._released.is_set():
            self._there.set()
            return
        try:
            self._made = make(spec)
        except BaseException as fault:  # noqa: BLE001 - it is raised where the executor is taken
            self._fault = fault
        self._there.set()
        # Linux ends Ray's processes with the thread that began them.
        self._released.wait()
        if self._made is not None:
            self._made.close()

    def take(self) -> Executor:
        """The executor, once it is there. It lives until `drop`.

        Raises:
            InputError: As `make`.
        """
        self._wanted.set()
        self._there.wait()
        if self._made is None:
            raise self._fault or RuntimeError("there is no executor")
        return self._made

    def drop(self) -> None:
        """Let go of it: now, or without waiting for it as soon as it is there. Harmless when repeated."""
        self._released.set()
        self._wanted.set()
        if self._there.is_set():
            self._thread.join()


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
