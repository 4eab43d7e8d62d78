"""How a search computes: as its journal says, as the user asked, as was measured on this machine, or by rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autopeft.compose.base import DType, SharedBase
from autopeft.data.encoded import PAD_MULTIPLE, EncodedData
from autopeft.errors import InputError
from autopeft.executors.base import cores
from autopeft.journal.file import FILE
from autopeft.journal.record import decode
from autopeft.spec import SearchSpec
from autopeft.trial.computing import (
    Computing,
    LengthProfile,
    answer_key,
    by_rule,
    keep_answer,
    known_answer,
    threads_for,
)
from autopeft.trial.tuning import seconds_for, tune
from autopeft.trial.workbench import pick_device


def journalled(spec: SearchSpec) -> tuple[bool, Computing | None]:
    """Whether the search in the run folder had begun, where it is resumed, and how it computes.

    A journal of a version that did not choose says nothing of it: None.
    """
    if not spec.resume or spec.out is None:
        return False, None
    try:
        with (Path(spec.out) / FILE).open("rb") as file:
            values = decode(file.readline()).data.get("computing")
    except (OSError, ValueError):
        # The journal's own reader says what is wrong with it.
        return False, None
    found = None if values is None else Computing.from_dict(values)
    return True, None if found is None else replace(found, source="journal")


class Choosing:
    """Chooses how a search computes: first what can be known without weights, then by measuring. Final.

    Args:
        spec: What was asked for.
        data: The tokenised rows.
        kind: The task kind.
        gpu: Whether workers compute on GPUs.
        precision: Of the base by rule, where the workers' machine is known and is another one; None for that of this.
        content_hash: Of the base model.
    """

    def __init__(
        self,
        spec: SearchSpec,
        data: EncodedData,
        kind: str,
        *,
        gpu: bool,
        content_hash: str,
        precision: DType | None = None,
    ) -> None:
        self._spec, self._kind, self._gpu = spec, kind, gpu
        workers = 1 if spec.executor == "inprocess" else spec.workers or cores()
        # On a cluster this machine's cores, and its answers, are those of another.
        self._here = spec.ray_address is None
        share = threads_for(workers, cores(), gpu=gpu) if self._here else 4 if gpu else 1
        # OMP_NUM_THREADS of the user's is a limit.
        threads = min(share, torch.get_num_threads()) if not gpu else share
        self._rule = by_rule(gpu=gpu, longest=data.max_length, threads=threads, precision=precision)
        self._key = answer_key(
            content_hash=content_hash,
            kind=kind,
            gpu=gpu,
            threads=threads,
            workers=workers,
            batch_size=8 if kind == "causal_lm" else 16,
            profile=LengthProfile.of(data.splits["train"]),
        )
        began, kept = journalled(spec)
        self._settled = began
        self.first = self._known(kept)
        self._data = data.padded_to(self.first.padding)

    @property
    def _fixed(self) -> dict[str, str]:
        asked = {"precision": self._spec.precision, "attention": self._spec.attention}
        return {name: value for name, value in asked.items() if value != "auto"}

    def _known(self, kept: Computing | None) -> Computing:
        if kept is not None:
            # Threads change nothing but the time: another number of workers may leave each fewer.
            return replace(kept, threads=min(kept.threads, self._rule.threads))
        if self._settled:
            # It was begun by a version that went by the rule, and padded one way.
            return self._as_asked(replace(self._rule, padding=PAD_MULTIPLE))
        cached = known_answer(self._key) if self._here else None
        self._settled = cached is not None
        # Padding goes by these rows, and was not measured.
        return self._as_asked(self._rule if cached is None else replace(cached, padding=self._rule.padding))

    def _as_asked(self, computing: Computing) -> Computing:
        fixed: dict[str, Any] = dict(self._fixed)
        return replace(computing, **fixed, source="given") if fixed else computing

    def measured(self, base: SharedBase, *, head: str, labels: int) -> Computing:
        """The choice, measured now unless it is known already, cannot be known here, or there is no time for it.

        Args:
            base: The base in the first choice's precision.
            head: A head that the base can have.
            labels: Outputs of the head.
        """
        seconds = seconds_for(self._spec.budget.max_time)
        if self._settled or not self._here or not seconds or len(self._fixed) == 2:
            return self.first
        answer = tune(
            base,
            self._data,
            self.first,
            head=head,
            labels=labels,
            device=pick_device(self._gpu),
            seconds=seconds,
            fixed=self._fixed,
        )
        if self._gpu:
            torch.cuda.empty_cache()
        if answer.source == "measured" and not self._fixed:
            keep_answer(self._key, answer)
        return self._as_asked(answer)


def check_kept(spec: SearchSpec, computing: Computing) -> None:
    """Refuse to go on in another precision or attention than a search began with.

    Raises:
        InputError: One of them was asked for, and is not what the journal holds.
    """
    for name in ("precision", "attention"):
        asked, kept = getattr(spec, name), getattr(computing, name)
        if computing.source == "journal" and asked not in ("auto", kept):
            raise InputError.one(
                name,
                asked,
                f"differs from the search in this folder ({kept!r})",
                "A resumed search computes as it began; use another --out for a new one.",
            )
