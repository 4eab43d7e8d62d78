"""Reads the module map off a built model, by watching one forward pass; knows no list of architectures.

The pass runs on the meta device, so it costs no memory and needs no weights. What is watched: which linear and norm
layers run in which order and on which tensors, in which module the softmax of an attention is taken, and whether that
attention went through transformers' attention interface.
"""

from __future__ import annotations

import copy
import inspect as pyinspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.pytorch_utils import Conv1D

from autopeft.errors import InputError
from autopeft.space.modules import ModuleMap, Role, Site

__all__ = ["GroupedProducts", "module_map"]

SPY = "autopeft_inspect"
LENGTH = 8
SOFTMAX = {
    torch.ops.aten._softmax.default,
    torch.ops.aten._safe_softmax.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable.default,
}
GROUPED = torch.ops.aten._grouped_mm.default
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default}
HINTS: tuple[tuple[Role, tuple[str, ...]], ...] = (
    ("query", ("query", "q_proj", "q_lin", "q", "wq", "to_q")),
    ("key", ("key", "k_proj", "k_lin", "k", "wk", "to_k")),
    ("value", ("value", "v_proj", "v_lin", "v", "wv", "to_v")),
)
# Layers beside the projections proper, e.g. DeBERTa's projections of relative positions.
BESIDE = ("pos", "rel", "bias")


@dataclass(frozen=True)
class _Event:
    """One thing that happened in the forward pass."""

    what: Literal["linear", "norm", "attention", "embedding"]
    name: str
    reads: Any = None
    kv_features: int | None = None


