"""Base model + configuration -> adapted model, checked against what the configuration says."""

from __future__ import annotations

import inspect as pyinspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from autopeft.compose.base import Carrier, model_positions, seeded, skeleton
from autopeft.compose.choose import TrainingData, choose
from autopeft.compose.host import (
    ADAPTER,
    HybridConfig,
    adapted_modules,
    asks_for_training,
    exact_prompt,
    freeze_constants,
    kept_modules,
    own_dropouts,
    part_parameters,
    register,
    taken_positions,
    virtual_tokens,
)
from autopeft.compose.layers.dropout import AdapterDropout, record, replayed, reseed
from autopeft.compose.whole import intended_modules, whole_config
from autopeft.errors import TrialFailure
from autopeft.methods import METHODS
from autopeft.space.configuration import WHOLE, Configuration
from autopeft.space.modules import ModuleMap

__all__ = ["AdaptedModel", "adapt", "can_checkpoint", "reseed"]

HEAD_STD = 0.02

register()


class AdaptedModel(nn.Module):
    """A frozen base with trainable parts and a trainable head. Made by `adapt`; final.

    Attributes:
        carrier: What it was built on.
        configuration: What was built.
        model: The peft model; the bare transformers model where the configuration has no parts.
        head: The own head, a linear layer; None for stock heads and language models.
        adapter_params: Trainable parameters of the parts.
        head_params: Trainable parameters of the head.
        virtual_tokens: Positions that a prompt puts before the rows' own; they are cut off from what comes out.
        positions: Longest row that the model has positions for behind a prompt, or None where there is no limit.
    """

    def __init__(
        self, carrier: Carrier, configuration: Configuration, model: nn.Module, head: nn.Linear | None
    ) -> None:
        super().__init__()
        # The carrier is not part of this module: its tensors are not to be moved, copied or saved with it.
        object.__setattr__(self, "carrier", carrier)
        self.configuration = configuration
        self.model = model
        self.head = head
        accepted = pyinspect.signature(carrier.model.forward).parameters
        self._takes_types = "token_type_ids" in accepted
        self._takes_cache = "use_cache" in accepted
        self.virtual_tokens = virtual_tokens(model, ADAPTER) if configuration.whole is not None else 0
        positions = model_positions(carrier.model.config.to_dict())
        self.positions = None if positions is None else positions - taken_positions(model)
        self._groups: dict[str, list[str]] = {}
        for method, name, _ in part_parameters(model):
            self._groups.setdefault(method, []).append(f"model.{name}")
        stock = [f"model.{name}.{p}" for name, m in kept_modules(model).items() for p, _ in m.named_parameters()]
        own = [] if head is None else [f"head.{name}" for name, _ in head.named_parameters()]
        if stock or own:
            self._groups["head"] = stock + own
        groups = self.groups()
        self.head_params = sum(p.numel() for p in groups.get("head", []))
        self.adapter_params = sum(p.numel() for name, ps in groups.items() if name != "head" for p in ps)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The logits.

        Args:
            input_ids: int64 `[batch, length]`.
            attention_mask: int64 `[batch, length]`, 1 for tokens.
            token_type_ids: int64 `[batch, length]`; ignored by models that have none.

        Returns:
            `[batch, labels]` float32; for language models `[batch, length, vocabulary]`.
        """
        kwargs = self.inputs(input_ids, attention_mask, token_type_ids)
        if self.carrier.head == "lm":
            logits = self.model(**kwargs).logits
            # Whoever selects positions before the output layer gets `[positions, vocabulary]`.
            return logits[:, self.virtual_tokens :] if logits.ndim == 3 else logits
        output = self.model(**kwargs)
        if self.head is None:
            return output.logits.float()
        return self.classify(self.pool(output.last_hidden_state[:, self.virtual_tokens :], attention_mask))

    def inputs(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None
    ) -> dict[str, Any]:
        """The keyword arguments that the transformers model is called with."""
        kwargs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._takes_types and token_type_ids is not None:
            kwargs["token_type_ids"] = token_type_ids
        if self.carrier.head == "lm" and self._takes_cache:
            kwargs["use_cache"] = False
        return kwargs

    def pool(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The features that an own head reads.

        Args:
            hidden: `[batch, length, width]`.
            attention_mask: `[batch, length]`.

        Returns:
            float32 `[batch, width]`: the first token, or the mean over all tokens.
        """
        return pool(hidden, attention_mask, self.carrier.head)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """The own head, in float32 also under autocast: `[batch, width]` -> `[batch, labels]`."""
        if self.head is None:
            raise ValueError("a stock head cannot be run alone")
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features)

    def set_output_bias(self, value: float) -> None:
        """Start every output at a value, e.g. at the mean of the targets, where the head's last layer has a bias."""
        heads = [self.head] if self.head is not None else list(kept_modules(self.model).values())
        for head in heads:
            layers = [m for m in head.modules() if isinstance(m, nn.Linear) and m.out_features == self.carrier.labels]
            for layer in layers[-1:]:
                if layer.bias is not None:
                    nn.init.constant_(layer.bias, value)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate text as transformers does, for language models."""
        return self.model.generate(*args, **kwargs)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters by method, and ``head``."""
        by_name = dict(self.named_parameters(remove_duplicate=False))
        return {group: [by_name[name] for name in names] for group, names in self._groups.items()}

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        by_name = dict(self.named_parameters(remove_duplicate=False))
        return {name: by_name[name] for names in self._groups.values() for name in names}

    def train(self, mode: bool = True) -> AdaptedModel:
        """Switch the adapter dropout on or off; the base stays in eval mode, so it has no dropout of its own."""
        self.training = mode
        for module in self.children():
            module.train(False)
        for module in self.modules():
            # Only the flag: the frozen module inside stays in eval.
            if asks_for_training(module) or isinstance(module, AdapterDropout):
                module.training = mode
        return self

    def checkpoint_blocks(self) -> None:
        """Recompute the activations of every block in the backward pass instead of keeping them.

        transformers' own switch needs the base in training mode, which would switch its dropout on.

        Raises:
            TrialFailure: The architecture has no blocks that may be recomputed.
        """
        blocks = _blocks(self.model)
        if not blocks:
            raise TrialFailure(
                "unsupported", "this architecture has no blocks for gradient checkpointing", infeasible=True
            )
        for block in blocks:
            dropouts = [module for module in block.modules() if isinstance(module, AdapterDropout)]
            block.forward = partial(_recomputed, block.forward, dropouts)


