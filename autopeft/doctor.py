"""What works on this machine and what does not, found out by trying.

`checks` is what ``autopeft doctor`` prints; `gpu_check` is the part that needs a GPU and is run by ``make gpu-check``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Check", "checks", "gpu_check"]

State = Literal["ok", "warn", "fail"]

UI_PORT = 5000
GPU_LINE = "Install the torch build for your CUDA version, as PyTorch's Get started page says (docs/install.md)"
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        state: ``ok``; ``warn`` (works, with less); ``fail`` (something needed is broken).
        found: What was found.
        next_step: What to do about it; empty when there is nothing to do.
    """

    name: str
    state: State
    found: str
    next_step: str = ""


def checks(*, start_ray: bool = True) -> list[Check]:
    """Look at everything that a search needs.

    Args:
        start_ray: Whether Ray is started for a moment, to see whether it comes up and what it finds.
    """
    found = [_python(), *_packages(), _torch(), *_gpus()]
    if start_ray:
        found.append(_ray())
    return [
        *found,
        _bfloat16(),
        _threads(),
        _computing(),
        _bitsandbytes(),
        _memory(),
        _disk(),
        _home(),
        _hub(),
        _port(),
    ]


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> list[Check]:
    from packaging.requirements import Requirement

    try:
        texts = importlib.metadata.requires("autopeft") or []
    except importlib.metadata.PackageNotFoundError:
        return [Check("packages", "warn", "autopeft itself is not installed, only on the path", "Run pip install -e .")]
    found, wrong = [], []
    for requirement in (Requirement(text) for text in texts):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing (needs {requirement.specifier})")
            continue
        # A local build (2.13.0+cpu) counts as its release.
        if not requirement.specifier.contains(version.partition("+")[0], prereleases=True):
            wrong.append(f"{requirement.name} {version} is outside {requirement.specifier}")
        found.append(f"{requirement.name} {version}")
    if wrong:
        return [Check("packages", "fail", "; ".join(wrong), "Run pip install -c constraints.txt autopeft.")]
    return [Check("packages", "ok", ", ".join(found))]


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "fail", f"cannot be imported: {error}", "Install torch again.")
    if torch.version.cuda:
        return Check("torch", "ok", f"{torch.__version__}, built for CUDA {torch.version.cuda}")
    if getattr(torch.version, "hip", None):
        return Check("torch", "ok", f"{torch.__version__}, built for ROCm {torch.version.hip}")
    return Check("torch", "ok", f"{torch.__version__}, built for CPU")


def _gpus() -> list[Check]:
    try:
        import torch
    except (ImportError, OSError):
        return []
    if torch.cuda.is_available():
        named = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            named.append(f"{torch.cuda.get_device_name(index)} ({free / _GIB:.1f} of {total / _GIB:.1f} GiB free)")
        return [Check("gpu", "ok", ", ".join(named))]
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        return [Check("gpu", "warn", "a driver is installed, but torch sees no GPU", GPU_LINE + ".")]
    return [Check("gpu", "ok", "none; searches run on the processor")]


def _ray() -> Check:
    # The switch must be set before the import: Ray reads it once.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except (ImportError, OSError) as error:
        return Check("ray", "fail", f"cannot be imported: {error}", "Install ray[tune] again.")
    started = not ray.is_initialized()
    try:
        if started:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        resources = ray.cluster_resources()
    except (RuntimeError, OSError, ValueError, ConnectionError, TimeoutError, ray.exceptions.RayError) as error:
        return Check("ray", "fail", f"does not start: {error}", "Use --executor inprocess, or look into /tmp/ray.")
    finally:
        if started and ray.is_initialized():
            ray.shutdown()
    told = f"{ray.__version__} starts and sees {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(resources.get("GPU", 0)) != seen:
        return Check("ray", "warn", f"{told}; torch sees {seen} GPUs", "Look at CUDA_VISIBLE_DEVICES.")
    return Check("ray", "ok", told)


def _bfloat16() -> Check:
    flags = _processor_flags()
    if flags is None:
        return Check("bfloat16", "warn", "cannot be seen on this system", "Searches on the processor use float32.")
    units = sorted(flags & {"amx_bf16", "avx512_bf16", "bf16", "svebf16"})
    if units:
        return Check("bfloat16", "ok", f"the processor has {', '.join(units)}")
    return Check("bfloat16", "warn", "not in this processor", "Searches on it use float32, about half as fast.")


def _processor_flags() -> set[str] | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return {flag for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE) for flag in line.split()}


def _threads() -> Check:
    from autopeft.executors.base import cores

    allowed = cores()
    setting = os.environ.get("OMP_NUM_THREADS")
    told = f"{allowed} cores, OMP_NUM_THREADS {'not set' if setting is None else setting}"
    if setting is not None and (not setting.isdigit() or int(setting) > allowed):
        return Check(
            "threads",
            "warn",
            told,
            f"Unset it, or set it to at most {allowed}: more threads are far slower.",
        )
    return Check("threads", "ok", f"{told}; each worker takes its share")


def _computing() -> Check:
    from autopeft.data.cache import cache_folder
    from autopeft.trial.computing import answers

    folder = cache_folder()
    if folder is None:
        return Check(
            "cache", "warn", "switched off by AUTOPEFT_CACHE=none", "Every search measures and tokenises anew."
        )
    known = answers()
    if not known:
        return Check("cache", "ok", f"{folder}: nothing measured yet; the first search of a model here does")
    return Check("cache", "ok", f"{folder}: {len(known)} measured; the latest: {known[0].told()}")


