"""The base model in memory: loaded once, shared between processes, and dressed with a head for the task.

`load_base` reads the weights into numpy arrays, which Ray's object store shares between processes; `attach` builds a
model around these very arrays, copying nothing; `skeleton` gives each trial module objects of its own over them.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import logging as hf_logging

from autopeft.compose.exact import stored_biases
from autopeft.compose.identity import (
    BaseIdentity,
    check_config,
    identify,
    load_tokenizer,
    plain_folder,
    read_config,
)
from autopeft.errors import InputError
from autopeft.inspect import module_map
from autopeft.space.modules import ModuleMap

__all__ = [
    "Attention",
    "BaseIdentity",
    "Carrier",
    "DType",
    "SharedBase",
    "attach",
    "base_config",
    "checksum",
    "identify",
    "load_base",
    "load_tokenizer",
    "meta_carrier",
    "model_positions",
    "plain_folder",
    "reads_left_to_right",
    "skeleton",
]

DType = Literal["float32", "bfloat16"]
Attention = Literal["eager", "sdpa"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FOLD = 4099
"""Words that the bytes of a tensor are folded into before they are hashed, where there are more."""


@dataclass(frozen=True)
class SharedBase:
    """A base model's weights, ready to be shared.

    Attributes:
        config: Its config as plain values.
        tensors: Name in the model -> array; bfloat16 is kept as int16, which numpy knows.
        dtype: The floating-point type of the weights.
        kind: The task kind that decided which layers were loaded.
        identity: Which model it is.
        biases: Name -> float32 array of biases that `tensors` hold rounded.
    """

    config: dict[str, Any]
    tensors: dict[str, npt.NDArray[Any]]
    dtype: DType
    kind: str
    identity: BaseIdentity
    biases: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.tensors.values())


@dataclass(frozen=True)
class Carrier:
    """A frozen base model with the layers of its task class: what trials are built on, and never written to.

    Attributes:
        model: In eval mode, nothing trainable.
        kind: The task kind.
        head: ``stock``, ``cls``, ``mean`` or ``lm``.
        labels: Classes; 1 for regression; 0 for language models.
        head_modules: Layers that the task class creates and that are trained and saved; empty for own heads.
        attention: The attention implementation in use.
        identity: Which base model it is; None for a model without weights.
        biases: Name (in the model without a task's layers) -> float32 array of biases that `model` holds rounded.
    """

    model: PreTrainedModel
    kind: str
    head: str
    labels: int
    head_modules: tuple[str, ...]
    attention: str
    identity: BaseIdentity | None
    biases: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @cached_property
    def modules(self) -> ModuleMap:
        """The places that can be adapted; the model is run once to find them."""
        return module_map(self.model)


def load_base(
    model: str | Path, revision: str | None = None, *, kind: str, dtype: DType = "float32", seed: int = 0
) -> SharedBase:
    """Read a base model's weights.

    Args:
        model: A folder, a ``.gguf`` file, or a hub id.
        revision: Of a hub model.
        kind: The task kind: classification and regression need the backbone, ``causal_lm`` the output layer as well.
        dtype: The floating-point type to keep the weights in.
        seed: For layers that the checkpoint lacks (a pooler).

    Raises:
        InputError: The model cannot be used, is damaged, or its weights do not belong to its config.
    """
    from safetensors import SafetensorError

    identity = identify(model, revision)
    folder = plain_folder(model, revision)
    config = _config(read_config(folder))
    model_class = _model_class(config, "lm" if kind == "causal_lm" else "mean")
    try:
        with quiet(), seeded(seed):
            built, info = model_class.from_pretrained(
                str(folder), config=config, dtype=DTYPES[dtype], attn_implementation="eager", output_loading_info=True
            )
    except (SafetensorError, OSError, RuntimeError, ValueError, ImportError) as error:
        rule = f"cannot be loaded ({str(error).splitlines()[0]})"
        raise InputError.one("task.model", str(model), rule, "Download or save the model again.") from error
    _check_complete(model, built, info["missing_keys"])
    _set_pad_token(config, folder)
    biases = {} if dtype == "float32" else stored_biases(built, folder)
    return SharedBase(_plain(config), _to_arrays(built), dtype, kind, identity, biases)


def base_config(model: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The config of a base model as `load_base` gives it, without its weights.

    Raises:
        InputError: As `load_base`, as far as the config tells.
    """
    return _plain(_config(read_config(plain_folder(model, revision))))


def attach(base: SharedBase, *, head: str, labels: int = 0, attention: Attention = "eager", seed: int = 0) -> Carrier:
    """Build a carrier around a shared base, without copying its weights.

    Args:
        base: The weights. Read-only arrays are fine: nothing here or later writes to them.
        head: ``stock`` (transformers' task class), ``cls`` or ``mean`` (the backbone; the head is ours), or ``lm``.
        labels: Classes; 1 for regression; ignored for ``lm``.
        attention: Falls back to ``eager`` where the architecture has no fused attention.
        seed: For the layers of a stock head.
    """
    config = _task_config(_config(base.config), base.kind, head, labels)
    model_class = _model_class(config, head)
    attention = _supported(model_class, attention)
    with quiet(), seeded(seed), warnings.catch_warnings():
        # Torch warns that numpy's arrays are read-only: they shall stay so, and `checksum` proves it.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        state = {name: _to_tensor(array, base.dtype) for name, array in base.tensors.items()}
        model = model_class.from_pretrained(
            None, config=config, state_dict=state, dtype=DTYPES[base.dtype], attn_implementation=attention
        )
    return replace(_carrier(model, base.kind, head, labels, attention, base.identity), biases=base.biases)


def meta_carrier(
    source: str | Path | dict[str, Any],
    *,
    kind: str,
    head: str,
    labels: int = 0,
    attention: Attention = "eager",
    dtype: DType = "float32",
    identity: BaseIdentity | None = None,
) -> Carrier:
    """A carrier without weights, for planning: a folder that holds only ``config.json`` is enough.

    Args:
        source: A folder, or a config as plain values.
        kind: The task kind.
        head: As for `attach`.
        labels: As for `attach`.
        attention: As for `attach`.
        dtype: The floating-point type that the weights would have.
        identity: Which base model it stands for, where that is known.

    Raises:
        InputError: The config cannot be used.
    """
    values = source if isinstance(source, dict) else read_config(Path(source))
    config = _task_config(_config(values, where=source), kind, head, labels)
    model_class = _model_class(config, head)
    attention = _supported(model_class, attention)
    with quiet(), torch.device("meta"):
        model = model_class._from_config(config, attn_implementation=attention, dtype=DTYPES[dtype])
    return _carrier(model, kind, head, labels, attention, identity)


def skeleton(carrier: Carrier) -> PreTrainedModel:
    """Fresh module objects over the carrier's own tensors, for one trial to adapt and throw away."""
    tensors = [*carrier.model.parameters(), *carrier.model.buffers()]
    return copy.deepcopy(carrier.model, {id(tensor): tensor for tensor in tensors})


def model_positions(config: Mapping[str, Any]) -> int | None:
    """Longest row that the model has positions for, or None."""
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(positions, int):
        return None
    # RoBERTa counts positions from after its padding token.
    reserved = (
        int(config.get("pad_token_id") or 0) + 1
        if config.get("model_type") in ("roberta", "xlm-roberta", "camembert")
        else 0
    )
    return positions - reserved


@torch.inference_mode()
def reads_left_to_right(carrier: Carrier) -> bool:
    """Whether a language model's logits at a token depend on nothing after it: what generating text rests on."""
    device = next(carrier.model.parameters()).device
    ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]], device=device)
    logits = carrier.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    one, other = logits[:, :3]
    return bool((one - other).abs().max() <= 1e-3 * logits.abs().max())


