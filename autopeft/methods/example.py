"""What methods cost on a model that everybody knows: BERT-base, written down as its places."""

from __future__ import annotations

from dataclasses import dataclass

from autopeft.methods.base import Method

__all__ = ["BERT_BASE", "parameters"]

BLOCKS, WIDE, INNER, VOCABULARY = 12, 768, 3072, 30522


@dataclass(frozen=True, slots=True)
class ExampleSite:
    """A place, as `autopeft.space.modules.Site` describes them."""

    name: str
    role: str
    in_features: int
    out_features: int
    params: int
    bias: bool = True
    reads: str | None = None
    read_features: int | None = None
    kv_features: int | None = None
    transposed: bool = False
    crosses: bool = False


@dataclass(frozen=True, slots=True)
class ExampleModel:
    """A model, as `autopeft.space.modules.ModuleMap` describes them."""

    sites: tuple[ExampleSite, ...]
    hidden_size: int
    reads_tokens: bool = True
    writes_tokens: bool = True


def _linear(block: int, role: str, wide_in: int, wide_out: int, kv_features: int | None = None) -> ExampleSite:
    reads = f"{block}.up" if role == "down" else None
    params = wide_in * wide_out + wide_out
    name = f"{block}.{role}"
    return ExampleSite(
        name, role, wide_in, wide_out, params, True, reads, WIDE if reads else None, kv_features=kv_features
    )


def _bert_base() -> ExampleModel:
    sites = [ExampleSite("embedding", "embedding", VOCABULARY, WIDE, VOCABULARY * WIDE, bias=False)]
    for block in range(BLOCKS):
        sites += [
            _linear(block, "query", WIDE, WIDE),
            _linear(block, "key", WIDE, WIDE, kv_features=WIDE),
            _linear(block, "value", WIDE, WIDE),
            _linear(block, "output", WIDE, WIDE),
            ExampleSite(f"{block}.norm", "norm", WIDE, WIDE, 2 * WIDE),
            _linear(block, "up", WIDE, INNER),
            _linear(block, "down", INNER, WIDE),
            ExampleSite(f"{block}.last_norm", "norm", WIDE, WIDE, 2 * WIDE),
        ]
    return ExampleModel(tuple(sites), WIDE)


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
