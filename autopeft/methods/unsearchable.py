"""Methods that peft has and that no search offers, each with its reason."""

from __future__ import annotations

from autopeft.methods.base import Family, Method, Paper, Rate


def _row(name: str, family: Family, title: str, link: str, peft_type: str | None, reason: str) -> Method:
    return Method(
        name=name,
        family=family,
        paper=Paper(title, link),
        roles=frozenset(),
        slots=(),
        rate=Rate(1e-4, 1e-3, 1e-2),
        count=lambda site, knobs: 0,
        allows=lambda site: False,
        peft_type=peft_type,
        base="own",
        unsearchable=reason,
        tier=3,
    )


UNSEARCHABLE = (
    _row(
        "multitask_prompt_tuning",
        "additive",
        "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning",
        "https://arxiv.org/abs/2303.02861",
        "MULTITASK_PROMPT_TUNING",
        "it needs several tasks and the number of each row's task",
    ),
    _row(
        "poly",
        "reparameterized",
        "Combining Modular Skills in Multitask Learning",
        "https://arxiv.org/abs/2202.13914",
        "POLY",
        "it needs several tasks and the number of each row's task",
    ),
    _row(
        "xlora",
        "hybrid",
        "X-LoRA: Mixture of Low-Rank Adapter Experts",
        "https://arxiv.org/abs/2402.07148",
        "XLORA",
        "it mixes LoRA adapters that were trained before",
    ),
    _row(
        "adaption_prompt",
        "additive",
        "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention",
        "https://arxiv.org/abs/2303.16199",
        "ADAPTION_PROMPT",
        "it knows a few decoder architectures by name only",
    ),
    _row(
        "cartridge",
        "additive",
        "Cartridges: Lightweight and general-purpose long context representations via self-study",
        "https://arxiv.org/abs/2506.06266",
        "CARTRIDGE",
        "it distils one long text into a cache instead of learning a task",
    ),
    _row(
        "shadow",
        "additive",
        "Shadow, as in peft",
        "https://github.com/huggingface/peft",
        "SHADOW",
        "it runs a second small model beside decoder layers and adds a loss of its own",
    ),
)
