"""The table of PEFT methods.

A new method is one file beside this one and one row in `METHODS`; it then appears in the default space (tier 1), in
``autopeft ls methods`` and in the contract tests.
"""

from __future__ import annotations

from autopeft.methods.base import Family, Knobs, Method, Paper, Rate, SiteShape, Slot
from autopeft.methods.bias import BEFT, BIAS
from autopeft.methods.bottleneck import PARALLEL, SERIAL
from autopeft.methods.compacter import COMPACTER
from autopeft.methods.gated import GATED_LORA, GATED_PREFIX, GATED_SERIAL
from autopeft.methods.glora import GLORA
from autopeft.methods.ia3 import IA3
from autopeft.methods.layernorm import LAYERNORM
from autopeft.methods.loha import LOHA
from autopeft.methods.lokr import LOKR
from autopeft.methods.lora import ADALORA, DORA, LORA
from autopeft.methods.lowrank import DEFT, DELORA, GRALORA, HIRA, MISS, PEANUT
from autopeft.methods.orthogonal import BOFT, HRA, OFT, PSOFT, ROAD
from autopeft.methods.prefix import PREFIX
from autopeft.methods.scale import SSF
from autopeft.methods.sparse import FISHMASK, OSF, PAFI, SHIRA, SUPERTUNING
from autopeft.methods.spectral import C3A, FOURIERFT, WAVEFT
from autopeft.methods.tokens import TRAINABLE_TOKENS
from autopeft.methods.unsearchable import UNSEARCHABLE
from autopeft.methods.whole import (
    ADAMSS,
    CPT,
    FROD,
    LILY,
    P_TUNING,
    PREFIX_TUNING,
    PROMPT_TUNING,
    PVERA,
    RANDLORA,
    TINYLORA,
    UNILORA,
    VBLORA,
    VERA,
)

__all__ = ["METHODS", "Family", "Knobs", "Method", "Paper", "Rate", "SiteShape", "Slot"]

_TIER_1 = (LORA, DORA, IA3, SERIAL, PARALLEL, PREFIX, BIAS, LAYERNORM)
_REPARAMETERIZED = (ADALORA, LOHA, LOKR, HIRA, GRALORA, DELORA, MISS, DEFT, GLORA)
_TRANSFORMED = (OFT, BOFT, HRA, PSOFT, ROAD, FOURIERFT, WAVEFT, C3A)
_ADDITIVE = (PEANUT, COMPACTER, SSF, BEFT)
_SELECTIVE = (SHIRA, PAFI, FISHMASK, SUPERTUNING, OSF, TRAINABLE_TOKENS)
_GATED = (GATED_LORA, GATED_SERIAL, GATED_PREFIX)

_WHOLE = (LILY, VERA, PVERA, VBLORA, UNILORA, TINYLORA, RANDLORA, FROD, ADAMSS)
_PROMPTS = (PROMPT_TUNING, P_TUNING, PREFIX_TUNING, CPT)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *_TIER_1,
        *_REPARAMETERIZED,
        *_TRANSFORMED,
        *_ADDITIVE,
        *_SELECTIVE,
        *_GATED,
        *_WHOLE,
        *_PROMPTS,
        *UNSEARCHABLE,
    )
}
"""All methods by name: those of the default space first."""
