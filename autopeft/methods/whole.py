"""Methods about the whole model: state shared between layers, or a prompt. They are searched alone, never mixed.

Their formulas are asked with the module map in place of a site, and their one part sits at the name ``""``.
"""

from __future__ import annotations

from typing import Any

from autopeft.methods.base import ATTENTION, LADDER, LINEAR, Knobs, Method, ModelShape, Paper, Rate, SiteShape, ladder

WHERE: dict[str, frozenset[str]] = {"qv": frozenset({"query", "value", "qkv"}), "attention": ATTENTION, "all": LINEAR}
"""Value of the knob ``where`` -> roles of the linear layers that share the state."""
ALL_WHERE = tuple(WHERE)
TOKENS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def adapted_sites(modules: ModelShape, knobs: Knobs) -> list[SiteShape]:
    """The linear layers that a whole-model method adapts."""
    return [site for site in modules.sites if site.role in WHERE[str(knobs["where"])]]


def _has_linear(modules: ModelShape) -> bool:
    return any(site.role in LINEAR for site in modules.sites)


def _has_plain_linear(modules: ModelShape) -> bool:
    # GPT-2's weights are stored the other way round.
    return _has_linear(modules) and not any(site.transposed for site in modules.sites if site.role in LINEAR)


def _narrowest(modules: ModelShape) -> int:
    return min(min(site.in_features, site.out_features) for site in modules.sites if site.role in LINEAR)


def _ranks(modules: ModelShape) -> tuple[int, ...]:
    return ladder(_narrowest(modules))


def _count_vera(modules: ModelShape, knobs: Knobs) -> int:
    return sum(int(knobs["r"]) + site.out_features for site in adapted_sites(modules, knobs))


def _count_pvera(modules: ModelShape, knobs: Knobs) -> int:
    # A mean and a spread for every rank.
    return sum(2 * int(knobs["r"]) + site.out_features for site in adapted_sites(modules, knobs))


def _count_tinylora(modules: ModelShape, knobs: Knobs) -> int:
    return int(knobs["u"]) * len(adapted_sites(modules, knobs))


def _count_lily(modules: ModelShape, knobs: Knobs) -> int:
    rank, experts = int(knobs["r"]), int(knobs["experts"])
    sites = adapted_sites(modules, knobs)
    alike = {(site.role, site.in_features, site.out_features): site for site in sites}
    shared = sum(rank * experts * site.out_features for site in alike.values())
    return shared + sum(rank * site.in_features + rank * experts for site in sites)


def _extra_lily(modules: ModelShape, knobs: Knobs) -> int:
    # What modules share is written once for each of them.
    sites = adapted_sites(modules, knobs)
    alike = {(site.role, site.in_features, site.out_features): site for site in sites}
    each, once = (sum(site.out_features for site in group) for group in (sites, alike.values()))
    return 4 * int(knobs["r"]) * int(knobs["experts"]) * (each - once)


def _extra_tinylora(modules: ModelShape, knobs: Knobs) -> int:
    # The frozen factors of every module.
    rank = int(knobs["r"])
    return sum(4 * rank * (site.in_features + site.out_features + 1) for site in adapted_sites(modules, knobs))


