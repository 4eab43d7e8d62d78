"""A base model of which only the config is known: enough to plan with, nothing to train."""

from __future__ import annotations

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from autopeft.compose.base import DType, SharedBase, quiet
from autopeft.compose.identity import BaseIdentity, check_config, config_alone, plain_folder, read_config
from autopeft.errors import InputError, Problem
from autopeft.space.configuration import digest

__all__ = ["planned_base", "unbuildable"]


def planned_base(model: str, revision: str | None = None, *, kind: str, dtype: DType = "float32") -> SharedBase:
    """A base without tensors, from its config. Weights are not looked at, whether there are any or not.

    Args:
        model: A ``.json`` file, a folder with a ``config.json``, or whatever `load_base` takes.
        revision: Of a hub model.
        kind: The task kind.
        dtype: The floating-point type that the weights would have.

    Raises:
        InputError: The config cannot be used.
    """
    path = config_alone(model) or plain_folder(model, revision)
    values = read_config(path)
    problems = check_config(values, model)
    if not model.endswith(".json") and any((path.parent if path.is_file() else path).glob("*.py")):
        rule = "comes with Python code, which is never run"
        problems.append(Problem("task.model", model, rule, "Use a model whose code is in transformers."))
    if problems:
        raise InputError(problems)
    model_type = str(values["model_type"])
    try:
        with quiet():
            config = CONFIG_MAPPING[model_type].from_dict(dict(values)).to_dict()
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        raise unbuildable(model, error) from error
    config.pop("_name_or_path", None)
    config["model_type"] = model_type
    if config.get("pad_token_id") is None:
        # Task classes of decoders refuse batches without one; which token it is changes no size.
        config["pad_token_id"] = 0
    content = digest(values)
    identity = BaseIdentity(f"config:{content[:16]}", None, content, model_type)
    return SharedBase(config, {}, dtype, kind, identity)


def unbuildable(model: str, error: Exception) -> InputError:
    """The error for a config that its architecture refuses."""
    rule = (
        f"has a config that no model can be built from ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
    )
    return InputError.one("task.model", model, rule, "Correct the config.")
