"""What methods cost on a model that everybody knows: BERT-base, written down as its places."""

from __future__ import annotations

from autopeft.methods import Method
from autopeft.space.modules import ModuleMap, Role, Site

__all__ = ["BERT_BASE", "parameters"]

BLOCKS, WIDE, INNER, VOCABULARY = 12, 768, 3072, 30522
PARAMS = 109_482_240


def _linear(block: int, role: Role, wide_in: int, wide_out: int, kv_features: int | None = None) -> Site:
    reads = f"{block}.up" if role == "down" else None
    params = wide_in * wide_out + wide_out
    wide_read = None if reads is None else WIDE
    return Site(f"{block}.{role}", block, role, wide_in, wide_out, True, params, reads, wide_read, kv_features)


def _bert_base() -> ModuleMap:
    sites = [Site("embedding", 0, "embedding", VOCABULARY, WIDE, False, VOCABULARY * WIDE)]
    for block in range(BLOCKS):
        sites += [
            _linear(block, "query", WIDE, WIDE),
            _linear(block, "key", WIDE, WIDE, kv_features=WIDE),
            _linear(block, "value", WIDE, WIDE),
            _linear(block, "output", WIDE, WIDE),
            Site(f"{block}.norm", block, "norm", WIDE, WIDE, True, 2 * WIDE),
            _linear(block, "up", WIDE, INNER),
            _linear(block, "down", INNER, WIDE),
            Site(f"{block}.last_norm", block, "norm", WIDE, WIDE, True, 2 * WIDE),
        ]
    return ModuleMap(tuple(sites), BLOCKS, PARAMS, WIDE, "bert", writes_tokens=True)


BERT_BASE = _bert_base()


def parameters(method: Method) -> dict[int | None, int]:
    """Legal value of the size knob -> trainable parameters on everything in BERT-base that the method fits.

    The key is None for a method without sizes. Sizes that are not legal at every place are left out.
    """
    if method.whole:
        if not method.allows(BERT_BASE):
            return {}
        sizes: tuple[int | None, ...] = tuple(method.sizes(BERT_BASE)) or (None,)
        return {size: method.count(BERT_BASE, method.knobs(BERT_BASE, size)) for size in sizes}
    places = [site for site in BERT_BASE.sites if method.fits(site)]
    if not places:
        return {}
    sizes = (None,)
    if method.size is not None:
        common = set(method.sizes(places[0])).intersection(*(method.sizes(site) for site in places))
        sizes = tuple(sorted(common))
    return {size: sum(method.count(site, method.knobs(site, size)) for site in places) for size in sizes}
