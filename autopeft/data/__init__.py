"""Task data: read and checked, tokenised once, cut into deterministic batches."""

from __future__ import annotations
