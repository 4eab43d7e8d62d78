"""The doctor, on this machine and on machines that are broken."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from autopeft import doctor
from autopeft.cli import main
from autopeft.cli.machine import port_free
from autopeft.doctor import Check, checks, gpu_check

NAMES = {
    "python",
    "packages",
    "torch",
    "gpu",
    "bfloat16",
    "threads",
    "cache",
    "bitsandbytes",
    "memory",
    "disk",
    "home",
    "hub",
    "ui port",
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("AUTOPEFT_HOME", str(tmp_path / "home"))


def found(name: str) -> Check:
    return next(check for check in checks(start_ray=False) if check.name == name)


def test_this_machine_is_fit() -> None:
    made = checks(start_ray=False)
    assert {check.name for check in made} == NAMES
    assert [check for check in made if check.state == "fail"] == []
    assert all(check.found for check in made)
    assert all(check.next_step for check in made if check.state != "ok"), "every warning says what to do"


@pytest.mark.slow
def test_ray_is_started_and_stopped() -> None:
    import ray

    check = doctor._ray()
    assert check.state == "ok"
    assert "CPUs" in check.found
    assert not ray.is_initialized()


def test_offline_is_a_warning() -> None:
    assert found("hub").state == "warn"


def test_a_hub_that_does_not_answer_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert found("hub").state == "warn"


def test_a_home_that_cannot_be_written_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTOPEFT_HOME", str(tmp_path / "file" / "home"))
    assert found("home").state == "fail"
    assert main(["doctor", "--quick", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "broken"
    assert [check["name"] for check in document["checks"] if check["state"] == "fail"] == ["home"]


@pytest.mark.parametrize(
    ("requirements", "told"),
    [(["numpy>=99"], "numpy"), (["no-such-package-of-ours>=1"], "missing")],
)
def test_wrong_versions_are_a_failure(requirements: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    check = found("packages")
    assert check.state == "fail"
    assert told in check.found


def test_extras_and_local_builds_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["nothing>=1; extra == 'gguf'", "torch>=2.13,<3"])
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cu130")
    assert found("packages").state == "ok"


@pytest.mark.parametrize(("setting", "state"), [("1", "ok"), ("9999", "warn"), ("many", "warn")])
def test_threads(setting: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert found("threads").state == state


@pytest.mark.parametrize(("flags", "state"), [({"avx512_bf16"}, "ok"), ({"avx2"}, "warn"), (None, "warn")])
def test_bfloat16(flags: set[str] | None, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_processor_flags", lambda: flags)
    assert found("bfloat16").state == state


@pytest.mark.parametrize(("free", "state"), [(10.0, "ok"), (1.0, "warn"), (0.1, "fail")])
def test_disk(free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": int(free * 2**30)})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert found("disk").state == state


def test_the_port_of_the_pages(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not port_free(port)
        assert main(["ui", "--port", str(port), "--tracking-uri", "sqlite:///x.db"]) == 2
    assert "--port" in capsys.readouterr().err
    assert not port_free(0)
    assert not port_free(70000)


def test_the_table_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Models and data must be folders or files." in text


def test_gpu_check_without_a_gpu_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here: `make gpu-check` runs the check itself")
    result = tmp_path / "gpu-check.json"
    assert gpu_check(result) == 0
    assert "no GPU" in capsys.readouterr().out
    assert not result.exists()
