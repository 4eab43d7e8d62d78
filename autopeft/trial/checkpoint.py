"""What a trial leaves on disk after each rung, so that any worker can take it up again.

``trials/<trial>/rung-<k>/adapter`` is a complete adapter folder, ``optimizer.safetensors`` the optimizer's moments
(and parameters that the adapter folder holds rounded), ``outputs.safetensors`` the per-example outputs. A rung folder
appears under its name only when it is complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as pack_arrays
from safetensors.torch import load_file, save_file

from autopeft.compose.adapt import AdaptedModel
from autopeft.data.encoded import Array

EXACT = "value"
"""In the optimizer's file: a parameter itself, beside its moments."""


def rung_folder(folder: Path, rung: int) -> Path:
    """Where a rung's files are."""
    return folder / f"rung-{rung}"


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Arrays as one safetensors file, complete or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + f".{os.getpid()}")
    temporary.write_bytes(pack_arrays({name: np.ascontiguousarray(value) for name, value in arrays.items()}))
    os.replace(temporary, path)


def read_arrays(path: Path) -> dict[str, Array]:
    """The inverse of `write_arrays`."""
    return dict(load_arrays(path))


def parameter_names(model: AdaptedModel) -> dict[str, torch.nn.Parameter]:
    """Trainable parameters under stable names, ``<group>.<index>``."""
    return {f"{group}.{i}": p for group, ps in model.groups().items() for i, p in enumerate(ps)}


def save_optimizer(
    path: Path, model: AdaptedModel, optimizer: torch.optim.Optimizer, rounded: Sequence[str] = ()
) -> None:
    """The optimizer's moments, by parameter.

    Args:
        path: Where to.
        model: What is trained.
        optimizer: Of its parameters.
        rounded: Groups whose parameters the adapter folder does not hold to the last digit: they are kept here as well,
            so that a trial that is taken up again is the same trial.
    """
    moments = {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in parameter_names(model).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    for name, parameter in parameter_names(model).items():
        if name.rpartition(".")[0] in rounded:
            moments[f"{name}/{EXACT}"] = parameter.detach().cpu().contiguous()
    save_file(moments, path)


def load_optimizer(path: Path, model: AdaptedModel, optimizer: torch.optim.Optimizer) -> None:
    """The inverse of `save_optimizer`."""
    stored = load_file(path)
    for name, parameter in parameter_names(model).items():
        state = {key.rpartition("/")[2]: value for key, value in stored.items() if key.rpartition("/")[0] == name}
        exact = state.pop(EXACT, None)
        if exact is not None:
            parameter.data.copy_(exact)
        if state:
            # The fused optimizer counts its steps where the parameter is.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def finish_rung(working: Path, final: Path) -> None:
    """Give a complete working folder its name; drop the rung before the previous one to bound the disk."""
    if final.exists():
        shutil.rmtree(final)
    os.replace(working, final)
    rung = int(final.name.rpartition("-")[2])
    shutil.rmtree(rung_folder(final.parent, rung - 2), ignore_errors=True)
