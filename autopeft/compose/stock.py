"""Adapters that plain peft has written: what a user runs today, loaded to be compared."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from autopeft.compose.adapt import AdaptedModel
from autopeft.compose.base import Carrier
from autopeft.compose.host import ADAPTER, kept_modules
from autopeft.compose.store import ABOUT, CONFIG, WEIGHTS
from autopeft.errors import InputError
from autopeft.space.configuration import Configuration, Training

__all__ = ["is_stock_folder", "load_stock", "stock_head", "stock_weights"]

TASK_TYPES = {"causal_lm": "CAUSAL_LM"}
CLASSIFIER = "SEQ_CLS"
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Starting values of LoRA that leave the base's weights as they are."""
WRITE_IT = "Give a folder written by `save_pretrained` of a peft model, or by autopeft."


def is_stock_folder(folder: str | Path) -> bool:
    """Whether a folder holds an adapter of peft's own, without what autopeft writes beside it."""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / ABOUT).exists()


def stock_head(kind: str) -> str:
    """The head under which an adapter of peft's own was trained."""
    return "lm" if kind == "causal_lm" else "stock"


def load_stock(carrier: Carrier, folder: str | Path) -> AdaptedModel:
    """Build the model of an adapter folder of peft's own, frozen.

    Args:
        carrier: The base, under the head of `stock_head`; the adapter gets a copy of it.
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        InputError: It is no such folder, does not fit the base model or the task, or would change the base's weights.
    """
    path = Path(folder)
    values = _read(path)
    _check(path, values, carrier)
    with _refusing(path):
        config = PeftConfig.from_pretrained(str(path))
        config.inference_mode = True
        # On tensors of its own: peft loads trained biases, for one, over those of the base.
        private = copy.deepcopy(carrier.model)
        model = PeftModel.from_pretrained(private, str(path), adapter_name=ADAPTER, config=config)
    tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    with safe_open(path / WEIGHTS, framework="pt") as file:
        held = {_as_peft_writes(name) for name in file.keys()}  # noqa: SIM118
    # Biases that are not in the file are the base's own: autopeft writes those that were trained.
    biased = values.get("bias", "none") != "none"
    odd = sorted(name for name in set(tensors) ^ held if name in held or not (biased and name.endswith(".bias")))
    if odd:
        raise _refused(path, f"does not hold the tensors that its config asks for (e.g. {odd[0]})")
    adapted = AdaptedModel(carrier, Configuration((), Training((), 1e-3, 1)), model, None)
    head = {id(p) for module in kept_modules(model).values() for p in module.parameters()}
    adapted.head_params = sum(p.numel() for p in adapted.parameters() if id(p) in head)
    stored = sum(tensor.numel() for name, tensor in tensors.items() if name in held)
    adapted.adapter_params = stored - adapted.head_params
    adapted.requires_grad_(False)
    return adapted.train(False)


def _as_peft_writes(name: str) -> str:
    """DoRA's magnitudes have two names that peft reads; autopeft writes the one that they have in the model."""
    return name.removesuffix(".weight") if name.endswith("lora_magnitude_vector.weight") else name


def stock_weights(folder: str | Path) -> str:
    """sha256 of the weights of an adapter folder of peft's own."""
    with (Path(folder) / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Any]:
    if not (path / WEIGHTS).is_file():
        raise _refused(path, f"has no {WEIGHTS}")
    try:
        values = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(path, f"has a {CONFIG} that cannot be read") from error
    return values if isinstance(values, dict) else {}


def _check(path: Path, values: dict[str, Any], carrier: Carrier) -> None:
    wanted = TASK_TYPES.get(carrier.kind, CLASSIFIER)
    if values.get("task_type") != wanted:
        raise _refused(path, f"is for {values.get('task_type')}, not for {wanted}")
    if values.get("init_lora_weights") not in PLAIN_STARTS:
        rule = f"was started with {values['init_lora_weights']}, which changes the base's weights"
        raise _refused(path, rule, "Save it with path_initial_model_for_weight_conversion.")
    if values.get("num_virtual_tokens") and carrier.kind == "causal_lm":
        raise _refused(path, f"is a prompt method ({values.get('peft_type')}), which cannot be compared here yet")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise _refused(path, f"lacks {error}, or asks for what this peft does not know") from error
    except (SafetensorError, RuntimeError, ValueError, TypeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # Torch says what does not fit in the second line.
        raise _refused(path, f"does not fit the base model ({' '.join(lines[:2]) or type(error).__name__})") from error


def _refused(path: Path, rule: str, step: str = WRITE_IT) -> InputError:
    return InputError.one("adapter", str(path), rule, step)
