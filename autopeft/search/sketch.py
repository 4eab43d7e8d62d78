"""What a search would run on, as far as it can be known without weights: for plans."""

from __future__ import annotations

from typing import Any

from autopeft.compose.base import DType, load_tokenizer, model_positions
from autopeft.compose.identity import TOKENIZER_FILES, config_alone
from autopeft.compose.planned import planned_base, unbuildable
from autopeft.data.encode import plan_of
from autopeft.data.estimate import estimate
from autopeft.data.plan import TextPlan
from autopeft.data.tokens import encode_once
from autopeft.errors import InputError
from autopeft.search.prepare import gather, on_gpus
from autopeft.search.prepared import Prepared
from autopeft.spec import SearchSpec
from autopeft.trial.computing import by_rule, precision_here


def sketch(spec: SearchSpec, device_tflops: float | None = None) -> Prepared:
    """Read and check everything but the weights, which are neither needed nor looked at.

    Where the model has no tokenizer either, the lengths of the rows are estimated.

    Args:
        spec: What was asked for.
        device_tflops: What the device that is planned for achieves; None plans for this machine.

    Raises:
        InputError: Everything about task, space and strategy that cannot be used.
    """
    gathered = gather(spec, lambda: _tokenizer(spec))
    spec, raw, tokenizer = gathered.spec, gathered.raw, gathered.tokenizer
    gpu = device_tflops is not None or on_gpus(spec)
    precision: DType = "bfloat16" if device_tflops is not None else precision_here(gpu)
    base = planned_base(spec.task.model, spec.task.revision, kind=raw.kind, dtype=precision)
    limits: dict[str, Any] = {"max_length": spec.task.max_length, "model_max": model_positions(base.config)}
    if tokenizer is None:
        data, told = estimate(raw, **limits)
        text = TextPlan(raw.kind, raw.text_columns, raw.prompt_column, data.max_length, raw.label_names)
    else:
        data, told = encode_once(raw, tokenizer, **limits)
        text = plan_of(raw, data, tokenizer)
    computing = by_rule(gpu=gpu, longest=data.max_length, threads=1, precision=precision)
    attention = computing.attention
    notes = [*raw.notes, *told, f"the frozen base would compute in {precision} with {attention} attention"]
    if spec.incumbent is not None:
        notes.append("The incumbent is not looked at: that needs the weights of its base.")
    prepared = gathered.with_model(
        data=data.padded_to(computing.padding),
        text=text,
        base=base,
        gpu=gpu,
        precision=precision,
        attention=attention,
        computing=computing,
        memory_limit=spec.budget.max_memory,
        notes=tuple(notes),
        # They were read and checked; what they hold matters only to a search.
        eval_sets={},
    )
    try:
        prepared.modules(prepared.heads[0])
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise unbuildable(spec.task.model, error) from error
    return prepared


def _tokenizer(spec: SearchSpec) -> Any:
    """The tokenizer, or None for a config that stands alone."""
    config = config_alone(spec.task.model)
    if config is None:
        return load_tokenizer(spec.task.model, spec.task.revision)
    folder = config.parent
    beside = config.name == "config.json" and any(any(folder.glob(form)) for form in TOKENIZER_FILES)
    return load_tokenizer(folder) if beside else None