class GroupedProducts(TorchDispatchMode):
    """Gives the products of a mixture of experts their shape where tensors hold no values.

    PyTorch's kernels multiply float32 and bfloat16 alike, its shape rule for meta and fake tensors knows bfloat16 only.
    Two matrices give one product for each expert, `[experts, m, n]`; all else gives `[m, n]`, or the batched product.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not GROUPED:
            return func(*args, **(kwargs or {}))
        left, right = args[0], args[1]
        offsets: Any = args[2] if len(args) > 2 else (kwargs or {}).get("offs")
        shape = [left.shape[-2], right.shape[-1]]
        if left.ndim == right.ndim:
            shape = [left.shape[0] if left.ndim == 3 else offsets.shape[0], *shape]
        return left.new_empty(shape)


def module_map(model: nn.Module, *, base_params: int | None = None) -> ModuleMap:
    """The places of a model that can be adapted.

    Args:
        model: A transformers model, on any device, the meta device included. It is not changed.
        base_params: Parameters of the base without head; None counts those of the model's base, each shared one once.

    Raises:
        InputError: The model has no stack of transformer blocks, or cannot run on text or images.
    """
    config = getattr(model, "config", None)
    architecture = str(getattr(config, "model_type", type(model).__name__))
    twin = _meta_twin(model)
    events = _watch(twin, architecture)
    blocks = _blocks(twin, events)
    if not blocks:
        rule = f"has no stack of transformer blocks that could be found (model type {architecture})"
        raise InputError.one("task.model", architecture, rule, "Use a transformer model.")
    modules = dict(twin.named_modules())
    sites = _embedding(model, events)
    for index, block in enumerate(blocks):
        inside = _first_pass([event for event in events if event.name.startswith(block + ".")])
        sites += _block_sites(index, inside, modules)
    hidden = next((site.out_features for site in sites if site.role == "output"), 0)
    if base_params is None:
        base = getattr(model, "base_model", model)
        base_params = sum(parameter.numel() for parameter in base.parameters())
    reads_tokens = "input_ids" in pyinspect.signature(model.forward).parameters
    # An encoder's task class may have no such method at all.
    writes_tokens = getattr(model, "get_output_embeddings", lambda: None)() is not None
    return ModuleMap(tuple(sites), len(blocks), base_params, hidden, architecture, reads_tokens, writes_tokens)


def _embedding(model: nn.Module, events: list[_Event]) -> list[Site]:
    """The embedding of the tokens, where it is one module at one place."""
    get = getattr(model, "get_input_embeddings", None)
    module = None if get is None else get()
    names = [name for name, held in model.named_modules(remove_duplicate=False) if held is module]
    used = {event.name for event in events if event.what == "embedding"}
    if not isinstance(module, nn.Embedding) or len(names) != 1 or names[0] not in used:
        return []
    vocabulary, width = module.weight.shape
    params = module.weight.numel()
    return [Site(names[0], 0, "embedding", vocabulary, width, bias=False, params=params)]


def _meta_twin(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo).eval()


def _watch(model: nn.Module, architecture: str) -> list[_Event]:
    events: list[_Event] = []
    running: list[str] = []
    through: dict[str, int | None] = {}
    names = {id(module): name for name, module in model.named_modules()}

    def spy(module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any = None, **_: Any) -> Any:
        name = names[id(module)]
        same_width = key.shape[1] == value.shape[1] and key.shape[3] == value.shape[3]
        through[name] = key.shape[1] * key.shape[3] if same_width else None
        events.append(_Event("attention", name, kv_features=through[name]))
        batch, heads, length, _ = query.shape
        return torch.empty(batch, length, heads, value.shape[3], device="meta", dtype=value.dtype), None

    class Softmax(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in SOFTMAX and running:
                events.append(_Event("attention", running[-1]))
            if func in READS and args[0].device.type == "meta":
                # Models ask whether a mask hides anything; there are no values here, so: nothing is hidden.
                return True if args[0].dtype == torch.bool else 0
            return func(*args, **(kwargs or {}))

    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(_entering(name, running, events), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(_leaving(running), always_call=True).remove)
        stack.enter_context(_attention(model, spy))
        stack.enter_context(GroupedProducts())
        stack.enter_context(Softmax())
        try:
            model(**_inputs(model))
        except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, KeyError) as error:
            rule = f"could not be traced ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            raise InputError.one("task.model", architecture, rule, "Use a text or image transformer.") from error
    return events


def _entering(name: str, running: list[str], events: list[_Event]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(name)
        reads = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(module, nn.Linear | Conv1D):
            events.append(_Event("linear", name, reads))
        elif isinstance(module, nn.Embedding):
            events.append(_Event("embedding", name, reads))
        elif _is_norm(module):
            events.append(_Event("norm", name, reads))

    return hook


def _leaving(running: list[str]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    return hook


@contextmanager
def _attention(model: nn.Module, function: Any) -> Iterator[None]:
    """Send the model's attention through a function, where the model uses transformers' interface."""
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if before is None or not hasattr(model, "set_attn_implementation"):
        yield
        return
    AttentionInterface.register(SPY, function)
    AttentionMaskInterface.register(SPY, eager_mask)
    log = logging.getLogger("transformers.modeling_utils")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        # The meta twin has a config of its own: nothing is seen from outside.
        for choice in (SPY, "eager"):
            try:
                model.set_attn_implementation(choice)
                break
            except ValueError:
                continue
        yield
    finally:
        log.setLevel(level)
        AttentionInterface._global_mapping.pop(SPY, None)
        AttentionMaskInterface._global_mapping.pop(SPY, None)


def _inputs(model: nn.Module) -> dict[str, Any]:
    accepted = pyinspect.signature(model.forward).parameters
    config = getattr(model, "config", None)
    if "pixel_values" in accepted and "input_ids" not in accepted:
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, Sequence) else (size, size)
        shape = (1, getattr(config, "num_channels", 3), height, width)
        return {"pixel_values": torch.zeros(shape, device="meta", dtype=getattr(model, "dtype", torch.float32))}
    inputs: dict[str, Any] = {"input_ids": torch.zeros((1, LENGTH), dtype=torch.long, device="meta")}
    if "attention_mask" in accepted:
        inputs["attention_mask"] = torch.ones((1, LENGTH), dtype=torch.long, device="meta")
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return inputs


def _blocks(model: nn.Module, events: list[_Event]) -> list[str]:
    """Names of the blocks, in the order in which they run."""
    stacks: list[tuple[str, list[str]]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0 or len({type(child) for child in module}) > 1:
            continue
        children = [f"{name}.{index}" if name else str(index) for index in range(len(module))]
        if all(_is_block(child, events) for child in children):
            # A list inside a block of another list describes the blocks more finely: the innermost one counts.
            stacks = [(outer, held) for outer, held in stacks if not name.startswith(outer + ".")]
            stacks.append((name, children))
    first = {event.name: index for index, event in reversed(list(enumerate(events)))}
    blocks = [child for _, children in stacks for child in children]
    return sorted(blocks, key=lambda block: min(i for name, i in first.items() if name.startswith(block + ".")))


def _is_block(name: str, events: list[_Event]) -> bool:
    inside = {event.what for event in events if event.name.startswith(name + ".")}
    return {"linear", "attention"} <= inside


def _first_pass(events: list[_Event]) -> list[_Event]:
    """One run through a block: a block that is used by several layers runs several times."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for event in events:
        if (event.what, event.name) not in seen:
            seen.add((event.what, event.name))
            kept.append(event)
    return kept