def _bitsandbytes() -> Check:
    if importlib.util.find_spec("bitsandbytes") is None:
        return Check("bitsandbytes", "ok", "not installed (optional: 4- and 8-bit bases)")
    return Check("bitsandbytes", "ok", f"{importlib.metadata.version('bitsandbytes')} (optional)")


def _memory() -> Check:
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return Check("memory", "ok", "cannot be seen on this system")
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE)}
    free = kib.get("MemAvailable", 0) / 2**20
    told = f"{free:.1f} of {kib.get('MemTotal', 0) / 2**20:.1f} GiB free"
    if free < 2:
        return Check("memory", "warn", told, "Close something, or use --workers 1.")
    return Check("memory", "ok", told)


def _disk() -> Check:
    free = shutil.disk_usage(".").free / _GIB
    told = f"{free:.1f} GiB free in this folder"
    if free < 0.2:
        return Check("disk", "fail", told, "Free some space, or use --out on another disk.")
    if free < 2:
        return Check("disk", "warn", told, "Checkpoints of a search may need more.")
    return Check("disk", "ok", told)


def _home() -> Check:
    home = Path(os.environ.get("AUTOPEFT_HOME") or Path.home() / ".autopeft")
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        return Check(
            "home", "fail", f"{home} cannot be written: {error.strerror}", "Set AUTOPEFT_HOME to a folder of yours."
        )
    return Check("home", "ok", f"{home} can be written")


def _hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Check("hub", "warn", "switched off by HF_HUB_OFFLINE", "Models and data must be folders or files.")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=3):
            pass
    except urllib.error.HTTPError as error:
        return Check(
            "hub", "warn", f"{endpoint} answers {error.code}", "Models and data may have to be folders or files."
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Check(
            "hub",
            "warn",
            f"no access ({getattr(reason, 'strerror', None) or reason})",
            "Models and data must be folders or files.",
        )
    return Check("hub", "ok", f"{endpoint} answers")


def _port() -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", UI_PORT))
        except OSError:
            return Check("ui port", "warn", f"{UI_PORT} is taken", "Use autopeft ui --port with another one.")
    return Check("ui port", "ok", f"{UI_PORT} is free")


def gpu_check(result: Path = Path("benchmarks/results/gpu-check.json")) -> int:
    """Check what needs a GPU: bfloat16, predicted against allocated memory, two Ray actors on one device.

    Args:
        result: Where the findings are stored. Nothing is written where there is no GPU.

    Returns:
        0 when all is well or there is no GPU; 1 otherwise.
    """
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch sees no GPU here; nothing was checked and nothing was written.")
        return 0
    findings: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": torch.cuda.get_device_name(0),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "bfloat16": _gpu_bfloat16(),
        "memory": _gpu_memory(),
        "actors": _gpu_actors(),
    }
    passed = all(findings[part]["passed"] for part in ("bfloat16", "memory", "actors"))
    findings["passed"] = passed
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(findings, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(findings, indent=2))
    return 0 if passed else 1


def _gpu_bfloat16() -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    got = (left.to("cuda", torch.bfloat16) @ right.to("cuda", torch.bfloat16)).double().cpu()
    error = float((got - exact).norm() / exact.norm())
    # Both factors and the product are rounded to 8 bits of mantissa: about 0.3 % each, independent.
    return {"relative_error": error, "passed": error < 0.01}


def _gpu_memory() -> dict[str, Any]:
    """Allocator peak of one training step of a small stack, against the live bytes counted on the processor.

    The caching allocator rounds each tensor up to 512 bytes, and matrix products take a workspace that is no tensor.
    """
    import torch

    from autopeft.cost.live import measure

    def step(device: str) -> None:
        layers = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024, device=device) for _ in range(8)])
        optimizer = torch.optim.AdamW(layers.parameters(), foreach=False)
        layers(torch.ones(512, 1024, device=device)).square().mean().backward()
        optimizer.step()

    predicted = measure(lambda counter: step("cpu"), scratch=False).bytes
    step("cuda")  # The first product allocates its workspace, which stays.
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step("cuda")
    torch.cuda.synchronize()
    allocated = torch.cuda.max_memory_allocated() - before
    ratio = allocated / predicted
    return {"predicted_bytes": predicted, "allocated_bytes": allocated, "ratio": ratio, "passed": 0.9 < ratio < 1.1}


def _gpu_actors() -> dict[str, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:

        class Half:
            def product(self) -> tuple[str, float]:
                import torch

                ones = torch.ones(256, 256, device="cuda")
                return os.environ.get("CUDA_VISIBLE_DEVICES", ""), float((ones @ ones)[0, 0])

        if ray.cluster_resources().get("GPU", 0) < 1:
            return {"passed": False, "detail": "Ray sees no GPU"}
        # As many pairs as there are devices could be spread; two halves must share the first one.
        actor = ray.remote(num_gpus=0.5)(Half)
        halves = [actor.remote() for _ in range(2)]
        answers = ray.get([half.product.remote() for half in halves], timeout=120)
    finally:
        ray.shutdown()
    return {"devices": [device for device, _ in answers], "passed": all(value == 256.0 for _, value in answers)}
