"""The behaviour suite over every executor, and what is special about each."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopeft.errors import InputError
from autopeft.executors import Executor
from autopeft.executors.base import Progressed, cores
from autopeft.executors.inprocess import InProcessExecutor
from autopeft.testing.executors import ExecutorContract, Script, lora_job
from autopeft.trial.setup import WorkSetup


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of this file: starting one takes seconds."""
    import ray

    from autopeft.executors.ray import connect

    connect(None)
    yield
    ray.shutdown()


class TestInProcess(ExecutorContract):
    def executor(self) -> Executor:
        return InProcessExecutor()

    def test_progress_is_told_while_a_job_runs(self, setup: WorkSetup) -> None:
        script = Script([lora_job(setup, "long", rows=2000)])
        self.executor().run(script, setup)
        assert len(script.events) > 1
        assert script.ticks > 1


@pytest.mark.usefixtures("cluster")
class TestRay(ExecutorContract):
    def executor(self) -> Executor:
        from autopeft.executors.ray import RayExecutor

        return RayExecutor(workers=2)

    def test_a_killed_worker_loses_its_job_and_nothing_else(self, setup: WorkSetup) -> None:
        from autopeft.executors.ray import RayExecutor

        executor = RayExecutor(workers=2)
        script = Script([lora_job(setup, "victim", rows=20_000), lora_job(setup, "bystander", rows=32)])
        after = lora_job(setup, "after", rows=32)
        script.jobs.append(lambda events: after if script.lost else None)

        def kill() -> None:
            while not script.events:
                time.sleep(0.1)
            os.kill(executor.worker_pids()[0], signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        executor.run(script, setup)
        thread.join()
        assert [lost.job.trial for lost in script.lost] == ["victim"]  # type: ignore[union-attr]
        assert {o.job.trial for o in script.outcomes if o.status == "ok"} == {"bystander", "after"}  # type: ignore[union-attr]

    def test_a_worker_past_its_limit_reports_a_timeout(self, setup: WorkSetup) -> None:
        from dataclasses import replace

        script = Script([replace(lora_job(setup, "slow", rows=100_000), time_limit=2.0)])
        self.executor().run(script, setup)
        assert [(o.status, o.reason) for o in script.outcomes] == [("failed", "timeout")]

    def test_more_workers_than_the_cluster_holds(self) -> None:
        from autopeft.executors.ray import RayExecutor

        with pytest.raises(InputError, match="gpus_per_trial|workers"):
            RayExecutor(workers=2, gpus_per_trial=1.0)

    def test_the_base_is_shared_not_copied(self, setup: WorkSetup) -> None:
        import ray

        from autopeft.executors.ray import RayExecutor

        executor = RayExecutor(workers=2)

        @ray.remote
        def writable(shared: WorkSetup) -> bool:
            return any(array.flags.writeable or array.flags.owndata for array in shared.base.tensors.values())

        assert ray.get(writable.remote(ray.put(setup))) is False
        executor.close()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
class TestTune(ExecutorContract):
    def executor(self) -> Executor:
        from autopeft.executors.tune import TuneExecutor

        return TuneExecutor(workers=2)

    def test_progress_is_told_while_a_job_runs(self, setup: WorkSetup) -> None:
        script = Script([lora_job(setup, "long", rows=4000)])
        self.executor().run(script, setup)
        seen = [event.progress.rows for event in script.events if isinstance(event, Progressed)]
        assert seen
        assert seen == sorted(seen)
        assert {event.slot for event in script.events} == {script.outcomes and script.events[-1].slot}


@pytest.mark.parametrize(("text", "most"), [("150000 100000", 1), ("800000 100000", 8), ("50000 100000", 1)])
def test_cores_keep_to_the_quota_of_the_control_group(
    text: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autopeft.executors.base.CGROUP", tmp_path / "cpu.max")
    unlimited = cores()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores() == unlimited
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    assert cores() == min(unlimited, most)


def test_the_login_token_is_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autopeft.executors.ray import own_token

    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    own_token()
    token = tmp_path / ".ray" / "auth_token"
    first = token.read_text()
    assert token.stat().st_mode & 0o077 == 0
    token.chmod(0o644)
    own_token()
    assert token.read_text() == first
    assert token.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_no_cluster_at_the_address() -> None:
    import ray

    from autopeft.executors.ray import RayExecutor

    ray.shutdown()
    with pytest.raises(InputError, match="ray_address"):
        RayExecutor(workers=1, address="127.0.0.1:1")
