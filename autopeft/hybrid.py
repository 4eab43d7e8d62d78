"""Importing this module teaches peft to load adapters that mix methods (type ``AUTOPEFT_HYBRID``).

In production, one line before the ordinary ``PeftModel.from_pretrained(base, folder)``::

    import autopeft.hybrid
"""

from __future__ import annotations

from autopeft.compose.host import HYBRID, HybridConfig, HybridModel, register

__all__ = ["HYBRID", "HybridConfig", "HybridModel", "register"]

register()
