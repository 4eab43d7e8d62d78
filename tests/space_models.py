"""Module maps written by hand: what three kinds of model look like to a space."""

from __future__ import annotations

from autopeft.space.modules import ModuleMap, Role, Site


def _linear(name: str, block: int, role: Role, fan_in: int, fan_out: int, bias: bool, **more: int | str) -> Site:
    return Site(name, block, role, fan_in, fan_out, bias, fan_in * fan_out + bias * fan_out, **more)  # type: ignore[arg-type]


def bert(blocks: int = 6, hidden: int = 384, ffn: int = 1536, interface: bool = True, name: str = "bert") -> ModuleMap:
    """An encoder with biases everywhere; `interface`: whether attention goes through transformers' interface."""
    sites = []
    for block in range(blocks):
        root = f"encoder.layer.{block}"
        kv = {"kv_features": hidden} if interface else {}
        sites += [
            _linear(f"{root}.attention.self.query", block, "query", hidden, hidden, True),
            _linear(f"{root}.attention.self.key", block, "key", hidden, hidden, True, **kv),
            _linear(f"{root}.attention.self.value", block, "value", hidden, hidden, True),
            _linear(f"{root}.attention.output.dense", block, "output", hidden, hidden, True),
            Site(f"{root}.attention.output.LayerNorm", block, "norm", hidden, hidden, True, 2 * hidden),
            _linear(f"{root}.intermediate.dense", block, "up", hidden, ffn, True),
            _linear(
                f"{root}.output.dense", block, "down", ffn, hidden, True,
                reads=f"{root}.intermediate.dense", read_features=hidden,
            ),
            Site(f"{root}.output.LayerNorm", block, "norm", hidden, hidden, True, 2 * hidden),
        ]  # fmt: skip
    total = sum(site.params for site in sites) + 31_000 * hidden
    return ModuleMap(tuple(sites), blocks, total, hidden, name)


def llama(blocks: int = 12, hidden: int = 576, ffn: int = 1536, kv: int = 192) -> ModuleMap:
    """A decoder without biases, with grouped keys and values and RMS norms."""
    sites = []
    for block in range(blocks):
        root = f"model.layers.{block}"
        sites += [
            Site(f"{root}.input_layernorm", block, "norm", hidden, hidden, False, hidden),
            _linear(f"{root}.self_attn.q_proj", block, "query", hidden, hidden, False),
            _linear(f"{root}.self_attn.k_proj", block, "key", hidden, kv, False, kv_features=kv),
            _linear(f"{root}.self_attn.v_proj", block, "value", hidden, kv, False),
            _linear(f"{root}.self_attn.o_proj", block, "output", hidden, hidden, False),
            Site(f"{root}.post_attention_layernorm", block, "norm", hidden, hidden, False, hidden),
            _linear(f"{root}.mlp.gate_proj", block, "gate", hidden, ffn, False),
            _linear(f"{root}.mlp.up_proj", block, "up", hidden, ffn, False),
            _linear(
                f"{root}.mlp.down_proj", block, "down", ffn, hidden, False,
                reads=f"{root}.mlp.gate_proj", read_features=hidden,
            ),
        ]  # fmt: skip
    return ModuleMap(tuple(sites), blocks, sum(site.params for site in sites) + 49_152 * hidden, hidden, "llama")


def gpt2(blocks: int = 4, hidden: int = 256) -> ModuleMap:
    """A decoder whose query, key and value are one module."""
    sites = []
    for block in range(blocks):
        root = f"h.{block}"
        sites += [
            Site(f"{root}.ln_1", block, "norm", hidden, hidden, True, 2 * hidden),
            _linear(f"{root}.attn.c_attn", block, "qkv", hidden, 3 * hidden, True, kv_features=hidden),
            _linear(f"{root}.attn.c_proj", block, "output", hidden, hidden, True),
            _linear(f"{root}.mlp.c_fc", block, "up", hidden, 4 * hidden, True),
            _linear(
                f"{root}.mlp.c_proj", block, "down", 4 * hidden, hidden, True,
                reads=f"{root}.mlp.c_fc", read_features=hidden,
            ),
        ]  # fmt: skip
    return ModuleMap(tuple(sites), blocks, sum(site.params for site in sites) + 50_257 * hidden, hidden, "gpt2")


def large() -> ModuleMap:
    """A decoder of 80 blocks, as large as the largest open ones."""
    return llama(blocks=80, hidden=8192, ffn=28_672, kv=1024)


MODELS = {
    "bert": bert(),
    "deberta": bert(4, 256, 1024, interface=False, name="deberta"),
    "llama": llama(),
    "gpt2": gpt2(),
    "large": large(),
}
