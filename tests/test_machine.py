"""What a worker may take of a machine's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.search import machine
from autopeft.search.machine import free_bytes, live_bytes_per_worker

GIB = 1 << 30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    return tmp_path


def test_the_tighter_of_machine_and_control_group_counts(system: Path) -> None:
    assert free_bytes() is None
    assert live_bytes_per_worker(2) is None
    (system / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {20 * GIB // 1024} kB\n")
    assert free_bytes() == 20 * GIB
    (system / "memory.max").write_text("max\n")
    assert free_bytes() == 20 * GIB
    (system / "memory.max").write_text(f"{8 * GIB}\n")
    (system / "memory.current").write_text(f"{3 * GIB}\n")
    (system / "memory.stat").write_text(f"anon 1\ninactive_file {GIB}\n")
    assert free_bytes() == 6 * GIB
    (system / "memory.current").write_text("broken")
    assert free_bytes() == 20 * GIB


def test_workers_share_it_and_none_gets_less_than_nothing(system: Path) -> None:
    (system / "meminfo").write_text(f"MemAvailable: {20 * GIB // 1024} kB\n")
    one, two, many = (live_bytes_per_worker(workers) for workers in (1, 2, 100))
    assert 20 * GIB > one > 2 * two > 0
    # The base is there once, whatever the number of workers.
    assert many >= machine.LEAST_BYTES
    assert live_bytes_per_worker(100, 4 * GIB) >= 4 * GIB + machine.LEAST_BYTES
    assert live_bytes_per_worker(2, 4 * GIB) - two == pytest.approx(4 * GIB * (1 - 0.5 / 1.6), rel=0.01)


def test_here_something_is_known() -> None:
    assert free_bytes() > 100 << 20
