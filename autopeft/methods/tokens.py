"""Trained embeddings of chosen tokens."""

from __future__ import annotations

from autopeft.methods.base import Knobs, Method, Paper, Rate, SiteShape

COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)


def _count(site: SiteShape, knobs: Knobs) -> int:
    return int(knobs["count"]) * site.out_features


TRAINABLE_TOKENS = Method(
    name="trainable_tokens",
    family="selective",
    paper=Paper("Trainable tokens, as in peft", "https://github.com/huggingface/peft/pull/2376"),
    roles=frozenset({"embedding"}),
    slots=("extra",),
    rate=Rate(3e-4, 3e-3, 2e-2),
    count=_count,
    size="count",
    # The tokens that are most frequent in the training data; an embedding has one row for each token.
    sizes=lambda site: tuple(count for count in COUNTS if count <= site.in_features),
    layer="tokens",
    chooses="tokens",
    extra_bytes=lambda site, knobs: 8 * int(knobs["count"]),
    tier=2,
    quantised=True,
)