def checksum(carrier: Carrier) -> str:
    """A digest of all tensors of the carrier: unchanged as long as nobody wrote to the base."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in carrier.model.state_dict().items():
        total.update(name.encode())
        total.update(_folded(tensor).numpy().data)
    return total.hexdigest()


def _folded(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, folded into few where it is: sums of words, modulo 2^64, and what is left over.

    Reading the base is all that this costs, however large it is and on whichever device. Every word counts in one of
    the sums; their number is a prime, so that equal places of rows do not fall together.
    """
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    if flat.storage_offset() % 8:
        flat = flat.clone()  # A view that begins inside of a word cannot be read as words.
    words = flat.numel() // (8 * FOLD) * FOLD
    if words == 0:
        return flat.cpu()
    sums = flat[: 8 * words].view(torch.int64).view(-1, FOLD).sum(0)
    return torch.cat([sums.view(torch.uint8), flat[8 * words :]]).cpu()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's CPU generator at a seed, and put its state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and its report about new layers, which are expected here."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _config(values: dict[str, Any], where: Any = "config.json") -> PretrainedConfig:
    problems = check_config(values, where)
    if problems:
        raise InputError(problems)
    return CONFIG_MAPPING[values["model_type"]].from_dict(copy.deepcopy(values))


def _plain(config: PretrainedConfig) -> dict[str, Any]:
    values = config.to_dict()
    # A local path must not travel with the weights.
    values.pop("_name_or_path", None)
    values["model_type"] = config.model_type
    return dict(values)


