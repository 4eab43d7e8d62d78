"""Adapters on disk: a peft folder, plus the head, a description and a manifest. Nothing in it is a local path.

adapter_config.json, adapter_model.safetensors   what peft reads (absent when only a head was trained)
head.safetensors                                 a head of ours
autopeft.json                                    what it is and what it belongs to
manifest.json                                    sha256 of every other file
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autopeft.compose.adapt import AdaptedModel, adapt, hybrid_config
from autopeft.compose.base import Carrier
from autopeft.compose.biases import as_deltas, whole_biases
from autopeft.compose.host import ADAPTER, recompute_constants
from autopeft.compose.lower import lower
from autopeft.compose.manifest import MANIFEST, check_manifest, damaged, read_json, write_manifest
from autopeft.errors import InputError, Problem, TrialFailure
from autopeft.methods import METHODS
from autopeft.space.beside import writes_base_biases
from autopeft.space.configuration import Configuration

__all__ = ["describe", "load_adapter", "save_adapter"]

SCHEMA = 1
CONFIG, WEIGHTS, HEAD, ABOUT = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "head.safetensors",
    "autopeft.json",
)
WRITES = "writes_base_biases"
"""In the description: whether plain peft loads trained biases over those of the base."""


def save_adapter(adapted: AdaptedModel, folder: str | Path, *, meta: dict[str, Any], target: str = "any") -> str:
    """Write an adapter, so that the folder is either the whole new one or what was there before.

    Args:
        adapted: The trained model.
        folder: Where to; an adapter that is there already is replaced.
        meta: Plain values to keep with it (scores, seed, rows); no local paths.
        target: What must load it. For ``peft``, LoRA or DoRA with trained biases becomes plain peft's too; that stores
            each trained bias as its sum with the base's, which reading it back rounds once. Else such an adapter is
            of the hybrid type, and exact.

    Returns:
        The sha256 of the weights: a digest over the names and hashes of the safetensors files.
    """
    carrier = adapted.carrier
    if carrier.identity is None:
        raise ValueError("an adapter of a model without weights cannot be saved")
    place = Path(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        lowered = lower(adapted.configuration, carrier, target=target) if adapted.configuration.sites else None
        biased = lowered is not None and writes_base_biases(adapted.configuration, target)
        if adapted.configuration.sites:
            _write_peft(adapted, None if lowered is None else lowered[1], biased, work)
        if adapted.head is not None:
            _write_tensors({name: p.detach() for name, p in adapted.head.named_parameters()}, work / HEAD)
        about = {
            "schema": SCHEMA,
            "kind": carrier.kind,
            "head": carrier.head,
            "labels": carrier.labels,
            "adapter_params": adapted.adapter_params,
            "head_params": adapted.head_params,
            "configuration": adapted.configuration.to_dict(),
            "lowered_to": _lowered_to(adapted.configuration, lowered),
            **({WRITES: True} if biased else {}),
            "identity": asdict(carrier.identity),
            "meta": meta,
        }
        _write_json(about, work / ABOUT)
        manifest = write_manifest(work)
        work.chmod(0o755)
        for path in [*work.iterdir(), work]:
            _sync(path)
        _replace(work, place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _weights_hash(manifest)


def load_adapter(carrier: Carrier, folder: str | Path, *, trainable: bool = False) -> AdaptedModel:
    """Build the adapted model that a folder holds.

    Args:
        carrier: The base that it was trained on, with the same head.
        folder: An adapter written by `save_adapter`.
        trainable: Whether it shall be trained on.

    Raises:
        DamagedFile: A file is missing or is not what was written.
        InputError: It belongs to another base model, task kind or head, or to a newer autopeft.
    """
    path = Path(folder)
    about = describe(path)
    _check_base(carrier, about, path)
    configuration = Configuration.from_dict(about["configuration"])
    try:
        # Some methods compute constants from the frozen weights when they are built.
        with torch.autocast(carrier.model.device.type, enabled=False):
            adapted = adapt(carrier, configuration, carrier.modules, seed=0)
    except TrialFailure as error:
        raise InputError.one("adapter", str(path), error.detail, "Use the autopeft that wrote it.") from error
    if configuration.sites:
        tensors = _read_tensors(path / WEIGHTS)
        if about.get(WRITES):
            tensors = as_deltas(tensors, configuration, carrier)
        _check_names(path, set(tensors), set(_peft_tensors(adapted)))
        set_peft_model_state_dict(adapted.model, tensors, adapter_name=ADAPTER)
        recompute_constants(adapted.model)
        if configuration.whole is not None:
            _as_stored(adapted, path, trainable)
    if adapted.head is not None:
        tensors = _read_tensors(path / HEAD)
        _check_names(path, set(tensors), set(adapted.head.state_dict()))
        adapted.head.load_state_dict(tensors)
    if not trainable:
        adapted.requires_grad_(False)
    return adapted.train(False)


def describe(folder: str | Path) -> dict[str, Any]:
    """What an adapter folder says about itself, after checking all of its files against the manifest.

    Returns:
        The values of ``autopeft.json``, and ``weights``: the hash that `save_adapter` returned.

    Raises:
        DamagedFile: A file is missing or is not what was written.
        InputError: It is no adapter folder, or one of a newer autopeft.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError.one("adapter", str(path), "is no folder", "Give a folder that holds an adapter.")
    manifest = check_manifest(path)
    if ABOUT not in manifest:
        raise damaged(path / MANIFEST, "is not a manifest of an adapter")
    about = read_json(path / ABOUT)
    if about.get("schema") != SCHEMA:
        rule = f"has schema {about.get('schema')!r}; this autopeft reads {SCHEMA}"
        raise InputError.one("adapter", str(path), rule, "Install the autopeft that wrote it.")
    return {**about, "weights": _weights_hash(manifest)}


