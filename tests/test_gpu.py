"""What must hold for GPUs, as far as it shows without one; `make gpu-check` and `make gpu-bench` do the rest."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compose_models import alone
from torch.nn.functional import layer_norm

import autopeft.executors.actor as actor
import autopeft.search.machine as machine
import autopeft.trial.checkpoint as checkpoint
from autopeft.compose.adapt import adapt
from autopeft.compose.base import Carrier, meta_carrier
from autopeft.cost.memory import MemoryModel
from autopeft.cost.reserved import EXPANDABLE, allocator_settings, reserved_bytes
from autopeft.cost.step import apply_gradients, build_optimizer
from autopeft.cost.widened import Widened
from autopeft.executors.room import Share
from autopeft.search.prepared import AUTO_PACKS, Prepared
from autopeft.space.execution import PLAIN, Execution
from autopeft.strategy.jobs import Outcome
from autopeft.testing.executors import lora_job
from autopeft.trial.setup import WorkSetup
from autopeft.trial.workbench import Workbench

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def test_users_settings_of_the_allocator_stand() -> None:
    assert allocator_settings({}) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        assert allocator_settings({name: "max_split_size_mb:64"}) == {}


@pytest.mark.parametrize(("gpus", "expected"), [(0.5, "expandable_segments:True"), (0.0, None)])
def test_workers_on_gpus_start_with_them(gpus: float, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def remote(kind: object) -> Any:
        return SimpleNamespace(options=lambda **options: given.update(options) or SimpleNamespace(remote=lambda: None))

    monkeypatch.setattr(actor.ray, "remote", remote)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    actor.start_worker(Share(gpus, 1.0, 1), own=False)
    assert given["runtime_env"]["env_vars"].get("PYTORCH_ALLOC_CONF") == expected


def test_a_worker_has_its_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {None: 1.0, 0.25: 0.25, 1.0: 1.0, 4.0: 1.0}
    for asked, share in shares.items():
        spec: Any = SimpleNamespace(gpus_per_trial=asked)
        assert machine.gpu_share(spec) == share
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.gpu_bytes(0.5) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (79 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 1 << 30)
    assert machine.gpu_bytes(0.5) == (40 << 30) - machine.CONTEXT_BYTES
    assert machine.gpu_bytes(0.001) == machine.LEAST_BYTES


def test_training_is_held_to_the_limit_and_the_rest_to_the_share(
    setup: WorkSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what runs out of memory while it trains says what training takes."""
    total, held = 80 << 30, []
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7 << 30)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: held.append(share * total))
    bench = Workbench(replace(setup, memory_limit=8 << 30, gpu_share=0.5), torch.device("cuda", 0))
    share = total // 2 - machine.CONTEXT_BYTES
    assert held == [pytest.approx(share)]

    def lacks() -> Outcome:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def trains() -> Outcome:
        with bench.within_memory():
            assert held[-1] == pytest.approx(8 << 30)
            return lacks()

    job = lora_job(setup, "t")
    peaks = [bench.attempt(job, do).peak_bytes for do in (lacks, trains, lacks)]
    assert peaks == [None, 7 << 30, None]
    assert held[1:] == [pytest.approx(8 << 30), pytest.approx(share)]
    bench.release()
    assert held[-1] == total
    assert not bench.measures(replace(job, final=True))


def test_whoever_has_a_gpu_alone_is_not_held(setup: WorkSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30))
    # Torch without CUDA raises where this is called.
    Workbench(setup, torch.device("cuda", 0)).release()


@pytest.mark.parametrize(
    ("gpu", "cost", "pack", "sizes"),
    [(True, "params", "auto", AUTO_PACKS), (True, "memory", "auto", ()), (True, "memory", "4", ()),
     (False, "params", "auto", ()), (False, "memory", "4", (4,))],
)  # fmt: skip
def test_trials_whose_memory_on_a_gpu_counts_are_trained_alone(
    gpu: bool, cost: str, pack: str, sizes: tuple[int, ...]
) -> None:
    prepared: Any = SimpleNamespace(gpu=gpu, spec=SimpleNamespace(pack=pack, executor="ray", cost=cost))
    assert Prepared._packs(prepared) == sizes