def _bases(modules: ModelShape) -> tuple[int, ...]:
    return tuple(size for size in LADDER if size <= _narrowest(modules) // 2)


def _count_randlora(modules: ModelShape, knobs: Knobs) -> int:
    total, rank = 0, int(knobs["width"]) // int(knobs["bases"])
    for site in adapted_sites(modules, knobs):
        narrow = min(site.in_features, site.out_features)
        bases = -(-narrow // rank)
        total += bases * (rank + narrow)
    return total


def _vector_length(modules: ModelShape) -> int:
    """The largest power of two up to 256 that divides all widths."""
    widths = [w for s in modules.sites if s.role in LINEAR for w in (s.in_features, s.out_features)]
    return next(size for size in (256, 128, 64, 32, 16, 8, 4, 2, 1) if all(width % size == 0 for width in widths))


def _count_vblora(modules: ModelShape, knobs: Knobs) -> int:
    length, vectors, rank = int(knobs["length"]), int(knobs["vectors"]), int(knobs["r"])
    parts = sum(site.in_features // length + site.out_features // length for site in adapted_sites(modules, knobs))
    return vectors * length + rank * vectors * parts


def _vblora(knobs: Knobs) -> dict[str, Any]:
    return {"r": knobs["r"], "num_vectors": knobs["vectors"], "vector_length": knobs["length"]}


FROD_PERMILLE = (1, 2, 5, 10, 20, 50)


def _nonzero(site: SiteShape, knobs: Knobs) -> int:
    # As peft rounds it: entries of a square that are not on its diagonal.
    square = site.in_features**2
    return max(1, min(int(square * (int(knobs["permille"]) / 1000)), square - site.in_features))


def _count_frod(modules: ModelShape, knobs: Knobs) -> int:
    return sum(site.in_features + _nonzero(site, knobs) for site in adapted_sites(modules, knobs))


def _extra_frod(modules: ModelShape, knobs: Knobs) -> int:
    # A basis and the places of the entries, for every kind of module.
    kinds = {(site.role, site.in_features, site.out_features): site for site in adapted_sites(modules, knobs)}
    return sum(4 * site.in_features**2 + 16 * _nonzero(site, knobs) + 1024 for site in kinds.values())


def _adamss_rank(site: SiteShape, knobs: Knobs) -> int:
    return min(int(knobs["r"]), site.out_features, site.in_features + int(site.bias))


def _count_adamss(modules: ModelShape, knobs: Knobs) -> int:
    # One direction in each subspace; together the subspaces hold every output.
    subspaces = int(knobs["subspaces"])
    return sum(
        min(subspaces, site.out_features) * _adamss_rank(site, knobs) + site.out_features
        for site in adapted_sites(modules, knobs)
    )


def _extra_adamss(modules: ModelShape, knobs: Knobs) -> int:
    # The frozen projection of every module, and a tensor's entry for every subspace.
    return sum(
        4 * _adamss_rank(site, knobs) * (site.in_features + 1) + 400 * int(knobs["subspaces"])
        for site in adapted_sites(modules, knobs)
    )


def _takes_prompts(modules: ModelShape) -> bool:
    # peft's prompts have the width of the residual stream; some models embed tokens in less.
    widths = {site.out_features for site in modules.sites if site.role == "embedding"}
    return modules.reads_tokens and widths <= {modules.hidden_size}


def _count_prompt(modules: ModelShape, knobs: Knobs) -> int:
    return int(knobs["tokens"]) * modules.hidden_size


def _count_p_tuning(modules: ModelShape, knobs: Knobs) -> int:
    wide, inner = modules.hidden_size, int(knobs["encoder"])
    network = (wide * inner + inner) + (inner * inner + inner) + (inner * wide + wide)
    return _count_prompt(modules, knobs) + network


def _keys(modules: ModelShape) -> int:
    return sum(site.kv_features for site in modules.sites if site.kv_features is not None)


def _count_prefix(modules: ModelShape, knobs: Knobs) -> int:
    return 2 * int(knobs["tokens"]) * _keys(modules)


def _whole(name: str, **fields: Any) -> Method:
    """A row of this file."""
    common: dict[str, Any] = {
        "roles": frozenset(),
        "slots": (),
        "allows": _has_linear,
        "targets": frozenset({"peft"}),
        "base": "own",
        "whole": True,
        "tier": 2,
    }
    return Method(name=name, **{**common, **fields})


LILY = _whole(
    "lily",
    family="reparameterized",
    paper=Paper("Low-Rank Interconnected Adaptation across Layers", "https://arxiv.org/abs/2407.09946"),
    rate=Rate(3e-4, 3e-3, 8e-3),
    count=_count_lily,
    size="r",
    sizes=_ranks,
    defaults={"where": "all", "experts": 2},
    choices={"where": ALL_WHERE, "experts": (2, 4)},
    peft_type="LILY",
    stock=lambda knobs: {"r": knobs["r"], "num_B": knobs["experts"], "stride_A": 1},
    quantised=True,
    extra_bytes=_extra_lily,
    allows=_has_plain_linear,
)

VERA = _whole(
    "vera",
    family="reparameterized",
    paper=Paper("VeRA: Vector-based Random Matrix Adaptation", "https://arxiv.org/abs/2310.11454"),
    rate=Rate(1e-3, 1e-2, 5e-2),
    count=_count_vera,
    size="r",
    sizes=_ranks,
    defaults={"where": "all"},
    choices={"where": ALL_WHERE},
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    peft_type="VERA",
    # The random projections follow from a seed in the config: they need not be stored with every adapter.
    stock=lambda knobs: {"r": knobs["r"], "save_projection": False},
    dropout="vera_dropout",
    quantised=True,
)

PVERA = _whole(
    "pvera",
    family="reparameterized",
    paper=Paper("PVeRA: Probabilistic Vector-Based Random Matrix Adaptation", "https://arxiv.org/abs/2512.07703"),
    rate=Rate(1e-3, 1e-2, 5e-2),
    count=_count_pvera,
    size="r",
    sizes=_ranks,
    defaults={"where": "all"},
    choices={"where": ALL_WHERE},
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    peft_type="PVERA",
    stock=lambda knobs: {"r": knobs["r"], "save_projection": False},
    dropout="pvera_dropout",
    quantised=True,
)

VBLORA = _whole(
    "vblora",
    family="reparameterized",
    paper=Paper(
        "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks", "https://arxiv.org/abs/2405.15179"
    ),
    rate=Rate(1e-3, 5e-3, 2e-2),
    count=_count_vblora,
    size="vectors",
    sizes=lambda modules: (4, 8, 16, 32, 64, 128, 256),
    defaults={"where": "all", "r": 4},
    choices={"where": ALL_WHERE, "r": (2, 4)},
    site_knobs=lambda modules: {"length": _vector_length(modules)},
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    identity=False,
    peft_type="VBLORA",
    stock=_vblora,
    dropout="vblora_dropout",
    predictable=False,
    quantised=True,
)

UNILORA = _whole(
    "unilora",
    family="reparameterized",
    paper=Paper("Uni-LoRA: One Vector is All You Need", "https://arxiv.org/abs/2506.00799"),
    rate=Rate(1e-3, 5e-3, 2e-2),
    count=lambda modules, knobs: int(knobs["length"]),
    size="length",
    sizes=lambda modules: LENGTHS,
    defaults={"where": "all", "r": 4},
    choices={"where": ALL_WHERE, "r": (4, 8)},
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    identity=False,
    peft_type="UNILORA",
    stock=lambda knobs: {"r": knobs["r"], "theta_d_length": knobs["length"]},
    dropout="unilora_dropout",
    builds_on_meta=False,
    allows=_has_plain_linear,
)

TINYLORA = _whole(
    "tinylora",
    family="reparameterized",
    paper=Paper("TinyLoRA, as in peft", "https://arxiv.org/abs/2602.04118"),
    rate=Rate(3e-4, 2e-3, 1e-2),
    count=_count_tinylora,
    size="u",
    sizes=lambda modules: (1, 2, 4, 8, 16, 32, 64, 128),
    defaults={"where": "all", "r": 2},
    choices={"where": ALL_WHERE, "r": (2, 4)},
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    peft_type="TINYLORA",
    stock=lambda knobs: {"r": knobs["r"], "u": knobs["u"], "save_projection": False},
    dropout="tinylora_dropout",
    extra_bytes=_extra_tinylora,
)

RANDLORA = _whole(
    "randlora",
    family="reparameterized",
    paper=Paper(
        "RandLoRA: Full-rank parameter-efficient fine-tuning of large models", "https://arxiv.org/abs/2502.00987"
    ),
    rate=Rate(5e-5, 3e-4, 1e-3),
    count=_count_randlora,
    size="bases",
    sizes=_bases,
    defaults={"where": "all"},
    choices={"where": ALL_WHERE},
    # peft asks for the rank of one basis; more bases of a lower rank are more parameters.
    site_knobs=lambda modules: {"width": _narrowest(modules)},
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    peft_type="RANDLORA",
    stock=lambda knobs: {
        "r": knobs["width"] // knobs["bases"],
        "randlora_alpha": 20 * (knobs["width"] // knobs["bases"]),
        "save_projection": False,
    },
    dropout="randlora_dropout",
    quantised=True,
)

FROD = _whole(
    "frod",
    family="reparameterized",
    paper=Paper("Full-Rank Efficient Fine-Tuning with Rotational Degrees", "https://doi.org/10.1609/aaai.v40i31.39813"),
    rate=Rate(1e-4, 2e-3, 2e-2),
    count=_count_frod,
    size="permille",
    sizes=lambda modules: FROD_PERMILLE,
    defaults={"where": "all"},
    choices={"where": ALL_WHERE},
    mergeable=True,
    # Read by plain peft on another machine, it is another adapter: see `recompute_constants` in `compose/host`.
    targets=frozenset({"merged"}),
    lowers=False,
    peft_type="FROD",
    # Bases are stored: made again on another machine they could differ in sign.
    stock=lambda knobs: {"sparse_rate": knobs["permille"] / 1000, "save_projection": True, "progressbar": False},
    dropout="frod_dropout",
    extra_bytes=_extra_frod,
    # It decomposes the frozen weights when it is built.
    predictable=False,
    builds_on_meta=False,
    tier=3,
    allows=_has_plain_linear,
)

ADAMSS = _whole(
    "adamss",
    family="reparameterized",
    paper=Paper(
        "AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning",
        "https://openreview.net/forum?id=8ZdWmpYxT0",
    ),
    rate=Rate(3e-4, 3e-3, 2e-2),
    count=_count_adamss,
    size="r",
    sizes=_ranks,
    defaults={"where": "all", "subspaces": 5},
    choices={"where": ALL_WHERE, "subspaces": (3, 5, 10)},
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    peft_type="ADAMSS",
    stock=lambda knobs: {"r": knobs["r"], "num_subspaces": knobs["subspaces"], "subspace_rank": 1},
    extra_bytes=_extra_adamss,
    # It decomposes and clusters the frozen weights when it is built.
    predictable=False,
    builds_on_meta=False,
    tier=3,
    allows=_has_plain_linear,
)

PROMPT_TUNING = _whole(
    "prompt_tuning",
    family="additive",
    paper=Paper("The Power of Scale for Parameter-Efficient Prompt Tuning", "https://arxiv.org/abs/2104.08691"),
    rate=Rate(3e-3, 3e-2, 3e-1),
    count=_count_prompt,
    size="tokens",
    sizes=lambda modules: TOKENS,
    allows=_takes_prompts,
    identity=False,
    peft_type="PROMPT_TUNING",
    stock=lambda knobs: {"num_virtual_tokens": knobs["tokens"]},
    quantised=True,
)

P_TUNING = _whole(
    "p_tuning",
    family="additive",
    paper=Paper("GPT Understands, Too", "https://arxiv.org/abs/2103.10385"),
    rate=Rate(3e-4, 3e-3, 2e-2),
    count=_count_p_tuning,
    size="tokens",
    sizes=lambda modules: TOKENS,
    defaults={"encoder": 64},
    choices={"encoder": (32, 64, 128)},
    allows=_takes_prompts,
    identity=False,
    peft_type="P_TUNING",
    stock=lambda knobs: {"num_virtual_tokens": knobs["tokens"], "encoder_hidden_size": knobs["encoder"]},
    quantised=True,
    # Only the finished prompt is written.
    extra_bytes=lambda modules, knobs: 4 * (_count_prompt(modules, knobs) - _count_p_tuning(modules, knobs)),
)

PREFIX_TUNING = _whole(
    "prefix_tuning",
    family="additive",
    paper=Paper("Prefix-Tuning: Optimizing Continuous Prompts for Generation", "https://arxiv.org/abs/2101.00190"),
    rate=Rate(5e-4, 5e-3, 3e-2),
    count=_count_prefix,
    size="tokens",
    sizes=lambda modules: TOKENS,
    allows=lambda modules: modules.reads_tokens and _keys(modules) > 0,
    identity=False,
    peft_type="PREFIX_TUNING",
    stock=lambda knobs: {"num_virtual_tokens": knobs["tokens"]},
    quantised=True,
    # Its keys and values come in a cache, which a second pass would write to again.
    recomputable=False,
)

CPT = _whole(
    "cpt",
    family="additive",
    paper=Paper(
        "Context-Aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods",
        "https://arxiv.org/abs/2410.17222",
    ),
    rate=Rate(1e-4, 1e-3, 1e-2),
    count=_count_prompt,
    size="tokens",
    # Whole training examples; what is left of the length is filled up with the beginning of one more.
    sizes=lambda modules: (4, 8, 16, 32, 64, 128, 256),
    allows=lambda modules: _takes_prompts(modules) and modules.writes_tokens,
    defaults={"epsilon": 0.1},
    choices={"epsilon": (0.1, 1.0)},
    identity=False,
    peft_type="CPT",
    chooses="examples",
    # The loss stays that of the task: the examples' own answers are not part of it.
    stock=lambda knobs: {
        "cpt_token_ids": [0] * knobs["tokens"],
        "opt_projection_epsilon": knobs["epsilon"],
        "opt_projection_format_epsilon": knobs["epsilon"],
    },
    predictable=False,
    quantised=True,
)