def adapt(
    carrier: Carrier,
    configuration: Configuration,
    modules: ModuleMap,
    *,
    seed: int,
    data: TrainingData | None = None,
) -> AdaptedModel:
    """Build the model that a configuration describes.

    The parts are initialised from the seed; torch's global generator is left as it was. Adapter weights and head are
    float32, whatever the base is.

    Args:
        carrier: The frozen base; not changed.
        configuration: What to build; without parts only the head is trained.
        modules: The module map of ``carrier.model``.
        seed: Of initial values and adapter dropout.
        data: What is trained on, for methods that look at it when they are built; None where values are loaded next.

    Raises:
        TrialFailure: The configuration cannot be built on this model, or what was built is not what it says.
    """
    model = skeleton(carrier)
    if configuration.sites:
        with seeded(seed):
            model = _with_parts(model, carrier, configuration, modules)
            _let_go_of_views(model, carrier)
            try:
                choose(model, data)
            except ValueError as error:
                raise TrialFailure("unsupported", str(error), infeasible=True) from error
    elif carrier.head_modules:
        raise TrialFailure("unsupported", "a configuration without parts needs a head of ours", infeasible=True)
    # Seeded apart from the parts: with one seed, all configurations start from the same head.
    with seeded(seed):
        _fresh_stock_head(model, carrier)
        head = _own_head(carrier)
    adapted = AdaptedModel(carrier, configuration, model, head)
    _check_coverage(adapted, carrier, configuration, modules)
    reseed(adapted, seed)
    return adapted.train(False)


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, head: str) -> torch.Tensor:
    """Features for a linear head.

    Args:
        hidden: `[batch, length, width]`.
        attention_mask: `[batch, length]`.
        head: ``cls`` (first token) or ``mean`` (over the tokens of the row).

    Returns:
        float32 `[batch, width]`.
    """
    if head == "cls":
        return hidden[:, 0].float()
    mask = attention_mask.to(torch.float32).unsqueeze(-1)
    with torch.autocast(hidden.device.type, enabled=False):
        return (hidden.float() * mask).sum(1) / mask.sum(1).clamp_min(1.0)


def can_checkpoint(model: nn.Module) -> bool:
    """Whether the blocks of a model can be recomputed (`AdaptedModel.checkpoint_blocks`)."""
    return bool(_blocks(model))


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def hybrid_config(carrier: Carrier, configuration: Configuration, modules: ModuleMap) -> HybridConfig:
    """The peft config of a configuration."""
    kv = {}
    for name, part in configuration.parts():
        if "prefix" in METHODS[part.method].slots:
            features = modules[name].kv_features
            if features is None:
                raise TrialFailure("unsupported", f"no prefix is possible on {name}", infeasible=True)
            kv[name] = features
    return HybridConfig(
        sites={name: [part.to_dict() for part in parts] for name, parts in configuration.sites},
        kv_features=kv,
        dropout=configuration.training.dropout,
        modules_to_save=list(carrier.head_modules) or None,
    )


