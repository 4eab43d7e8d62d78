"""The table of PEFT methods.

A new method is one file beside this one and one row in `METHODS`; it then appears in the default space (tier 1), in
``autopeft ls methods`` and in the contract tests.
"""

from __future__ import annotations

from autopeft.methods.base import Family, Knobs, Method, Paper, Rate, SiteShape, Slot
from autopeft.methods.bias import BIAS
from autopeft.methods.bottleneck import PARALLEL, SERIAL
from autopeft.methods.ia3 import IA3
from autopeft.methods.layernorm import LAYERNORM
from autopeft.methods.lora import DORA, LORA
from autopeft.methods.prefix import PREFIX

__all__ = ["METHODS", "Family", "Knobs", "Method", "Paper", "Rate", "SiteShape", "Slot"]

METHODS: dict[str, Method] = {
    method.name: method for method in (LORA, DORA, IA3, SERIAL, PARALLEL, PREFIX, BIAS, LAYERNORM)
}
