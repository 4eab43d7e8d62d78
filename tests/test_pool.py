"""Pools whose workers come and go: the arithmetic, the loop, and whole searches over them."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from test_search_simulated import Bench

from autopeft.errors import InputError
from autopeft.executors.base import Event, Lost, Resized
from autopeft.executors.folder import SharedFolder
from autopeft.executors.room import Node, check_fraction, check_room, check_store, room, share
from autopeft.executors.simulated import SimulatedExecutor, VirtualClock
from autopeft.journal import read_journal
from autopeft.search import finals
from autopeft.spec import Budget
from autopeft.testing.worlds import SyntheticWorld, by_method

GIB = 2**30


def node(gpus: float, cpus: float = 16.0, store: int = GIB, name: str = "a") -> Node:
    return Node(name, cpus, gpus, store)


@pytest.mark.parametrize(
    ("gpus", "nodes", "held"),
    [
        (1.0, [node(8), node(8)], [8, 8]),
        (0.5, [node(1), node(1)], [2, 2]),
        (0.3, [node(1), node(2)], [3, 6]),
        (0.25, [node(1.0, cpus=2.0)], [4]),
        (2.0, [node(1), node(3)], [0, 1]),
        (1.0, [node(0), node(2)], [0, 2]),
        (0.0, [node(0, cpus=2.0), node(4, cpus=0.0)], [2, 0]),
        (0.1, [node(1, cpus=3.0)], [10]),
    ],
)
def test_a_part_of_a_gpu_lies_on_one_gpu_and_cores_never_bind(gpus: float, nodes: list[Node], held: list[int]) -> None:
    assert room(nodes, share(nodes, gpus)) == held


@pytest.mark.parametrize(
    ("gpus", "cpus", "workers_cpus", "threads"),
    [(1.0, 16.0, 1.0, 2), (1.0, 64.0, 1.0, 4), (0.5, 8.0, 0.5, 1), (0.25, 8.0, 0.25, 1)],
)
def test_cores_of_a_node_are_shared_by_its_workers(gpus: float, cpus: float, workers_cpus: float, threads: int) -> None:
    got = share([node(8, cpus=cpus)], gpus)
    assert (got.cpus, got.threads) == (workers_cpus, threads)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    nodes = [node(1), node(1)]
    assert check_room(nodes, share(nodes, 0.5), None) == 4
    with pytest.raises(InputError, match="on 2 nodes") as caught:
        check_room(nodes, share(nodes, 1.0), 3)
    assert caught.value.problems[0].next_step.startswith("Use at most 2 workers")
    # The sum would do; no node has two.
    with pytest.raises(InputError, match="which hold 0, 0"):
        check_room(nodes, share(nodes, 2.0), 1)
    with pytest.raises(InputError, match="largest node has 1 GPUs"):
        check_room(nodes, share(nodes, 2.0), None)
    for fine in (0.0, 0.3, 1.0, 2.0):
        check_fraction(fine)
    with pytest.raises(InputError, match="Give 1 or 2"):
        check_fraction(1.5)


def test_the_store_must_hold_base_and_data() -> None:
    check_store(900 * 2**20, [node(1), node(1)], own=False)
    with pytest.raises(InputError, match="1 of 2 nodes have room for 512 MiB") as caught:
        check_store(900 * 2**20, [node(1), node(1, store=GIB // 2)], own=False)
    told = caught.value.problems[0]
    assert told.field == "ray_address"
    assert "--object-store-memory=1048576000" in told.next_step
    with pytest.raises(InputError, match="RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION"):
        check_store(2 * GIB, [node(0)], own=True)


def test_a_folder_is_the_same_only_with_the_same_mark(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    killed = SharedFolder.mark(str(here))
    mark = SharedFolder.mark(str(here))
    assert mark.seen(0.0)
    assert not killed.path.exists()
    # A folder of the same name on a node's own disk, perhaps with the mark of an earlier search.
    SharedFolder.mark(str(there))
    assert not SharedFolder(str(there), mark.token).seen(0.0)
    assert not SharedFolder(str(tmp_path / "nowhere"), mark.token).seen(0.0)
    mark.remove()
    assert not list(here.iterdir())


class ComesAndGoes(SimulatedExecutor):
    """Simulated workers of which some are lost and some join, by a timetable."""

    timetable: list[tuple[float, set[int]]]

    def __init__(self, slots: int, world: SyntheticWorld, clock: VirtualClock) -> None:
        super().__init__(slots, world, clock)
        self._clock, self._there = clock, set(range(slots))
        self._left = list(self.timetable)
        self.most = slots

    def live(self) -> Collection[int]:
        return sorted(self._there)

    def awaits(self) -> bool:
        return not self._there

    def poll(self) -> Sequence[Event]:
        if self._left and (not self._ends or self._left[0][0] <= self._ends[0][0]):
            now, there = self._left.pop(0)
            self._clock.now = max(self._clock.now, now)
            lost = [entry for entry in self._ends if entry[2] not in there]
            self._ends = [entry for entry in self._ends if entry[2] in there]
            heapq.heapify(self._ends)
            events: list[Event] = [Lost(slot, job, "its node was lost") for _, _, slot, job, _ in lost]
            self._there = there
            if len(there) != self.slots and there:
                self.slots = len(there)
                events.append(Resized(self.slots, f"{self.slots} workers now."))
            return events
        return super().poll()


def search(
    folder: Path, monkeypatch: pytest.MonkeyPatch, timetable: list[tuple[float, set[int]]], slots: int
) -> tuple[Bench, SyntheticWorld]:
    kind = type("Scheduled", (ComesAndGoes,), {"timetable": timetable})
    monkeypatch.setattr("test_search_simulated.SimulatedExecutor", kind)
    world = SyntheticWorld(by_method({"lora": 0.82, "parallel": 0.92}), rows=2000)
    return Bench(folder, world, Budget(max_adapter_params=0.01, max_time=900.0), slots=slots), world


@pytest.mark.parametrize(
    ("timetable", "slots"),
    [
        ([(60.0, {0, 1})], 8),
        ([(60.0, set(range(16)))], 2),
        ([(100.0, {3}), (200.0, {0, 1, 2, 3}), (700.0, {0, 5})], 4),
        ([(100.0, set()), (150.0, {0, 1})], 2),
        # While the workers are measured.
        ([(1.0, {1, 2})], 4),
        ([(1.0, set(range(8)))], 2),
    ],
)
def test_a_search_goes_on_with_whoever_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timetable: list[tuple[float, set[int]]], slots: int
) -> None:
    bench, _ = search(tmp_path / "run", monkeypatch, timetable, slots)
    log = bench.run()
    assert log.verdict is not None
    assert log.verdict["name"] == "better"
    assert set(log.tests) == {"baseline", "challenger"}
    assert log.used <= 900
    assert not [trial for trial in log.trials.values() if trial.status in ("running", "paused", "failed")]
    changes = [len(there) for _, there in timetable if there and len(there) != slots]
    assert bool(changes) == any("workers now" in text for text in log.notes)
    # Nothing runs twice at a time, and nothing on a worker that is not there.
    starts = [record for record in read_journal(tmp_path / "run") if record.type == "trial_started"]
    for start in starts:
        there = set(range(slots))
        for at, then in timetable:
            if start.used >= at:
                there = then
        assert start.data["slot"] in there


def test_a_node_with_eight_workers_may_be_lost_while_they_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = search(tmp_path / "run", monkeypatch, [], 16)
    bench.run()
    probed = next(record.used for record in read_journal(tmp_path / "run") if record.type == "probe")
    bench, _ = search(tmp_path / "again", monkeypatch, [(probed / 2, set(range(8)))], 16)
    log = bench.run()
    assert log.plan["workers"] == 8
    assert log.verdict is not None


def test_finalists_are_named_for_the_workers_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    makespan = finals.makespan

    def counting(seconds: list[float], workers: int) -> float:
        counted.append(workers)
        return makespan(seconds, workers)

    monkeypatch.setattr(finals, "makespan", counting)
    bench, _ = search(tmp_path / "run", monkeypatch, [(60.0, {0, 1})], 8)
    bench.run()
    assert set(counted) == {2}


def test_a_search_that_lost_workers_is_taken_up_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, _ = search(tmp_path / "run", monkeypatch, [(100.0, {0})], 4)
    with pytest.raises(KeyboardInterrupt):
        bench.run(stop_after=30)
    again, _ = search(tmp_path / "run", monkeypatch, [], 3)
    again.clock = bench.clock
    log = again.run(resume=True)
    assert log.plan["workers"] == 3
    assert log.verdict is not None
