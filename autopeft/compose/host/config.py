"""The config of hybrid adapters, and those of peft for its own methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.compose.manifest import MANIFEST, check_manifest, write_manifest
from autopeft.methods import METHODS

__all__ = ["ADAPTER", "HYBRID", "PEFT_VERSION", "TASK_TYPES", "HybridConfig", "stock_config", "tensor_prefix"]

ADAPTER = "default"
TASK_TYPES = {"stock": "SEQ_CLS", "lm": "CAUSAL_LM", "cls": "FEATURE_EXTRACTION", "mean": "FEATURE_EXTRACTION"}
"""Head -> what peft calls the task."""
SCHEMA = 1
PEFT_VERSION = "0.21."


class _TypeName(str):
    """A peft type outside of peft's enum: equal to its string, with the `value` that peft's messages ask for."""

    @property
    def value(self) -> str:
        return str(self)


HYBRID = _TypeName("AUTOPEFT_HYBRID")


@dataclass
class HybridConfig(PeftConfig):
    """The config of a hybrid adapter: which parts sit where.

    Attributes:
        schema: Version of this layout.
        sites: Full module name -> parts as plain values, from inner to outer.
        kv_features: Module name -> key heads x head width, for modules with a prefix.
        dropout: Dropout on the input of the parts.
        modules_to_save: Layers of the task class that are trained and saved as a whole.
        bias: Always ``none``: biases are parts.
    """

    # peft reads it; the sites say everything, so it is no field and is not saved.
    target_modules: ClassVar[None] = None

    schema: int = SCHEMA
    sites: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    kv_features: dict[str, int] = field(default_factory=dict)
    dropout: float = 0.0
    modules_to_save: list[str] | None = None
    bias: str = "none"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """As peft's; in a local folder that has a manifest, all files are checked against it.

        That is so for `PeftModel.from_pretrained` and for another adapter by `load_adapter`; not where a config is
        given that was read before, for files of a hub, and for an adapter that is loaded again under the same name.

        Raises:
            DamagedFile: A file is missing or is not what was written.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        if (folder / MANIFEST).is_file():
            check_manifest(folder)
        return super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As peft's, after the weights; over a folder of autopeft's, its manifest is written anew."""
        super().save_pretrained(save_directory, **kwargs)
        if (Path(save_directory) / MANIFEST).is_file():
            write_manifest(Path(save_directory))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = HYBRID
        if self.schema != SCHEMA:
            raise ValueError(
                f"this adapter has schema {self.schema}; this autopeft reads {SCHEMA}: install a newer one"
            )


def stock_config(
    method: str,
    knobs: Mapping[str, Any],
    names: list[str] | None,
    *,
    dropout: float = 0.0,
    module: nn.Module | None = None,
    **extra: Any,
) -> PeftConfig:
    """The stock config for a method that it ships.

    Args:
        method: Name in the table.
        knobs: Its knobs.
        names: Full names of the modules that it sits on; None for a prompt, which sits on none.
        dropout: Dropout on the input, for methods that have one.
        module: One of those modules: peft wants to know how it stores its weight.
        extra: Further fields of the config.
    """
    row = METHODS[method]
    if row.peft_type is None:
        raise ValueError(f"peft has no {method}")
    values = row.stock(knobs)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(row.peft_type)]
    if row.dropout is not None:
        values[row.dropout] = dropout
    if "feedforward" in values:
        values["feedforward_modules"] = list(names or ()) if values.pop("feedforward") else []
    if "fan_in_fan_out" in config_class.__dataclass_fields__:
        values["fan_in_fan_out"] = isinstance(module, Conv1D)
    if names is not None:
        values["target_modules"] = list(names)
    config = config_class(**{**values, **extra})
    if row.peft_type == "SHIRA" and module is not None and module.weight.is_meta:
        config.mask_fn = _any_mask
    return config


def _any_mask(base_layer: nn.Module, r: int, **more: Any) -> torch.Tensor:
    """A mask with the right number of weights, where there are no values to choose by: 1 at the chosen ones."""
    shape = base_layer.weight.shape
    mask = torch.zeros(shape.numel(), device="cpu")
    mask[: int(r) * sum(shape)] = 1.0
    return mask.view(shape)


def tensor_prefix(method: str) -> str:
    """What the names of a method's tensors begin with: LoRA, DoRA and AdaLoRA cannot share a module."""
    row = METHODS[method]
    if row.peft_type is None:
        return str(row.layer)
    return str(PEFT_TYPE_TO_PREFIX_MAPPING[PeftType(row.peft_type)])
