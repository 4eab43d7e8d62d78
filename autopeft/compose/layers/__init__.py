"""Torch layers of the methods that peft lacks, by the `layer` key of their row in the table of methods."""

from __future__ import annotations

from autopeft.compose.layers.bias import BiasPart
from autopeft.compose.layers.bottleneck import CompacterPart, ParallelPart, SerialPart
from autopeft.compose.layers.dropout import AdapterDropout, reseed
from autopeft.compose.layers.gated import GatedLowRankPart, GatedPrefixPart, GatedSerialPart
from autopeft.compose.layers.part import OwnPart, Place
from autopeft.compose.layers.prefix import PrefixPart
from autopeft.compose.layers.scale import ScalePart
from autopeft.compose.layers.sparse import SparsePart, TokensPart

__all__ = ["LAYERS", "AdapterDropout", "OwnPart", "Place", "reseed"]

LAYERS: dict[str, type[OwnPart]] = {
    "serial": SerialPart,
    "parallel": ParallelPart,
    "prefix": PrefixPart,
    "bias": BiasPart,
    "ssf": ScalePart,
    "compacter": CompacterPart,
    "sparse": SparsePart,
    "tokens": TokensPart,
    "gated_lora": GatedLowRankPart,
    "gated_serial": GatedSerialPart,
    "gated_prefix": GatedPrefixPart,
}
