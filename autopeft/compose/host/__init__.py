"""What touches peft's internals: the hybrid tuner, one peft tuner that hosts parts of several methods, per module.

Everything here relies on peft 0.21's internals, and nothing elsewhere does: the hook `_create_and_replace` per module,
structural saving (what a `BaseTunerLayer` holds beside `base_layer` is the adapter), lookup tables keyed by type, and
prompt encoders.
"""

from __future__ import annotations

from autopeft.compose.host.access import (
    adapted_modules,
    asks_for_training,
    freeze_constants,
    hosted_parts,
    kept_modules,
    part_parameters,
    recompute_constants,
)
from autopeft.compose.host.casts import spare_casts
from autopeft.compose.host.config import (
    ADAPTER,
    HYBRID,
    PEFT_VERSION,
    TASK_TYPES,
    HybridConfig,
    stock_config,
    tensor_prefix,
)
from autopeft.compose.host.delegated import own_dropouts
from autopeft.compose.host.prompts import begin_as_examples, exact_prompt, taken_positions, virtual_tokens
from autopeft.compose.host.routes import asks_base, changed_modules, frozen_of, route_attention
from autopeft.compose.host.tuner import HybridModel, register

__all__ = [
    "ADAPTER",
    "HYBRID",
    "PEFT_VERSION",
    "TASK_TYPES",
    "HybridConfig",
    "HybridModel",
    "adapted_modules",
    "asks_base",
    "asks_for_training",
    "begin_as_examples",
    "changed_modules",
    "exact_prompt",
    "freeze_constants",
    "frozen_of",
    "hosted_parts",
    "kept_modules",
    "own_dropouts",
    "part_parameters",
    "recompute_constants",
    "register",
    "route_attention",
    "spare_casts",
    "stock_config",
    "taken_positions",
    "tensor_prefix",
    "virtual_tokens",
]