def _block_sites(block: int, events: list[_Event], modules: dict[str, nn.Module]) -> list[Site]:
    roles: dict[str, Role] = {}
    kv: dict[str, int] = {}
    reads: dict[str, str] = {}
    linears = [(index, event) for index, event in enumerate(events) if event.what == "linear"]
    attentions = [(index, event) for index, event in enumerate(events) if event.what == "attention"]
    crossing: set[str] = set()
    last = -1
    for at, attention in attentions:
        before = [event.name for index, event in linears if last < index < at]
        projections = [name for name in before if name.startswith(attention.name + ".")]
        found = _projections(projections)
        roles.update(found)
        if attention.kv_features is not None:
            kv.update({name: attention.kv_features for name, role in found.items() if role in ("key", "qkv")})
        sources = {found[event.name]: event.reads for _, event in linears if event.name in found}
        if sources.get("key") is not sources.get("query"):
            crossing.update(name for name, role in found.items() if role == "key")
        output = next(((index, event) for index, event in linears if index > at), None)
        if output is not None:
            roles[output[1].name] = "output"
        last = at
    width = next((_shape(modules[name])[1] for name, role in roles.items() if role == "output"), None)
    rest = [event for _, event in linears if event.name not in roles and not _inside(event.name, attentions)]
    _feed_forward(rest, width, modules, roles, reads)
    sites = []
    for event in events:
        role: Role | None = "norm" if event.what == "norm" else roles.get(event.name)
        if event.what != "attention" and role is not None:
            site = _site(event.name, block, role, modules, kv.get(event.name), reads.get(event.name))
            sites.append(replace(site, crosses=event.name in crossing))
    return sites


def _inside(name: str, attentions: list[tuple[int, _Event]]) -> bool:
    return any(name.startswith(event.name + ".") for _, event in attentions)


def _projections(names: list[str]) -> dict[str, Role]:
    """Roles of the linear layers that run before an attention, inside its module."""
    roles: dict[str, Role] = {}
    if len(names) == 1:
        return {names[0]: "qkv"}
    for role, hints in HINTS:
        for name in names:
            leaf = name.rpartition(".")[2].lower()
            hit = leaf in hints or any(len(hint) > 2 and hint in leaf for hint in hints)
            if hit and name not in roles and not any(word in leaf for word in BESIDE):
                roles[name] = role
                break
    if not roles and len(names) == 3:
        return dict(zip(names, ("query", "key", "value"), strict=True))
    return roles


def _feed_forward(
    rest: list[_Event],
    width: int | None,
    modules: dict[str, nn.Module],
    roles: dict[str, Role],
    reads: dict[str, str],
) -> None:
    """Roles of the linear layers after the attention: some read one tensor, the next what they made."""
    opened: list[_Event] = []
    for event in rest:
        wide_in, wide_out = _shape(modules[event.name])
        if opened and event.reads is not opened[0].reads:
            made = _shape(modules[opened[0].name])[1]
            # A fused up and gate layer makes twice what the next one reads.
            if wide_out == width and made in (wide_in, 2 * wide_in):
                gates = [o for o in opened if "gate" in o.name.rpartition(".")[2]] or opened[:-1][:1]
                for one in opened:
                    roles[one.name] = "gate" if one in gates and len(opened) > 1 else "up"
                roles[event.name] = "down"
                reads[event.name] = opened[0].name
                opened = []
                continue
            opened = []
        if wide_in == width:
            opened.append(event)


def _site(
    name: str, block: int, role: Role, modules: dict[str, nn.Module], kv_features: int | None, reads: str | None
) -> Site:
    module = modules[name]
    wide_in, wide_out = _shape(module)
    return Site(
        name=name,
        block=block,
        role=role,
        in_features=wide_in,
        out_features=wide_out,
        bias=getattr(module, "bias", None) is not None,
        params=sum(parameter.numel() for parameter in module.parameters()),
        reads=reads,
        read_features=None if reads is None else _shape(modules[reads])[0],
        kv_features=kv_features,
        transposed=isinstance(module, Conv1D),
    )


def _shape(module: nn.Module) -> tuple[int, int]:
    weight = module.weight
    if weight.ndim == 1:
        return weight.shape[0], weight.shape[0]
    if isinstance(module, Conv1D):
        return weight.shape[0], weight.shape[1]
    return weight.shape[1], weight.shape[0]


def _is_norm(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    return (
        "weight" in own and own["weight"].ndim == 1 and set(own) <= {"weight", "bias"} and not list(module.children())
    )
