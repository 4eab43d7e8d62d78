"""The module map of many architectures, read off tiny random models."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
    ResNetConfig,
    RobertaConfig,
    T5Config,
    T5EncoderModel,
    ViTConfig,
)

from autopeft.errors import InputError
from autopeft.inspect import module_map
from autopeft.space.modules import ModuleMap

WIDE, INNER = 32, 48
COMMON = {
    "hidden_size": WIDE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": INNER,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
SEPARATE = {"query": 1, "key": 1, "value": 1, "output": 1, "up": 1, "down": 1}
FUSED = {"qkv": 1, "output": 1, "up": 1, "down": 1}
GATED = {**SEPARATE, "gate": 1}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}


def _opt(inner: int) -> OPTConfig:
    return OPTConfig(
        hidden_size=WIDE,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=inner,
        vocab_size=100,
        word_embed_proj_dim=WIDE,
        max_position_embeddings=64,
    )


# config, linear roles in a block, norms in all blocks together, width of the keys (None: no attention interface)
CASES: dict[str, tuple[PretrainedConfig, dict[str, int], int, int | None]] = {
    "bert": (BertConfig(**COMMON), SEPARATE, 4, WIDE),
    "roberta": (RobertaConfig(**COMMON), SEPARATE, 4, WIDE),
    "distilbert": (
        DistilBertConfig(dim=WIDE, n_layers=2, n_heads=4, hidden_dim=INNER, vocab_size=100),
        SEPARATE,
        4,
        WIDE,
    ),
    "electra": (ElectraConfig(embedding_size=16, **COMMON), SEPARATE, 4, WIDE),
    "deberta-shared": (DebertaV2Config(**COMMON, **DEBERTA, share_att_key=True), SEPARATE, 4, None),
    "deberta": (DebertaV2Config(**COMMON, **DEBERTA), SEPARATE, 4, None),
    "mpnet": (MPNetConfig(**COMMON), SEPARATE, 4, None),
    # The first block of ModernBERT has no norm before its attention.
    "modernbert": (ModernBertConfig(**COMMON, pad_token_id=0), FUSED, 3, WIDE),
    "gpt2": (GPT2Config(n_embd=WIDE, n_layer=2, n_head=4, n_inner=INNER, vocab_size=100), FUSED, 4, WIDE),
    "gpt_neox": (GPTNeoXConfig(**COMMON), FUSED, 4, WIDE),
    "llama": (LlamaConfig(**COMMON, num_key_value_heads=2), GATED, 4, WIDE // 2),
    "qwen2": (Qwen2Config(**COMMON, num_key_value_heads=2), GATED, 4, WIDE // 2),
    "opt": (_opt(INNER), SEPARATE, 4, WIDE),
    "vit": (
        ViTConfig(
            hidden_size=WIDE,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=INNER,
            image_size=32,
            patch_size=16,
        ),
        SEPARATE,
        4,
        WIDE,
    ),
}


def on_meta(config: PretrainedConfig) -> nn.Module:
    with torch.device("meta"):
        return AutoModel.from_config(config)


def roles(modules: ModuleMap, block: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for site in modules.sites:
        if site.block == block and site.role not in ("norm", "embedding"):
            found[site.role] = found.get(site.role, 0) + 1
    return found


@pytest.mark.parametrize("name", CASES)
def test_roles_widths_and_reads(name: str) -> None:
    config, expected, norms, kv = CASES[name]
    model = on_meta(config)
    modules = module_map(model)
    assert modules.blocks == 2
    assert modules.hidden_size == WIDE
    assert [roles(modules, block) for block in range(2)] == [expected, expected]
    assert len(modules.select(["norm"])) == norms
    real = dict(model.named_modules())
    for site in modules.sites:
        module = real[site.name]
        assert site.params == sum(p.numel() for p in module.parameters())
        if site.role == "embedding":
            # Its widths are those of a look-up: the vocabulary, and what comes out.
            assert (site.in_features, site.out_features) == tuple(module.weight.shape)
        assert site.bias == (getattr(module, "bias", None) is not None)
        assert site.kv_features == (kv if site.role in ("key", "qkv") else None)
        if site.role == "down":
            assert (site.in_features, site.out_features) == (INNER, WIDE)
            assert site.reads is not None
            assert site.read_features == WIDE
            assert modules[site.reads].role in ("up", "gate")
            assert modules[site.reads].block == site.block
        else:
            assert site.reads is None
    assert modules.base_params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_names_lead_to_query_key_value(name: str) -> None:
    modules = module_map(on_meta(CASES[name][0]))
    words = {"query": "q", "key": "k", "value": "v", "qkv": "c_attn", "output": "o"}
    for site in modules.select(words):
        leaf = site.name.rpartition(".")[2]
        assert leaf.startswith(words[site.role]) or leaf in ("dense", "c_proj")


def test_gate_is_the_layer_that_goes_through_the_activation() -> None:
    modules = module_map(on_meta(CASES["llama"][0]))
    assert [site.name.rpartition(".")[2] for site in modules.select(["gate"])] == ["gate_proj"] * 2
    assert [site.name.rpartition(".")[2] for site in modules.select(["up"])] == ["up_proj"] * 2


def test_feed_forward_as_wide_as_the_model_is_told_apart_by_what_it_reads() -> None:
    modules = module_map(on_meta(_opt(WIDE)))
    assert [site.name.rpartition(".")[2] for site in modules.select(["up"])] == ["fc1", "fc1"]
    assert [site.name.rpartition(".")[2] for site in modules.select(["down"])] == ["fc2", "fc2"]


def test_albert_adapts_its_shared_block_once() -> None:
    modules = module_map(on_meta(AlbertConfig(embedding_size=16, **COMMON)))
    assert modules.blocks == 1
    assert roles(modules, 0) == SEPARATE
    assert len(modules.select(["norm"])) == 2


def test_t5_encoder() -> None:
    config = T5Config(
        d_model=WIDE, d_kv=8, d_ff=INNER, num_layers=2, num_heads=4, vocab_size=100, feed_forward_proj="gated-gelu"
    )
    modules = module_map(T5EncoderModel(config))
    assert [roles(modules, block) for block in range(modules.blocks)] == [GATED, GATED]
    assert modules["encoder.block.1.layer.0.SelfAttention.k"].kv_features == WIDE
    assert modules["encoder.block.0.layer.1.DenseReluDense.wo"].reads == "encoder.block.0.layer.1.DenseReluDense.wi_0"


def test_task_classes_keep_their_prefix_and_the_head_is_not_counted() -> None:
    bert = AutoModelForSequenceClassification.from_config(CASES["bert"][0])
    modules = module_map(bert)
    assert modules.sites[0].name == "bert.embeddings.word_embeddings"
    assert all(site.name.startswith("bert.encoder.layer.") for site in modules.sites[1:])
    assert modules.base_params == sum(p.numel() for p in bert.bert.parameters())
    llama = module_map(AutoModelForCausalLM.from_config(CASES["llama"][0]))
    assert all(site.name.startswith("model.layers.") for site in llama.sites[1:])
    assert (modules.writes_tokens, llama.writes_tokens) == (False, True)


def test_order_is_that_of_execution() -> None:
    names = [site.role for site in module_map(on_meta(CASES["llama"][0])).sites if site.block == 0]
    assert names == ["embedding", "norm", "query", "key", "value", "output", "norm", "gate", "up", "down"]


def test_nothing_about_the_model_changes() -> None:
    model = AutoModel.from_config(CASES["bert"][0])
    before = model.config.to_dict(), model.config._attn_implementation, model.training
    model.train()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    first, second = module_map(model), module_map(model)
    assert first == second
    assert (model.config.to_dict(), model.config._attn_implementation) == before[:2]
    assert model.training
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert all(p.device.type == "cpu" and p.requires_grad for p in model.parameters())


def test_round_trip_as_plain_values() -> None:
    modules = module_map(on_meta(CASES["gpt2"][0]))
    assert ModuleMap.from_dict(modules.to_dict()) == modules


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4)),
        AutoModel.from_config(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    ],
    ids=["mlp", "resnet"],
)
def test_a_model_without_blocks_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"task\.model") as caught:
        module_map(model)
    assert "transformer" in caught.value.problems[0].next_step
