"""The hybrid tuner: one peft tuner that hosts parts of several methods, per module.

Everything here relies on peft 0.21's internals, and nothing elsewhere does: the hook `_create_and_replace` per module,
structural saving (what a `BaseTunerLayer` holds beside `base_layer` is the adapter), and lookup tables keyed by type.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from autopeft.compose.layers import LAYERS, AdapterDropout, OwnPart, Place
from autopeft.compose.layers.bottleneck import ParallelPart, Tap
from autopeft.compose.layers.prefix import PrefixPart, prefixed
from autopeft.compose.manifest import MANIFEST, check_manifest
from autopeft.methods import METHODS

__all__ = [
    "ADAPTER",
    "HYBRID",
    "TASK_TYPES",
    "HybridConfig",
    "HybridModel",
    "freeze_constants",
    "hosted_parts",
    "kept_modules",
    "own_dropouts",
    "part_parameters",
    "register",
    "stock_config",
    "tensor_prefix",
]

ADAPTER = "default"
TASK_TYPES = {"stock": "SEQ_CLS", "lm": "CAUSAL_LM", "cls": "FEATURE_EXTRACTION", "mean": "FEATURE_EXTRACTION"}
"""Head -> what peft calls the task."""
SCHEMA = 1
PEFT_VERSION = "0.21."


class _TypeName(str):
    """A peft type outside of peft's enum: equal to its string, with the `value` that peft's messages ask for."""

    @property
    def value(self) -> str:
        return str(self)


HYBRID = _TypeName("AUTOPEFT_HYBRID")


@dataclass
class HybridConfig(PeftConfig):
    """The config of a hybrid adapter: which parts sit where.

    Attributes:
        schema: Version of this layout.
        sites: Full module name -> parts as plain values, from inner to outer.
        kv_features: Module name -> key heads x head width, for modules with a prefix.
        dropout: Dropout on the input of the parts.
        modules_to_save: Layers of the task class that are trained and saved as a whole.
        bias: Always ``none``: biases are parts.
    """

    # peft reads it; the sites say everything, so it is no field and is not saved.
    target_modules: ClassVar[None] = None

    schema: int = SCHEMA
    sites: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    kv_features: dict[str, int] = field(default_factory=dict)
    dropout: float = 0.0
    modules_to_save: list[str] | None = None
    bias: str = "none"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """As peft's; in a local folder that has a manifest, all files are checked against it.

        Raises:
            DamagedFile: A file is missing or is not what was written.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        if (folder / MANIFEST).is_file():
            check_manifest(folder)
        return super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = HYBRID
        if self.schema != SCHEMA:
            raise ValueError(
                f"this adapter has schema {self.schema}; this autopeft reads {SCHEMA}: install a newer one"
            )


