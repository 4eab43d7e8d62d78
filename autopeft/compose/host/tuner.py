"""The tuner behind hybrid adapters."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _filter_state_dict_by_key_prefixes,
    _get_tuner_state_dict_key_prefixes,
)
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from autopeft.compose.host.config import HYBRID, PEFT_VERSION, HybridConfig, stock_config, tensor_prefix
from autopeft.compose.host.delegated import NEED_BARE, own_dropout, passing, store_decompositions
from autopeft.compose.host.layer import HostedLayer, innermost, shape_of
from autopeft.compose.host.merging import merge_stacks
from autopeft.compose.layers import LAYERS, Place
from autopeft.compose.layers.bottleneck import ParallelPart, Tap
from autopeft.compose.layers.prefix import PrefixPart, prefixed
from autopeft.methods import METHODS

__all__ = ["HybridModel", "active_prefixes", "register"]


class CannotInject(AttributeError, ValueError):
    """Both: for those who ask for any attribute, and for those who inject."""


class _NotInjected:
    """Read by peft before a bare injection, with which transformers' `load_adapter` begins: it would load wrong numbers
    there, because it renames keys by the prefix of one method.
    """

    def __get__(self, instance: Any, owner: type) -> bool:
        raise CannotInject(
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
        wide_in, wide_out = shape_of(innermost(target))
        reads = knobs.get("reads")
        wide_read = wide_in if reads is None else shape_of(innermost(self.model.get_submodule(str(reads))))[0]
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
        stock = stock_config(method, knobs, [key], dropout=config.dropout, module=innermost(getattr(parent, name)))
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
        layer.__class__ = passing(type(layer))
        own_dropout(layer, adapter)
        store_decompositions(layer)
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

    def unmerge_adapter(self) -> None:
        """Not offered, as `merge_adapter` is not."""
        raise NotImplementedError("a hybrid adapter is never merged in place, so there is nothing to take out")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: HybridConfig, adapter_name: str, state_dict: dict[str, Any]
    ) -> dict[str, Any]:
        # peft would load what is there and leave the rest as it was made.
        prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
        held = _filter_state_dict_by_key_prefixes(model.state_dict(), prefixes)
        expected = {cls._remove_adapter_name_from_key(key, adapter_name) for key in held}
        missing = sorted(expected - set(state_dict))
        if missing:
            raise ValueError(f"the hybrid adapter lacks {len(missing)} of its tensors, e.g. {missing[0]}")
        loaded: dict[str, Any] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        return loaded

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._check_mergeable(adapter_names)
            merge_stacks(self.model, adapter_names or self.active_adapters)
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
        AttentionInterface.register(f"autopeft_{family}", prefixed(family, active_prefixes))
        AttentionMaskInterface.register(f"autopeft_{family}", ALL_MASK_ATTENTION_FUNCTIONS[family])


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


def _outside(parent: nn.Module, name: str, inner: nn.Module | None) -> list[tuple[nn.Module, str]]:
    """Where the tuner layers of a module hang that lie outside of `inner`, from inner to outer."""
    chain = []
    while isinstance(getattr(parent, name), BaseTunerLayer) and getattr(parent, name) is not inner:
        chain.append((parent, name))
        parent, name = getattr(parent, name), "base_layer"
    return chain[::-1]


def active_prefixes(module: nn.Module) -> Iterator[PrefixPart]:
    """The prefixes inside an attention module that take part in its forward pass."""
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
