"""Importing this module teaches peft to load adapters that mix methods (type ``AUTOPEFT_HYBRID``).

In production, one line before the ordinary ``PeftModel.from_pretrained(base, folder)``::

    import autopeft.hybrid

Who builds such an adapter by hand, with `peft.get_peft_model(model, HybridConfig(...))`, and has parts in it
whose places are chosen (FishMask, PaFi, trainable tokens), calls `choose(model, data)` before training.
"""

from __future__ import annotations

from autopeft.compose.choose import TrainingData, choose
from autopeft.compose.host import HYBRID, HybridConfig, HybridModel, register

__all__ = ["HYBRID", "HybridConfig", "HybridModel", "TrainingData", "choose", "register"]

register()