def _task_config(config: PretrainedConfig, kind: str, head: str, labels: int) -> PretrainedConfig:
    if kind != "causal_lm":
        config.use_cache = False
    if head == "stock":
        config.num_labels = labels
        config.problem_type = "regression" if kind == "regression" else "single_label_classification"
    return config


def _model_class(config: PretrainedConfig, head: str) -> Any:
    mapping = {
        "lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        "stock": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }.get(head, modeling_auto.MODEL_MAPPING)
    if config.is_encoder_decoder:
        # Only the encoder of such a model can feed a head of ours.
        mapping = {} if head in ("lm", "stock") else modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING
    if type(config) not in mapping:
        rule = f"has no transformers class for the head {head!r} (model type {config.model_type})"
        raise InputError.one("task.model", config.model_type, rule, "Choose another head, task kind or model.")
    return mapping[type(config)]


def _supported(model_class: Any, attention: Attention) -> Attention:
    return attention if attention == "eager" or getattr(model_class, "_supports_sdpa", False) else "eager"


def _carrier(
    model: PreTrainedModel, kind: str, head: str, labels: int, attention: str, identity: BaseIdentity | None
) -> Carrier:
    model.eval().requires_grad_(False)
    head_modules: tuple[str, ...] = ()
    if head == "stock":
        head_modules = tuple(
            name
            for name, child in model.named_children()
            if name != model.base_model_prefix and next(child.parameters(), None) is not None
        )
    return Carrier(model, kind, head, labels, head_modules, attention, identity)


def _set_pad_token(config: PretrainedConfig, folder: Path) -> None:
    # Task classes of decoders find a row's last token by the padding token.
    if getattr(config, "pad_token_id", None) is not None:
        return
    try:
        config.pad_token_id = load_tokenizer(folder).pad_token_id
    except InputError:
        eos = getattr(config, "eos_token_id", None)
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos


def _check_complete(source: Any, model: PreTrainedModel, missing: Any) -> None:
    parameters = dict(model.named_parameters())
    absent = [name for name in sorted(missing) if name in parameters]
    share = sum(parameters[name].numel() for name in absent) / sum(p.numel() for p in parameters.values())
    if share > 0.1:
        rule = f"lacks {share:.0%} of its config's weights ({', '.join(absent[:3])}, ...)"
        raise InputError.one("task.model", str(source), rule, "Download or save the model again.")


def _to_arrays(model: PreTrainedModel) -> dict[str, npt.NDArray[Any]]:
    arrays = {}
    shared: dict[int, npt.NDArray[Any]] = {}
    for name, tensor in model.state_dict().items():
        plain = tensor.detach().contiguous()
        if plain.dtype == torch.bfloat16:
            plain = plain.view(torch.int16)
        # Tied weights stay one array, also after pickling.
        arrays[name] = shared.setdefault(tensor.data_ptr(), np.asarray(plain.numpy()))
    return arrays


def _to_tensor(array: npt.NDArray[Any], dtype: DType) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.int16 and dtype == "bfloat16" else tensor