class HostedLayer(nn.Module, BaseTunerLayer):
    """A frozen module with one own part per adapter around it, all of one kind.

    Args:
        base_layer: The frozen module, or the layer of the part inside of this one.
        key: The kind of part, a key of `LAYERS`.
    """

    def __init__(self, base_layer: nn.Module, key: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.key = key
        # The kind is part of the tensors' names, so that two parts of one module never share a name.
        self.adapter_layer_names = (f"{key}_part",)
        setattr(self, f"{key}_part", nn.ModuleDict())
        self.merged_adapters: list[str] = []

    @property
    def part(self) -> nn.ModuleDict:
        """Adapter name -> part."""
        return getattr(self, f"{self.key}_part")

    def add(self, adapter: str, part: OwnPart) -> None:
        """Install an adapter's part and move it to the frozen module's device."""
        weight = self.get_base_layer().weight
        if not any(parameter.is_meta for parameter in part.parameters()):
            part.to(weight.device)
        self.part[adapter] = part.train(False)
        self.set_adapter(self.active_adapters if len(self.part) > 1 else [adapter])

    def is_active(self, adapter: str) -> bool:
        """Whether an adapter's part takes part in the forward pass."""
        return not self.disable_adapters and not self.merged and adapter in self.active_adapters

    def active_parts(self) -> Iterator[OwnPart]:
        """The parts that take part in the forward pass."""
        for name in self.active_adapters:
            if name in self.part and self.is_active(name):
                yield self.part[name]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The frozen module's output, changed by the active parts."""
        y = self.base_layer(x, *args, **kwargs)
        for part in self.active_parts():
            y = part(x, y)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold the active parts into the frozen module, which gets new storage.

        Raises:
            ValueError: A part cannot be merged.
        """
        names = [name for name in (adapter_names or self.active_adapters) if name in self.part]
        for name in names:
            if not self.part[name].mergeable:
                raise ValueError(f"{type(self.part[name]).__name__} cannot be merged")
        for name in names:
            self.part[name].merge_into(self.get_base_layer())
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Not offered: merging is for export only."""
        raise NotImplementedError("a merged hybrid part cannot be taken out again: build the model anew")


class _NotInjected:
    """Read by peft before a bare injection, with which transformers' `load_adapter` begins: it would load wrong numbers
    there, because it renames keys by the prefix of one method.
    """

    def __get__(self, instance: Any, owner: type) -> bool:
        raise ValueError(
            "a hybrid adapter of autopeft (AUTOPEFT_HYBRID) cannot be injected into a bare model, and transformers' "
            "load_adapter cannot load it. Do: import autopeft.hybrid; peft.PeftModel.from_pretrained(base, folder)"
        )


class HybridModel(BaseTuner):
    """The tuner behind `HybridConfig`."""

    prefix = "autopeft_"
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    uses_shared_state = _NotInjected()

    def _prepare_adapter_config(self, peft_config: HybridConfig, model_config: dict[str, Any]) -> HybridConfig:
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: HybridConfig, key: str) -> bool:
        return key in peft_config.sites

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter's parts into the model; called for every adapter, unlike the hooks around injection."""
        config = self.peft_config[adapter_name]
        _check_fit(model, config)
        if config.kv_features:
            _use_prefix_attention(model)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        _hang_taps(model)

    def _create_and_replace(
        self,
        peft_config: HybridConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        inner: nn.Module | None = None
        for values in peft_config.sites[current_key]:
            knobs = dict(values)
            method = METHODS[str(knobs.pop("method"))]
            # With another adapter on the module already, a layer of the same kind is shared, as long as it lies
            # outside of the parts placed so far: the order inside an adapter is part of what it computes.
            shared = _outside(parent, target_name, inner)
            if method.layer is not None:
                layer = self._host(
                    peft_config, adapter_name, current_key, method.layer, knobs, parent, target_name, shared
                )
            else:
                layer = self._delegate(
                    peft_config, adapter_name, current_key, method.name, knobs, parent, target_name, shared
                )
            layer.autopeft_methods = {**getattr(layer, "autopeft_methods", {}), adapter_name: method.name}
            inner = layer

    def _host(
        self,
        config: HybridConfig,
        adapter: str,
        key: str,
        layer_key: str,
        knobs: dict[str, Any],
        parent: nn.Module,
        name: str,
        shared: list[tuple[nn.Module, str]],
    ) -> HostedLayer:
        outermost = getattr(parent, name)
        place = self._place(outermost, knobs, config.kv_features.get(key, 0))
        part = LAYERS[layer_key](place, knobs, config.dropout)
        for holder, attribute in shared:
            layer = getattr(holder, attribute)
            if isinstance(layer, HostedLayer) and layer.key == layer_key:
                layer.add(adapter, part)
                return layer
        layer = HostedLayer(outermost, layer_key)
        layer.add(adapter, part)
        setattr(parent, name, layer)
        return layer

    def _place(self, target: nn.Module, knobs: Mapping[str, Any], kv_features: int) -> Place:
        wide_in, wide_out = _shape(_innermost(target))
        reads = knobs.get("reads")
        wide_read = wide_in if reads is None else _shape(_innermost(self.model.get_submodule(str(reads))))[0]
        return Place(wide_in, wide_out, wide_read, kv_features)

    def _delegate(
        self,
        config: HybridConfig,
        adapter: str,
        key: str,
        method: str,
        knobs: dict[str, Any],
        parent: nn.Module,
        name: str,
        shared: list[tuple[nn.Module, str]],
    ) -> nn.Module:
        stock = stock_config(method, knobs, [key], dropout=config.dropout, module=_innermost(getattr(parent, name)))
        tuner_class = PEFT_TYPE_TO_TUNER_MAPPING[stock.peft_type]
        # An instance without injection: only its hook for one module is wanted, with all of peft's dispatching.
        tuner = tuner_class.__new__(tuner_class)
        nn.Module.__init__(tuner)
        tuner.model = self.model
        tuner.peft_config = {adapter: stock}
        tuner.active_adapter = adapter
        holder, attribute = parent, name
        for candidate in shared:
            if isinstance(getattr(*candidate), tuner_class.tuner_layer_cls):
                holder, attribute = candidate
                break
        else:
            if method in NEED_BARE and shared:
                holder, attribute = getattr(*shared[0]), "base_layer"
        tuner._create_and_replace(stock, adapter, getattr(holder, attribute), attribute, holder, current_key=key)
        layer = getattr(holder, attribute)
        layer.__class__ = _passing(type(layer))
        _own_dropout(layer, adapter)
        _store_decompositions(layer)
        return layer

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        held = f"_part.{adapter_name}."
        own = any(f".{kind}{held}" in key for kind in LAYERS)
        plain = key.replace(held, "_part.") if own else str(super()._remove_adapter_name_from_key(key, adapter_name))
        # How deep a part lies depends on what else is on the module; its name must not.
        return ".".join(step for step in plain.split(".") if step != "base_layer")

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Not offered: parts of one module are merged together, and cannot be taken out again."""
        raise NotImplementedError("a hybrid adapter is merged by merge_and_unload; nothing was changed")

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._check_mergeable(adapter_names)
            _merge_stacks(self.model, adapter_names or self.active_adapters)
        _take_taps_off(self.model)
        model: nn.Module = super()._unload_and_optionally_merge(
            merge=merge, progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
        )
        _use_plain_attention(model)
        return model

    def _check_mergeable(self, adapter_names: list[str] | None) -> None:
        stuck = []
        for adapter in adapter_names or self.active_adapters:
            for name, parts in self.peft_config[adapter].sites.items():
                stuck += [f"{part['method']} on {name}" for part in parts if not METHODS[part["method"]].mergeable]
        if stuck:
            raise ValueError(f"these parts cannot be merged, and nothing was changed: {'; '.join(stuck)}")


def register() -> None:
    """Make peft know the hybrid type; calling it again changes nothing."""
    version = importlib.metadata.version("peft")
    if not version.startswith(PEFT_VERSION):
        warnings.warn(f"autopeft's hybrid adapters were tested with peft {PEFT_VERSION}x, not {version}", stacklevel=2)
    PEFT_TYPE_TO_CONFIG_MAPPING[HYBRID] = HybridConfig
    PEFT_TYPE_TO_TUNER_MAPPING[HYBRID] = HybridModel
    PEFT_TYPE_TO_PREFIX_MAPPING[HYBRID] = HybridModel.prefix
    for family in ("eager", "sdpa"):
        AttentionInterface.register(f"autopeft_{family}", prefixed(family, _active_prefixes))
        AttentionMaskInterface.register(f"autopeft_{family}", ALL_MASK_ATTENTION_FUNCTIONS[family])


def stock_config(
    method: str,
    knobs: Mapping[str, Any],
    names: list[str] | None,
    *,
    dropout: float = 0.0,
    module: nn.Module | None = None,
    **extra: Any,
) -> PeftConfig:
    """The stock config for a method that it ships.

    Args:
        method: Name in the table.
        knobs: Its knobs.
        names: Full names of the modules that it sits on; None for a prompt, which sits on none.
        dropout: Dropout on the input, for methods that have one.
        module: One of those modules: peft wants to know how it stores its weight.
        extra: Further fields of the config.
    """
    row = METHODS[method]
    if row.peft_type is None:
        raise ValueError(f"peft has no {method}")
    values = row.stock(knobs)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(row.peft_type)]
    if row.dropout is not None:
        values[row.dropout] = dropout
    if "feedforward" in values:
        values["feedforward_modules"] = list(names or ()) if values.pop("feedforward") else []
    if "fan_in_fan_out" in config_class.__dataclass_fields__:
        values["fan_in_fan_out"] = isinstance(module, Conv1D)
    if names is not None:
        values["target_modules"] = list(names)
    config = config_class(**{**values, **extra})
    if row.peft_type == "SHIRA" and module is not None and module.weight.is_meta:
        config.mask_fn = _any_mask
    return config


def _any_mask(base_layer: nn.Module, r: int, **more: Any) -> torch.Tensor:
    """A mask with the right number of weights, where there are no values to choose by: 1 at the chosen ones."""
    shape = base_layer.weight.shape
    mask = torch.zeros(shape.numel(), device="cpu")
    mask[: int(r) * sum(shape)] = 1.0
    return mask.view(shape)


def hosted_parts(model: nn.Module, adapter: str = ADAPTER) -> Iterator[tuple[str, str, OwnPart, nn.Module]]:
    """`(module name, method, part, frozen module)` for every own part of an adapter, in the order of the modules."""
    for path, layer in model.named_modules():
        if isinstance(layer, HostedLayer) and adapter in layer.part:
            name = path.removeprefix("base_model.model.").split(".base_layer")[0]
            yield name, layer.autopeft_methods[adapter], layer.part[adapter], layer.get_base_layer()


def part_parameters(model: nn.Module, adapter: str = ADAPTER) -> Iterator[tuple[str, str, nn.Parameter]]:
    """`(method, full parameter name, parameter)` for every parameter of an adapter's parts."""
    whole = getattr(model, "autopeft_whole", None)
    if whole is not None:
        kept = {id(p) for module in kept_modules(model, adapter).values() for p in module.parameters()}
        yield from ((whole, name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in kept)
        return
    for name, layer in model.named_modules():
        method = getattr(layer, "autopeft_methods", {}).get(adapter)
        if method is None:
            continue
        # DoRA lists its magnitudes twice.
        for container_name in dict.fromkeys(layer.adapter_layer_names):
            container = getattr(layer, container_name)
            if adapter not in container:
                continue
            held = container[adapter]
            path = f"{name}.{container_name}.{adapter}"
            if isinstance(held, nn.Parameter):
                yield method, path, held
            else:
                for inner, parameter in held.named_parameters():
                    yield method, f"{path}.{inner}", parameter


def freeze_constants(model: nn.Module, adapter: str = ADAPTER) -> None:
    """Freeze what an adapter's layers hold as parameters and never train; peft thaws it when it changes their type."""
    for layer in model.modules():
        for name in getattr(layer, "other_param_names", ()):
            container = getattr(layer, name, None)
            if isinstance(container, nn.ParameterDict) and adapter in container:
                container[adapter].requires_grad_(False)


def kept_modules(model: nn.Module, adapter: str = ADAPTER) -> dict[str, nn.Module]:
    """Trained copies of task layers (peft's modules to save), by full name."""
    return {
        f"{name}.modules_to_save.{adapter}": module.modules_to_save[adapter]
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save
    }


def is_tuner_layer(module: nn.Module) -> bool:
    """Whether a module is one that an adapter put there."""
    return isinstance(module, BaseTunerLayer)


def _check_fit(model: nn.Module, config: HybridConfig) -> None:
    names = {name for name, _ in model.named_modules()}
    problems = [f"{name} is no module of this model" for name in config.sites if name not in names]
    for name, parts in config.sites.items():
        used = [str(part.get("method")) for part in parts]
        problems += [f"{name} asks for the unknown method {method}" for method in used if method not in METHODS]
        problems += [f"{name} asks for {method} twice" for method in sorted(set(used)) if used.count(method) > 1]
        tensors = [tensor_prefix(method) for method in used if method in METHODS]
        if len(set(tensors)) < len(tensors) and len(set(used)) == len(used):
            problems.append(f"{name} asks for methods whose tensors have the same names ({' and '.join(used)})")
        # They compute from the frozen weight itself, or train a copy of what they wrap: a part inside would be lost.
        outside = [method for method in used[1:] if method in METHODS and METHODS[method].innermost]
        problems += [
            f"{name} asks for {method} outside of another part: it must be the innermost" for method in outside
        ]
    if problems:
        raise ValueError("the hybrid adapter does not fit: " + "; ".join(problems))


def tensor_prefix(method: str) -> str:
    """What the names of a method's tensors begin with: LoRA, DoRA and AdaLoRA cannot share a module."""
    row = METHODS[method]
    if row.peft_type is None:
        return str(row.layer)
    return str(PEFT_TYPE_TO_PREFIX_MAPPING[PeftType(row.peft_type)])


def _hang_taps(model: nn.Module) -> None:
    """Let every parallel part read what goes into its module, before any other part of that module changes it."""
    _take_taps_off(model)
    for layer in list(model.modules()):
        if isinstance(layer, HostedLayer):
            for adapter, part in layer.part.items():
                if isinstance(part, ParallelPart) and part.reads is not None:
                    model.get_submodule(part.reads).register_forward_pre_hook(Tap(layer, part, adapter))


def _take_taps_off(model: nn.Module) -> None:
    for module in model.modules():
        for handle, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, Tap):
                del module._forward_pre_hooks[handle]


def _innermost(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _shape(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        # A quantised layer's weight is packed.
        return module.in_features, module.out_features
    weight = module.weight
    if weight.ndim == 1:
        return weight.shape[0], weight.shape[0]
    return tuple(weight.shape) if isinstance(module, Conv1D | nn.Embedding) else (weight.shape[1], weight.shape[0])


def _outside(parent: nn.Module, name: str, inner: nn.Module | None) -> list[tuple[nn.Module, str]]:
    """Where the tuner layers of a module hang that lie outside of `inner`, from inner to outer."""
    chain = []
    while isinstance(getattr(parent, name), BaseTunerLayer) and getattr(parent, name) is not inner:
        chain.append((parent, name))
        parent, name = getattr(parent, name), "base_layer"
    return chain[::-1]


def _store_decompositions(layer: nn.Module) -> None:
    """PSOFT's factors are stored: computed again on another machine, singular vectors could differ in sign."""
    for name in ("_psoft_A_cache", "_psoft_B_cache"):
        if hasattr(layer, name):
            getattr(layer, name)._non_persistent_buffers_set.clear()


def own_dropouts(model: nn.Module, adapter: str = ADAPTER) -> None:
    """Put our own dropout into every layer of an adapter: switched on without the base's, and seeded."""
    for layer in list(model.modules()):
        if isinstance(layer, BaseTunerLayer):
            _own_dropout(layer, adapter)


def _own_dropout(layer: nn.Module, adapter: str) -> None:
    for name, container in layer.named_children():
        held = isinstance(container, nn.ModuleDict) and name.endswith("_dropout") and adapter in container
        if held and isinstance(container[adapter], nn.Dropout):
            container[adapter] = AdapterDropout(container[adapter].p)


NEED_BARE = frozenset({"layernorm", *(name for name, row in METHODS.items() if row.innermost and row.peft_type)})
"""Methods whose layers compute from the frozen module itself, or train a copy of it: nothing can lie between."""


PASSING = "_Passing__"


class _Passing:
    """Mixed into layers of peft: when none of their own adapters is active, they pass on to what lies inside of them.

    Left alone some would take no notice of that, some would fail, some would round.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        names = [name for name in self.adapter_layer_names if hasattr(self, name)]  # type: ignore[attr-defined]
        held = {adapter for name in names for adapter in getattr(self, name)}
        if held.isdisjoint(self.active_adapters):  # type: ignore[attr-defined]
            return self.base_layer(x, *args, **kwargs)  # type: ignore[attr-defined]
        return super().forward(x, *args, **kwargs)  # type: ignore[misc]


def _passing(kind: type) -> type:
    """The passing kind of one of peft's layers, made once and found by name, so that models can be pickled."""
    if issubclass(kind, _Passing):
        return kind
    name = f"{PASSING}{kind.__module__.replace('.', '__')}__{kind.__name__}"
    if name not in globals():
        globals()[name] = type(name, (_Passing, kind), {"__module__": __name__, "__doc__": kind.__doc__})
    made: type = globals()[name]
    return made


def __getattr__(name: str) -> type:
    # A fresh process that unpickles a model asks for kinds that nothing has made there yet.
    if name.startswith(PASSING):
        module, _, kind = name.removeprefix(PASSING).replace("__", ".").rpartition(".")
        return _passing(getattr(importlib.import_module(module), kind))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _merge_stacks(model: nn.Module, adapters: list[str]) -> None:
    """Merge what lies on modules with several layers of parts: peft merges single layers only.

    Linear layers are merged by what they compute, because many layers read the frozen weight as they run: merging them
    one after the other would let them read one that has changed already.
    """
    stacks = [
        (model.get_submodule(parent), attribute, name, layer)
        for name, layer in model.named_modules()
        for parent, _, attribute in [name.rpartition(".")]
        if isinstance(layer, BaseTunerLayer) and isinstance(getattr(layer, "base_layer", None), BaseTunerLayer)
    ]
    for holder, attribute, name, layer in stacks:
        if isinstance(holder, BaseTunerLayer):
            continue
        chain = [layer]
        while isinstance(chain[-1].base_layer, BaseTunerLayer):
            chain.append(chain[-1].base_layer)
        if isinstance(layer.get_base_layer(), nn.Linear | Conv1D):
            for each in chain:
                each.set_adapter(adapters)
            setattr(holder, attribute, _computed(layer, name))
        else:
            for each in reversed(chain[1:]):
                each.merge(adapter_names=adapters)


@torch.no_grad()
def _computed(layer: BaseTunerLayer, name: str) -> nn.Module:
    """The frozen module of a stack of mergeable layers with the weight and bias that the stack computes.

    Raises:
        ValueError: The module holds no plain numbers, or has no bias for what would have to be one.
    """
    module = layer.get_base_layer()
    if not module.weight.is_floating_point():
        raise ValueError(f"{name} is quantised, and nothing can be merged into it")
    dtype, wide_in = module.weight.dtype, _shape(module)[0]
    # In new storage: the frozen tensors may be shared.
    module.weight = nn.Parameter(module.weight.detach().float(), requires_grad=False)
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach().float(), requires_grad=False)
    rows = torch.eye(wide_in, device=module.weight.device)
    bias = layer(rows.new_zeros(1, wide_in))
    weight = torch.cat([layer(chunk) - bias for chunk in rows.split(1024)])
    if module.bias is not None:
        module.bias = nn.Parameter(bias[0].to(dtype), requires_grad=False)
    elif bool(bias.abs().max() > 0):
        raise ValueError(f"{name} has no bias that a trained one could be merged into")
    plain = weight if isinstance(module, Conv1D) else weight.T.contiguous()
    module.weight = nn.Parameter(plain.to(dtype), requires_grad=False)
    return module


def _active_prefixes(module: nn.Module) -> Iterator[PrefixPart]:
    for child in module.modules():
        if isinstance(child, HostedLayer):
            yield from (part for part in child.active_parts() if isinstance(part, PrefixPart))


def _use_prefix_attention(model: nn.Module) -> None:
    now = str(getattr(model.config, "_attn_implementation", None))
    if now.startswith("autopeft_"):
        return
    if now not in ("eager", "sdpa"):
        raise ValueError(f"a prefix needs eager or sdpa attention, and this model runs {now}: load it with one of them")
    model.set_attn_implementation(f"autopeft_{now}")


def _use_plain_attention(model: nn.Module) -> None:
    now = str(getattr(getattr(model, "config", None), "_attn_implementation", None))
    if now.startswith("autopeft_"):
        model.set_attn_implementation(now.removeprefix("autopeft_"))