def _with_parts(model: nn.Module, carrier: Carrier, configuration: Configuration, modules: ModuleMap) -> PeftModel:
    names = {site.name for site in modules.sites} | {WHOLE}
    unknown = [name for name, _ in configuration.sites if name not in names]
    if unknown:
        raise TrialFailure("unsupported", f"the model has no place {unknown[0]!r} for a part", infeasible=True)
    try:
        with warnings.catch_warnings():
            # Said once per norm layer and trial: peft does not know their widths, and does not need to.
            warnings.filterwarnings("ignore", message="Unsupported layer type")
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            if configuration.whole is None:
                adapted = get_peft_model(model, hybrid_config(carrier, configuration, modules), adapter_name=ADAPTER)
                freeze_constants(adapted)
                return adapted
            config = whole_config(configuration.whole, modules, carrier, dropout=configuration.training.dropout)
            adapted = get_peft_model(model, config, adapter_name=ADAPTER)
            adapted.autopeft_whole = configuration.whole.method
            own_dropouts(adapted)
            exact_prompt(adapted, ADAPTER)
            return adapted
    except (ValueError, NotImplementedError, TypeError) as error:
        raise TrialFailure("unsupported", str(error), infeasible=True) from error


def _let_go_of_views(model: nn.Module, carrier: Carrier) -> None:
    """Copy what is a small view of something large: a row of a matrix of singular vectors would keep all of it."""
    base = {id(tensor) for tensor in (*carrier.model.parameters(), *carrier.model.buffers())}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in base and tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size():
            tensor.data = tensor.data.clone()


def _own_head(carrier: Carrier) -> nn.Linear | None:
    if carrier.head not in ("cls", "mean"):
        return None
    reference = next(carrier.model.parameters())
    head = nn.Linear(carrier.model.config.hidden_size, carrier.labels)
    nn.init.normal_(head.weight, std=HEAD_STD)
    nn.init.zeros_(head.bias)
    return head.to(reference.device)


def _fresh_stock_head(model: nn.Module, carrier: Carrier) -> None:
    """Initialise the trained copy of the task layers anew, as transformers would, in float32."""
    for kept in kept_modules(model).values():
        kept.float()
        for module in kept.modules():
            # transformers marks what it has initialised or loaded, and passes such modules over.
            for mark in (module, *module.parameters(recurse=False)):
                if getattr(mark, "_is_hf_initialized", False):
                    mark._is_hf_initialized = False
            carrier.model._init_weights(module)
        kept.register_forward_pre_hook(_to_float32)


def _to_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def _check_coverage(adapted: AdaptedModel, carrier: Carrier, configuration: Configuration, modules: ModuleMap) -> None:
    trained = {id(parameter) for parameter in adapted.trained().values()}
    stray = [name for name, p in adapted.named_parameters() if p.requires_grad != (id(p) in trained)]
    base = {id(parameter) for parameter in carrier.model.parameters()}
    promised = configuration.adapter_params(modules)
    if configuration.whole is not None:
        intended = set(intended_modules(configuration.whole, modules))
    else:
        intended = {name for name, _ in configuration.sites}
    built = adapted_modules(adapted.model) if configuration.sites else set()
    fault = None
    if built != intended:
        fault = f"{len(intended ^ built)} modules are adapted by mistake or missing, e.g. {sorted(intended ^ built)[0]}"
    elif stray:
        fault = f"{len(stray)} parameters are frozen or trainable by mistake, e.g. {stray[0]}"
    elif trained & base:
        fault = "a tensor of the shared base would be trained"
    elif adapted.adapter_params != promised:
        fault = f"{adapted.adapter_params} adapter parameters were built where {promised} were promised"
    elif carrier.head_modules and len(kept_modules(adapted.model)) != len(carrier.head_modules):
        fault = f"the head {carrier.head_modules} was not found once each"
    if fault is not None:
        raise TrialFailure("coverage", fault, infeasible=True)


@contextmanager
def _again(mode: TorchFunctionMode | None, masks: AbstractContextManager[None]) -> Iterator[None]:
    with mode or nullcontext(), masks:
        yield


def _recomputed(forward: Callable[..., Any], dropouts: list[AdapterDropout], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        # The second pass must draw the masks of the first one, and compute under its mode.
        return nullcontext(), _again(_get_current_function_mode(), replayed(dropouts, record(dropouts)))

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)
