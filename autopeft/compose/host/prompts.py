"""Prompts as peft builds them: made exact, counted, begun as examples."""

from __future__ import annotations

import torch
from peft import CPTEmbedding, PeftModel, PromptEncoder
from torch import nn

from autopeft.compose.host.config import ADAPTER

__all__ = ["begin_as_examples", "exact_prompt", "taken_positions", "virtual_tokens"]

LENGTHENING = ("PROMPT_TUNING", "P_TUNING", "CPT")
"""Prompts that stand before the row's own tokens; a prefix of keys and values does not lengthen what comes out."""


class ExactPrompt(PromptEncoder):
    """p-tuning's encoder in float32 also under autocast: the prompt that is stored is the one that was used."""

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """`[rows, tokens]` -> `[rows, tokens, width]`."""
        with torch.autocast(indices.device.type, enabled=False):
            return super().forward(indices)


class ExactExamples(CPTEmbedding):
    """CPT's prompt, kept within its bound by a projection that does not move what lies within or on the bound.

    peft's scales again at every pass, and rounding moves the prompt each time.
    """

    def get_projection(self) -> torch.Tensor:
        """The bounded change of the prompt, `[tokens, width]`."""
        with torch.no_grad():
            change = self.delta_embedding.weight
            bound = self.get_epsilon().to(change.device)
            norm = change.norm(dim=1)
            factor = torch.where(norm > bound * (1 + 1e-5), bound / norm, 1.0)
            return change * factor.unsqueeze(1)


EXACT: dict[type, type] = {PromptEncoder: ExactPrompt, CPTEmbedding: ExactExamples}


def exact_prompt(model: PeftModel, adapter: str) -> None:
    """Make a model's prompt, where peft's own class for it would not compute the same twice, an exact one."""
    encoder = getattr(model, "prompt_encoder", {})
    if adapter in encoder and type(encoder[adapter]) in EXACT:
        encoder[adapter].__class__ = EXACT[type(encoder[adapter])]


def virtual_tokens(model: PeftModel, adapter: str) -> int:
    """How many positions a prompt puts before the rows' own."""
    config = model.peft_config[adapter]
    return int(config.num_virtual_tokens) if str(config.peft_type.value) in LENGTHENING else 0


def taken_positions(model: nn.Module) -> int:
    """How many of the model's positions a prompt or a prefix of keys and values takes from the rows."""
    configs = getattr(model, "peft_config", {})
    return max((getattr(config, "num_virtual_tokens", 0) or 0 for config in configs.values()), default=0)


def begin_as_examples(model: PeftModel, tokens: torch.Tensor) -> None:
    """Let CPT's prompt begin as tokens, int64 `[tokens of the prompt]`; on the meta device nothing happens."""
    encoder, config = model.prompt_encoder[ADAPTER], model.peft_config[ADAPTER]
    embeddings = model.get_base_model().get_input_embeddings()
    if embeddings.weight.is_meta:
        return
    with torch.no_grad():
        encoder.embedding.weight.copy_(embeddings(tokens.to(embeddings.weight.device)).float())
    config.cpt_token_ids = encoder.config.cpt_token_ids = tokens.tolist()