def _as_stored(adapted: AdaptedModel, path: Path, trainable: bool) -> None:
    """Some folders hold a finished prompt and no longer what it was made from."""
    config = adapted.model.peft_config[ADAPTER]
    if trainable and str(config.peft_type.value) in ("P_TUNING", "CPT"):
        rule = "holds a finished prompt, without what it was made from"
        raise InputError.one("adapter", str(path), rule, "Train it from the beginning.")
    config.inference_mode = not trainable
    if hasattr(config, "cpt_token_ids"):
        config.cpt_token_ids = read_json(path / CONFIG)["cpt_token_ids"]


def _lowered_to(configuration: Configuration, lowered: tuple[str, PeftConfig] | None) -> str | None:
    """The stock peft type that the folder holds, or None for the hybrid type and for a head alone."""
    if lowered is None or not all(METHODS[method].lowers for method in configuration.methods):
        return None
    return lowered[0]


def _write_peft(adapted: AdaptedModel, config: PeftConfig | None, biased: bool, folder: Path) -> None:
    """The files that peft reads.

    Args:
        adapted: The trained model.
        config: What it was lowered to, or None for the hybrid type.
        biased: Whether the lowered form holds whole biases.
        folder: Where to.
    """
    carrier = adapted.carrier
    if config is None:
        config = hybrid_config(carrier, adapted.configuration, carrier.modules)
    built = adapted.model.peft_config[ADAPTER]
    if hasattr(built, "cpt_token_ids"):
        # Chosen when the trial began.
        config.cpt_token_ids = built.cpt_token_ids
    config.base_model_name_or_path = carrier.identity.id
    config.revision = carrier.identity.revision
    config.inference_mode = True
    _write_json({k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}, folder / CONFIG)
    # Keys are the same for both types: the hosted layers of peft's own methods are peft's.
    tensors = _peft_tensors(adapted)
    _write_tensors(whole_biases(tensors, adapted.configuration, carrier) if biased else tensors, folder / WEIGHTS)


def _peft_tensors(adapted: AdaptedModel) -> dict[str, torch.Tensor]:
    # Embeddings are never trained here; left to guess, peft would look the base model up on the hub to find out.
    tensors = get_peft_model_state_dict(adapted.model, adapter_name=ADAPTER, save_embedding_layers=False)
    return dict(tensors)


def _write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


def _write_json(values: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(work: Path, target: Path) -> None:
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        target.rename(old / "adapter")
        work.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        work.rename(target)
    _sync(target.parent)


def _check_base(carrier: Carrier, about: dict[str, Any], path: Path) -> None:
    problems = []
    have = None if carrier.identity is None else carrier.identity.content_hash
    if about["identity"]["content_hash"] != have:
        rule = f"was trained on another base model ({about['identity']['id']})"
        problems.append(Problem("adapter", str(path), rule, "Load the base model that it was trained on."))
    for field in ("kind", "head", "labels"):
        if about[field] != getattr(carrier, field):
            rule = f"was trained with {field} {about[field]!r}, not {getattr(carrier, field)!r}"
            problems.append(Problem("adapter", str(path), rule, f"Give the {field} that it was trained with."))
    if problems:
        raise InputError(problems)


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    if found != expected:
        odd = sorted(found ^ expected)[0]
        raise damaged(path, f"does not hold the tensors of its configuration (e.g. {odd})")


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise damaged(path, f"cannot be read ({str(error).splitlines()[0]})") from error


def _weights_hash(manifest: dict[str, str]) -> str:
    entries = [f"{name} {digest}" for name, digest in sorted(manifest.items()) if name.endswith(".safetensors")]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()
