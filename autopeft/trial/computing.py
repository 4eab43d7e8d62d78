"""How a search's numbers are computed on its machine: by rule, as measured here, as asked for, or as before.

Precision, attention and padding change the last digits of a result, so that they are chosen once for a search, written
into its journal and kept when it is resumed. Threads change nothing but the time.
"""

from __future__ import annotations

import hashlib
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from autopeft.compose.base import Attention, DType
from autopeft.data.cache import Shelf, key_of
from autopeft.data.encoded import PAD_MULTIPLE, EncodedSplit, padded_length

Source = Literal["rule", "measured", "cached", "given", "journal"]
LONG_ROWS = 256
"""Tokens from which fused attention pays on a processor: below, its backward pass costs more than it saves."""
FINE_PADDING, FINE_UP_TO = 2, 128
"""On a processor batches are padded to multiples of the first where no row has more tokens than the second: of short
rows it saves a tenth of the work; long ones would only come in more shapes, each of which a kernel is made for."""
EVALUATION_ROWS = 32
"""Rows of an evaluation batch where nothing was measured."""
QUANTILES = (1 / 6, 1 / 2, 5 / 6)
"""Each stands for a third of the rows."""
VERSION = 2
"""Of the measurement: answers of another one are not used."""
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Computing:
    """How numbers are computed.

    Attributes:
        precision: Dtype of the frozen base and of the arithmetic on it.
        attention: Attention implementation of the base.
        evaluation_rows: Rows of an evaluation batch.
        threads: Threads of a worker.
        padding: Batches are padded to multiples of so many tokens.
        source: ``rule``; ``measured`` now, or ``cached``; ``given`` by the user; ``journal`` on a resume.
        seconds: What the measurement took; None where there was none.
        figures: What was measured -> milliseconds per training row, or per evaluated row.
    """

    precision: DType
    attention: Attention
    evaluation_rows: int = EVALUATION_ROWS
    threads: int = 1
    padding: int = PAD_MULTIPLE
    source: Source = "rule"
    seconds: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for the journal."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Computing | None:
        """The inverse of `to_dict`; None where the values are not such."""
        try:
            found = cls(
                precision=values["precision"],
                attention=values["attention"],
                evaluation_rows=int(values["evaluation_rows"]),
                threads=int(values["threads"]),
                padding=int(values.get("padding", PAD_MULTIPLE)),
                source=values["source"],
                seconds=None if values["seconds"] is None else float(values["seconds"]),
                figures={str(name): float(value) for name, value in values["figures"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        known = found.precision in ("float32", "bfloat16") and found.attention in ("eager", "sdpa")
        counts = (found.evaluation_rows, found.threads, found.padding)
        return found if known and min(counts) > 0 else None

    def told(self) -> str:
        """One sentence: what was chosen, and why."""
        why = {
            "rule": "by rule",
            "measured": f"measured here in {self.seconds or 0:.1f} s",
            "cached": "measured here before",
            "given": "as asked for",
            "journal": "as this search began",
        }[self.source]
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        what = f"the frozen base computes in {self.precision} with {self.attention} attention and {threads}"
        if self.figures:
            why += "; ms per row: " + ", ".join(f"{name} {value:.3g}" for name, value in self.figures.items())
        return f"{what}, {self.evaluation_rows} rows in an evaluation batch ({why})"


def precision_here(gpu: bool) -> DType:
    """The dtype of the frozen base by rule: bfloat16 where the machine computes in it, else float32."""
    if gpu:
        return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def by_rule(*, gpu: bool, longest: int, threads: int, precision: DType | None = None) -> Computing:
    """What is taken where nothing was measured.

    Args:
        gpu: Whether workers compute on GPUs.
        longest: Longest row in tokens.
        threads: Threads that a worker may have.
        precision: Of the base, where it is known; None for that of this machine.
    """
    attention: Attention = "sdpa" if gpu or longest > LONG_ROWS else "eager"
    padding = PAD_MULTIPLE if gpu or longest > FINE_UP_TO else FINE_PADDING
    return Computing(precision or precision_here(gpu), attention, threads=threads, padding=padding)


def threads_for(workers: int, cores: int, *, gpu: bool) -> int:
    """Threads that each worker may have: never more than there are cores for all of them.

    Args:
        workers: Workers on this machine.
        cores: Its cores.
        gpu: Whether they compute on GPUs, and need the processor for little else than feeding these.
    """
    share = max(1, cores // max(1, workers))
    return min(4, share) if gpu else share


@dataclass(frozen=True, slots=True)
class LengthProfile:
    """How long the rows are: padded lengths at three quantiles, coarsely, so that like data share an answer."""

    lengths: tuple[int, ...]

    @classmethod
    def of(cls, split: EncodedSplit) -> LengthProfile:
        """The profile of a split."""
        if not split.rows:
            return cls((PAD_MULTIPLE,) * len(QUANTILES))
        found = np.quantile(split.lengths, QUANTILES, method="higher")
        return cls(tuple(_coarse(padded_length(int(length))) for length in found))


def _coarse(length: int) -> int:
    """Rounded up to three binary digits, and to what batches are padded to."""
    step = max(PAD_MULTIPLE, 1 << max(0, int(math.log2(length)) - 2))
    return -(-length // step) * step


def machine(gpu: bool) -> str:
    """What computes here: the GPU's name, or the processor's with its instructions. Names nobody and no place."""
    if gpu and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda})"
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    # Clouds give many processors one name; what they can do tells them apart.
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    marks = hashlib.sha256(" ".join(sorted(flags[1].split())).encode()).hexdigest()[:12] if flags else "unknown"
    return f"{name[1] if name else platform.machine()} ({marks})"


def answer_key(
    *, content_hash: str, kind: str, gpu: bool, threads: int, workers: int, batch_size: int, profile: LengthProfile
) -> str:
    """All that a measurement depends on, as the name of its answer."""
    return key_of(
        {
            "version": VERSION,
            "model": content_hash,
            "kind": kind,
            "machine": machine(gpu),
            "torch": str(torch.__version__),
            "threads": threads,
            "workers": workers,
            "batch": batch_size,
            "lengths": list(profile.lengths),
        }
    )


def known_answer(key: str) -> Computing | None:
    """What was measured before, or None."""
    values = _shelf().values(key)
    found = None if values is None else Computing.from_dict(values)
    return None if found is None else replace(found, source="cached")


def keep_answer(key: str, answer: Computing) -> None:
    """Keep what was measured for other searches of this user on this machine."""
    _shelf().put_values(key, answer.to_dict())


def answers() -> list[Computing]:
    """All that was measured before for this user, the latest used first."""
    shelf = _shelf()
    found = [Computing.from_dict(shelf.values(key) or {}) for key in shelf.names()]
    return [replace(each, source="cached") for each in found if each is not None]


def _shelf() -> Shelf:
    return Shelf("computing", most_bytes=1 << 20)
