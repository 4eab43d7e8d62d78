"""Which base model: from what the user wrote to a checked local folder, and to an identity that holds anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from autopeft.errors import InputError, Problem

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]
TOKENIZER_FILES = ["tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "added_tokens.json", "*.model"]
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """A base model, named so that another machine can check that it has the same one.

    Attributes:
        id: The hub id, or ``local:`` and the first 16 digits of the hash for a folder. Never a path.
        revision: The commit of a hub model; None for a folder.
        content_hash: sha256 over ``config.json`` and the safetensors files.
        model_type: The model type of its config.
    """

    id: str
    revision: str | None
    content_hash: str
    model_type: str


def identify(model: str | Path, revision: str | None = None) -> BaseIdentity:
    """The identity of a base model, after checking that it can be used.

    Args:
        model: A folder, a ``.gguf`` file, or a hub id.
        revision: Branch, tag or commit of a hub model.

    Raises:
        InputError: It does not exist, needs code that came with it, has no safetensors weights, or is of no known type.
    """
    folder, hub = _locate(str(model), revision)
    config = _check_folder(folder)
    content = _content_hash(folder, _stamp(folder))
    if hub is None:
        return BaseIdentity(f"local:{content[:16]}", None, content, config["model_type"])
    return BaseIdentity(hub[0], hub[1], content, config["model_type"])


def plain_folder(model: str | Path, revision: str | None = None) -> Path:
    """A local folder with ``config.json`` and safetensors weights.

    A ``.gguf`` file is converted once, dequantised, into the cache; a hub model is taken from the hub's own cache.

    Raises:
        InputError: As `identify`, without looking into the folder's weights.
    """
    return _locate(str(model), revision)[0]


def config_alone(model: str | Path) -> Path | None:
    """The config of a model of which no weights are there: a ``.json`` file, or that of a folder without weights.

    Returns:
        Its path; None where there may be weights, or where there is no config.
    """
    path = Path(model).expanduser()
    if path.suffix == ".json" and path.is_file():
        return path
    config = path / "config.json"
    if not config.is_file() or any(held for form in ("*.safetensors", *PICKLES) for held in path.glob(form)):
        return None
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``, or such a file itself.

    Raises:
        InputError: It is missing or no JSON object.
    """
    path = folder if folder.is_file() else folder / "config.json"
    if not path.is_file():
        raise _wrong(folder, "has no config.json", "Name a folder saved by `save_pretrained`.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _wrong(path, f"is not valid JSON ({error})", "Restore the file.") from error
    if not isinstance(config, dict):
        raise _wrong(path, "is not a JSON object", "Restore the file.")
    return config


def check_config(config: dict[str, Any], where: Any) -> list[Problem]:
    """What forbids building a model from a config, without its weights."""
    from transformers import CONFIG_MAPPING

    problems = []
    if "auto_map" in config:
        problems.append(
            Problem("task.model", str(where), "needs code that came with it (auto_map)", "Use a model of transformers.")
        )
    if config.get("model_type") not in CONFIG_MAPPING:
        rule = f"is of a model type that transformers does not know: {config.get('model_type')!r}"
        problems.append(Problem("task.model", str(where), rule, "Use a model of transformers."))
    return problems


def _check_folder(folder: Path) -> dict[str, Any]:
    """Check a model folder and return its config.

    Raises:
        InputError: With everything that is wrong.
    """
    config = read_config(folder)
    problems = check_config(config, folder)
    code = sorted(path.name for path in folder.glob("*.py"))
    if code:
        rule = f"contains Python code ({', '.join(code[:3])}), which is never run"
        problems.append(Problem("task.model", str(folder), rule, "Use a model whose code is in transformers."))
    if not any(folder.glob("*.safetensors")):
        pickled = any(path for pattern in PICKLES for path in folder.glob(pattern))
        rule = "has pickled weights only, which can run code when opened" if pickled else "has no *.safetensors weights"
        problems.append(Problem("task.model", str(folder), rule, "Save it again with `safe_serialization=True`."))
    if problems:
        raise InputError(problems)
    return config


def load_tokenizer(model: str | Path, revision: str | None = None) -> Any:
    """The model's tokenizer, with a padding token (the end-of-text token where it has none).

    Raises:
        InputError: The model has none, or only one made by code of its own.
    """
    from transformers import AutoTokenizer

    folder = plain_folder(model, revision)
    # Without files transformers would make an empty tokenizer that knows no word.
    if not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        raise _wrong(folder, "has no tokenizer files", "Put the tokenizer's files into the folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        rule = f"has no tokenizer that transformers can load ({str(error).splitlines()[0]})"
        raise _wrong(folder, rule, "Put the tokenizer's files into the folder.") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise _wrong(folder, "has a tokenizer without padding and end tokens", "Set its pad_token and save it.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _wrong(value: Any, rule: str, next_step: str) -> InputError:
    return InputError.one("task.model", str(value), rule, next_step)


def _locate(model: str, revision: str | None) -> tuple[Path, tuple[str, str] | None]:
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise _wrong(model, "is no file", "Give the path of a .gguf file.")
        return _from_gguf(path), None
    if path.is_dir():
        return path, None
    if path.exists():
        raise _wrong(model, "is neither a folder nor a .gguf file", "Give a model folder or a hub id.")
    if HUB_ID.fullmatch(model) is None:
        raise _wrong(model, "does not exist", "Give an existing folder, a .gguf file or a hub id.")
    folder = _from_hub(model, revision)
    return folder, (model, folder.name)


def _from_hub(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # The snapshot's folder is named after the commit, which pins a branch or tag for good.
        return Path(snapshot_download(model, revision=revision, allow_patterns=[*HUB_FILES, *TOKENIZER_FILES]))
    except HFValidationError as error:
        raise _wrong(model, "is neither a folder nor a valid hub id", "Check the spelling.") from error
    except (LocalEntryNotFoundError, OSError, HfHubHTTPError) as error:
        rule = f"is no folder here and could not be fetched from the hub ({type(error).__name__})"
        raise _wrong(model, rule, "Check the name and the network, or give a local folder.") from error


def _from_gguf(path: Path) -> Path:
    home = Path(os.environ.get("AUTOPEFT_HOME") or Path.home() / ".autopeft")
    target = home / "models" / _file_hash(path, path.stat().st_mtime_ns)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        _convert_gguf(path, work)
        try:
            work.rename(target)
        except OSError:
            # Another process finished the same conversion first: its folder is as good.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _convert_gguf(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except ImportError as error:
        raise _wrong(path, "needs the package gguf", "Install autopeft[gguf].") from error
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        rule = (
            f"could not be read as a gguf model ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        )
        raise _wrong(path, rule, "Use a gguf file of an architecture that transformers reads.") from error
    # The weights are dequantised by now; these marks would make transformers and peft treat them as quantised.
    for holder, mark in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "is_quantized")):
        if hasattr(holder, mark):
            delattr(holder, mark)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


@lru_cache(maxsize=16)
def _content_hash(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, modified in stamp:
        total.update(name.encode() + b"\0" + bytes.fromhex(_file_hash(folder / name, modified)))
    return total.hexdigest()


@lru_cache(maxsize=64)
def _file_hash(path: Path, modified: int) -> str:
    # `modified` is part of the cache key only: a file that changes is read again.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
