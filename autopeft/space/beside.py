"""What one config of plain peft says of two methods: LoRA or DoRA, and trained biases beside it."""

from __future__ import annotations

from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration

__all__ = ["BIASES_STAY", "BIAS", "without_biases", "writes_base_biases"]

BIAS = "bias"
COMMUTES = frozenset({"lora"})
"""Methods that add to what the frozen layer gives: a trained bias may come before or after them."""
BIASES_STAY = (
    "the adapter writes trained biases over those of the base: switching it off in plain peft does not restore them, "
    "load the base again for that; autopeft.load keeps the base as it is"
)
"""What the user of such an adapter must know."""


def without_biases(configuration: Configuration) -> Configuration | None:
    """The method of peft that trained biases stand beside.

    Args:
        configuration: What was trained.

    Returns:
        The configuration without its biases; None where it has none, or has anything else that peft's config of that
        method does not say.
    """
    rest = [method for method in configuration.methods if method != BIAS]
    if BIAS not in configuration.methods or len(rest) != 1 or rest[0] not in METHODS[BIAS].beside:
        return None
    for _, parts in configuration.sites:
        # DoRA takes the base's bias off before it scales: only a bias outside of it is the same in plain peft.
        if parts[0].method == BIAS and len(parts) > 1 and rest[0] not in COMMUTES:
            return None
    kept = {name: [part for part in parts if part.method != BIAS] for name, parts in configuration.sites}
    return Configuration.of(kept, configuration.training)


def writes_base_biases(configuration: Configuration, target: str) -> bool:
    """Whether an adapter that is saved for a target overwrites biases of the base when plain peft loads it."""
    return target == "peft" and without_biases(configuration) is not None
