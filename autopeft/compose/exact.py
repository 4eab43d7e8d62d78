"""The base's biases as its files hold them, where the base in memory is rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import nn

__all__ = ["stored_biases"]


def stored_biases(model: nn.Module, folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The float32 values of a rounded model's biases, by their names in the model.

    Names in files may have a prefix more or less than in the model. A tensor counts only if it rounds to exactly what
    the model holds; biases for which none does are left out.

    Args:
        model: Loaded in a type of less precision.
        folder: Its safetensors files; of these only biases are read.
    """
    wanted = {n: p for n, p in model.named_parameters() if n == "bias" or n.endswith(".bias")}
    # Checkpoints of BERT's time call the bias of a norm beta.
    spelled = {name: (name, f"{name.removesuffix('bias')}beta") for name in wanted}
    found: dict[str, npt.NDArray[np.float32]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if key.endswith(("bias", "beta"))]  # noqa: SIM118
            for name, parameter in wanted.items():
                for key in keys:
                    if name in found or not any(_same(key, spelling) for spelling in spelled[name]):
                        continue
                    value = file.get_tensor(key).to(torch.float32)
                    if value.shape == parameter.shape and torch.equal(value.to(parameter.dtype), parameter):
                        found[name] = value.numpy()
    return found


def _same(key: str, name: str) -> bool:
    return key == name or key.endswith(f".{name}") or name.endswith(f".{key}")
