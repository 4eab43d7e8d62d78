"""The pool of workers on a Ray cluster of several node processes, whose GPUs are declared and not there.

The workers are stand-ins that train nothing, so that what is tested is where they are and what becomes of them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autopeft.errors import AutopeftError, InputError
from autopeft.executors.base import Done, Event, Finished, Resized, Wait
from autopeft.executors.folder import SharedFolder
from autopeft.executors.room import Share
from autopeft.executors.seats import Hello
from autopeft.strategy.jobs import Job, Outcome, Probe
from autopeft.testing.executors import ExecutorContract, Script

STORE = 100 * 2**20


@dataclass(frozen=True)
class Setup:
    """All that stand-ins ask of a setup."""

    folder: str
    base: np.ndarray = field(default_factory=lambda: np.zeros(8 * 2**20, dtype=np.uint8))


class StandIn:
    """A worker whose jobs take as many seconds as their limit says."""

    _setup: Setup
    _threads = 0

    def run(self, job: Job) -> Outcome:
        if isinstance(job, Probe):
            time.sleep(float(job.heads[0]))
        import ray

        flags = self._setup.base.flags
        return Outcome(
            job,
            values={
                "node": ray.get_runtime_context().get_node_id(),
                "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "threads": (self._threads, os.environ["OMP_NUM_THREADS"]),
                "copied": bool(flags.writeable or flags.owndata),
            },
        )

    def progress(self) -> None:
        return None

    def hello(self, shared: list[Any], share: Share, mark: SharedFolder) -> Hello:
        import ray

        self._setup, self._threads = ray.get(shared[0]), share.threads
        return Hello(
            ray.get_runtime_context().get_node_id(),
            os.getpid(),
            "cpu",
            os.environ.get("CUDA_VISIBLE_DEVICES"),
            mark.seen(seconds=0.0),
        )


def nap(seconds: float, number: int = 0) -> Probe:
    """A job of a stand-in."""
    return Probe("speed", (str(seconds), str(number)))


@contextmanager
def started(gpus: tuple[int, ...], cpus: int = 2) -> Iterator[Any]:
    """A head without GPUs and one node for each number of them."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "num_gpus": 0, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.workers = [cluster.add_node(num_cpus=cpus, num_gpus=n, object_store_memory=STORE) for n in gpus]
    try:
        yield cluster
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers are stand-ins, which a node that cannot import this file gets as a value."""
    import ray

    import autopeft.executors.actor as actor

    if ray.is_initialized():
        ray.shutdown()
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    monkeypatch.setattr(actor, "Worker", StandIn)
    monkeypatch.setattr("autopeft.executors.ray.NODES_SECONDS", 0.5)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


class Watched(Script):
    """Acts once an event has come for which it is told to, and goes on with short jobs until it has seen enough."""

    def __init__(
        self,
        jobs: list[Any],
        acts: list[tuple[Callable[[], bool], Callable[[], Any]]],
        enough: Callable[[list[Event]], bool] = lambda events: True,
    ) -> None:
        super().__init__(jobs)
        self.acts, self.enough = acts, enough

    def next(self, slot: int) -> Job | Wait | Done:
        if not self.jobs and not self.enough(self.events):
            self.jobs.append(nap(0.3, len(self.events)))
        return super().next(slot)

    def tick(self) -> None:
        super().tick()
        if self.acts and self.acts[0][0]():
            self.acts.pop(0)[1]()

    def on_event(self, event: Event) -> None:
        if isinstance(event, Resized):
            self.events.append(event)
        else:
            super().on_event(event)

    @property
    def sizes(self) -> list[int]:
        return [event.slots for event in self.events if isinstance(event, Resized)]


def visible(events: list[Event]) -> set[str | None]:
    """The GPUs that workers were given."""
    return {event.outcome.values["visible"] for event in events if isinstance(event, Finished)}


@pytest.mark.usefixtures("stand_ins")
def test_parts_of_gpus_nodes_that_are_lost_and_nodes_that_join(tmp_path: Path) -> None:
    from autopeft.executors.ray import RayExecutor

    with started((1, 1)) as cluster:
        executor = RayExecutor(gpus_per_trial=0.5, address=cluster.address)
        assert executor.slots == 4
        # Eight short jobs show who is there; the long ones are running when the node goes.
        script = Watched(
            [*(nap(0.5, n) for n in range(8)), *(nap(4.0, n) for n in range(4))],
            [
                (lambda: len(script.outcomes) >= 8 and script.running == 4, lambda: lose(cluster)),
                (
                    lambda: script.sizes[-1:] == [2],
                    lambda: cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=STORE),
                ),
            ],
            enough=lambda events: "1" in visible(events),
        )
        executor.run(script, Setup(str(tmp_path)))  # type: ignore[arg-type]
        before = [outcome.values for outcome in script.outcomes[:8]]
        nodes = {value["node"] for value in before}
        assert len(nodes) == 2
        assert {value["visible"] for value in before} == {"0"}
        assert {value["threads"] for value in before} == {(1, "1")}
        assert not any(value["copied"] for value in before)
        assert len(script.lost) == 2
        assert all("worker" in lost.reason for lost in script.lost)
        assert script.sizes[0] == 2
        assert script.sizes[-1] == 6
        texts = [event.text for event in script.events if isinstance(event, Resized)]
        assert "1 node was lost" in texts[0]
        assert "joined" in " ".join(texts)
        assert visible(script.events) == {"0", "1"}
        assert not list(tmp_path.glob(".driver-*"))


def lose(cluster: Any) -> None:
    cluster.remove_node(cluster.workers.pop(), allow_graceful=False)


@pytest.mark.slow
@pytest.mark.usefixtures("stand_ins")
def test_what_cannot_be_placed_is_refused_at_once(tmp_path: Path) -> None:
    from autopeft.executors.cluster import look
    from autopeft.executors.ray import RayExecutor

    with started((1, 1)) as cluster:
        at = cluster.address
        with pytest.raises(InputError, match=r"which hold 0, 0, 0.*largest node has 1 GPUs"):
            RayExecutor(gpus_per_trial=2, address=at)
        with pytest.raises(InputError, match="Use at most 4 workers"):
            RayExecutor(workers=5, gpus_per_trial=0.5, address=at)
        with pytest.raises(InputError, match="whole number above 1"):
            look(at, 1.5)
        seen = look(at, None)
        assert not seen.gpu
        assert seen.note is not None
        assert "declares 2 GPUs" in seen.note
        executor = RayExecutor(address=at)
        big = Setup(str(tmp_path), np.zeros(STORE, dtype=np.uint8))
        with pytest.raises(InputError, match="--object-store-memory=1165"):
            executor.run(Script([]), big)  # type: ignore[arg-type]


class Elsewhere(StandIn):
    """A worker on a node that has not mounted the run folder."""

    def hello(self, shared: list[Any], share: Share, mark: SharedFolder) -> Hello:
        return super().hello(shared, share, SharedFolder(f"{mark.folder}/nowhere", mark.token))


class Broken(StandIn):
    """A worker that cannot start."""

    def __init__(self) -> None:
        raise ValueError("no such library here")


@pytest.mark.slow
@pytest.mark.usefixtures("stand_ins")
def test_workers_that_cannot_work_are_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autopeft.executors.ray import RayExecutor

    with started((1,)) as cluster:
        monkeypatch.setattr("autopeft.executors.actor.Worker", Elsewhere)
        with pytest.raises(InputError, match="is not seen by the worker on node"):
            RayExecutor(address=cluster.address).run(Script([nap(0.1)]), Setup(str(tmp_path)))  # type: ignore[arg-type]
        monkeypatch.setattr("autopeft.executors.actor.Worker", Broken)
        with pytest.raises(InputError, match="no worker starts: ValueError: no such library here"):
            RayExecutor(address=cluster.address).run(Script([nap(0.1)]), Setup(str(tmp_path)))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.usefixtures("stand_ins")
def test_without_any_worker_it_ends_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autopeft.executors.ray import RayExecutor

    monkeypatch.setattr("autopeft.executors.seats.NOBODY_SECONDS", 8.0)
    with started((1,)) as cluster:
        executor = RayExecutor(workers=1, address=cluster.address)
        script = Watched([nap(0.1), nap(60.0), nap(0.1)], [(lambda: len(script.outcomes) == 1, lambda: lose(cluster))])
        with pytest.raises(AutopeftError, match=f"--resume --out {tmp_path}"):
            executor.run(script, Setup(str(tmp_path)))  # type: ignore[arg-type]
        assert len(script.lost) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("stand_ins")
def test_workers_that_are_asked_for_wait_for_nodes(tmp_path: Path) -> None:
    from autopeft.executors.ray import RayExecutor

    with started((1,)) as cluster:
        executor = RayExecutor(address=cluster.address, max_workers=3)
        assert executor.slots == 1
        script = Watched(
            [nap(0.1)],
            [
                (
                    lambda: bool(script.outcomes),
                    lambda: cluster.add_node(num_cpus=4, num_gpus=4, object_store_memory=STORE),
                )
            ],
            enough=lambda events: "1" in visible(events),
        )
        executor.run(script, Setup(str(tmp_path)))  # type: ignore[arg-type]
        assert visible(script.events) == {"0", "1"}
        assert script.sizes == [3]


@pytest.mark.slow
class TestOnACluster(ExecutorContract):
    """The behaviour suite, with real jobs on two nodes."""

    address: str

    @pytest.fixture(autouse=True, scope="class")
    def cluster(self) -> Iterator[None]:
        import ray

        if ray.is_initialized():
            ray.shutdown()
        with started((1, 1), cpus=1) as cluster:
            type(self).address = cluster.address
            yield

    def executor(self) -> Any:
        from autopeft.executors.ray import RayExecutor

        return RayExecutor(address=self.address)