def test_norms_and_softmax_are_wide_and_products_are_not() -> None:
    narrow = torch.ones(2, 4, dtype=torch.bfloat16)
    with Widened():
        assert layer_norm(narrow, (4,)).dtype == narrow.softmax(-1).dtype == narrow.sum().dtype == torch.float32
        assert (narrow @ narrow.T).dtype == (narrow + narrow).dtype == torch.bfloat16
        assert narrow.softmax(-1, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("way", [PLAIN, Execution(2), Execution(checkpointing=True)])
def test_a_step_in_bfloat16_takes_more_on_a_gpu_and_one_in_float32_does_not(
    way: Execution, bert: Carrier, folders: dict[str, Path]
) -> None:
    """Blocks that are recomputed are recomputed as they were computed, or this raises."""

    def live(gpu: bool, dtype: str) -> int:
        model = MemoryModel(
            lambda: meta_carrier(folders["bert"], kind="sequence_classification", head="mean", labels=3),
            bert.modules,
            length=64,
            dtype=dtype,
            gpu=gpu,
        )
        return model.predict(alone(bert.modules, "lora"), execution=way).bytes

    assert live(True, "float32") == reserved_bytes(live(False, "float32"))
    constant = reserved_bytes(0)
    assert live(True, "bfloat16") - constant > 1.4 * (reserved_bytes(live(False, "bfloat16")) - constant)


def test_the_moments_of_a_checkpoint_go_where_the_parameters_are(
    bert: Carrier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused optimizer of a GPU refuses a count of steps on the processor."""
    configuration = alone(bert.modules, "lora")
    model = adapt(bert, configuration, bert.modules, seed=0)
    optimizer = build_optimizer(model.groups(), configuration.training)
    for parameter in model.trained().values():
        parameter.grad = torch.ones_like(parameter)
    apply_gradients(optimizer)
    checkpoint.save_optimizer(tmp_path / "optimizer.safetensors", model, optimizer)
    names = checkpoint.parameter_names(model)
    moved = {name: torch.nn.Parameter(torch.empty_like(each, device="meta")) for name, each in names.items()}
    monkeypatch.setattr(checkpoint, "parameter_names", lambda model: moved)
    again: Any = SimpleNamespace(state={})
    checkpoint.load_optimizer(tmp_path / "optimizer.safetensors", model, again)
    assert set(again.state) <= set(moved.values())
    assert {value.device.type for state in again.state.values() for value in state.values()} == {"meta"}


def test_the_documents_say_what_was_measured() -> None:
    """Of the configurations that were measured with the settings of a search's workers."""
    found = json.loads((RESULTS / "memory_gpu.json").read_text())
    wanted = ("all", EXPANDABLE, "NVIDIA H100 80GB HBM3")
    row = next(row for row in found["errors"] if (row["model"], row["settings"], row["device"]) == wanted)
    docs = " ".join((RESULTS.parents[1] / "docs" / "cli.md").read_text().split())
    median, most = (100 * row["reserved"][name] for name in ("median", "p95"))
    counted = f"over {row['configurations']} random configurations"
    too_low = math.ceil(100 * row["reserved"]["too_low"])
    assert f"{counted} the median error is {median:.0f} %, 95 % are within {math.ceil(most)} %" in docs
    assert f"it is at most {too_low} % too low" in docs
    packs = json.loads((RESULTS / "packs-nvidia-h100-80gb-hbm3.json").read_text())
    gains: dict[str, list[float]] = {}
    for each in packs["rows"]:
        speeds = each["seconds_per_row"]
        gains.setdefault(each["members"], []).append(speeds["1"] / speeds["8"])
    lora, mixture = sorted(gains["lora"]), gains["mixture"]
    assert f"packs of eight LoRA trials train rows {lora[0]:.1f} to {lora[-2]:.1f} times" in docs
    assert f"({lora[-1]:.1f} times in one of six shapes" in docs
    assert f"packs of mixed methods {min(mixture):.1f} to {max(mixture):.1f} times" in docs
