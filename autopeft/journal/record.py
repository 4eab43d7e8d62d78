"""One record of a journal, as one checksummed line of JSON."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.journal.packed import Packed

SCHEMA = 1
"""Version of the record schema; written into ``search_started``."""

FIELDS: dict[str, tuple[str, ...]] = {
    "search_started": (
        "schema",
        "version",
        "spec",
        "fingerprint",
        "task",
        "model",
        "space",
        "environment",
        "procedure",
        "computing",
        "started",
    ),
    "modules": ("map",),
    "probe": ("kind", "values", "seconds"),
    "plan": (
        "rungs",
        "warmup_rows",
        "cooldown_rows",
        "seeds",
        "baseline_share",
        "max_trials",
        "rung_evaluated",
        "final_evaluated",
        "explore_until",
        "confirm_until",
        "deadline",
        "speed",
        "workers",
        "finalists",
        "busy_before",
        "started",
        "budget",
    ),
    "configuration": (
        "hash",
        "configuration",
        "values",
        "adapter_params",
        "arm",
        "predicted_bytes",
        "predicted_exactly",
        "execution",
    ),
    "rejected": ("hash", "arm", "index", "values", "constraint", "value", "limit"),
    "trial_started": ("trial", "hash", "arm", "purpose", "seed", "index", "slot"),
    "rung": (
        "trial",
        "rung",
        "rows",
        "metrics",
        "loss",
        "losses",
        "seconds",
        "train_seconds",
        "evaluate_seconds",
        "peak_bytes",
        "outputs",
        "adapter",
        "sha256",
        "head_params",
        "latency",
        "together",
        "states",
    ),
    "decision": ("trial", "rung", "action", "reason"),
    "retried": ("trial", "reason", "attempt", "seconds"),
    "trial_ended": ("trial", "status", "reason", "detail", "seconds", "measured"),
    "simplify": ("challenger", "drops"),
    "simplified": ("challenger", "takes", "dropped", "differences"),
    "finalists": ("baseline", "challenger", "seeds", "rows", "rung", "predicted_bytes", "front"),
    "verdict": ("name", "difference", "low", "high", "takes", "reason", "seeds", "margin", "cost", "costs"),
    "looks": ("test_hash", "this_search", "all_searches", "searches"),
    "test_opened": ("winner_sha256", "test_hash", "rows"),
    "eval_set": ("name", "source", "rows", "sha256", "whole"),
    "evaluated": ("set", "name", "metrics", "outputs", "sha256", "rows", "reason", "seconds"),
    "test": ("name", "metrics", "outputs", "sha256", "ability", "seconds"),
    "note": ("text",),
    "overhead": ("seconds", "wall"),
    "interrupted": ("signal",),
    "resumed": ("records", "reopened", "until"),
    "finished": ("status", "result"),
}
"""Record type -> the members of its data that readers know. More members may be there; readers ignore them."""

_CHECKSUM = b',"crc":"'
_TAIL = len(_CHECKSUM) + len('01234567"}')
_BEFORE, _BEHIND = b',"configuration":{"', b'},"values":{'
"""What stands around a configuration in the record that names it first."""
_NAMES = b'"type":"configuration"'


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that happened.

    Attributes:
        seq: Its number, from 0 without gaps.
        type: A key of `FIELDS`.
        used: Seconds that the search had consumed by then, summed over its sessions; never falls.
        time: Wall-clock time, ISO 8601 in UTC; for display only, because clocks jump.
        data: What happened: plain JSON values.
    """

    seq: int
    type: str
    used: float
    time: str
    data: Mapping[str, Any]


def spell(data: Any) -> str:
    """A value as the journal spells it.

    Raises:
        ValueError: It holds NaN or an infinity, which JSON cannot spell.
        TypeError: It holds something that is not a JSON value.
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=True, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Packed):
        return value.plain()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def encode(record: Record, data: str | None = None) -> bytes:
    """The line of a record, line end included.

    The checksum is the crc32 of the line without its ``crc`` member, so that a reader checks the bytes that it read
    and need not spell the JSON again.

    Args:
        record: The record.
        data: Its data as `spell` spells them, where that is known.

    Raises:
        ValueError: The data hold NaN or an infinity, which JSON cannot spell.
        TypeError: The data hold something that is not a JSON value.
    """
    fields = {"seq": record.seq, "type": record.type, "used": record.used, "time": record.time}
    body = f'{spell(fields)[:-1]},"data":{spell(record.data) if data is None else data}}}'.encode()
    return b'%s%s%08x"}\n' % (body[:-1], _CHECKSUM, zlib.crc32(body))


def decode(line: bytes) -> Record:
    """The record of a line, with or without its line end.

    Raises:
        ValueError: The line is not a record, or its checksum does not fit; the message says which.
    """
    line = line.rstrip(b"\n")
    body, tail = line[:-_TAIL] + b"}", line[-_TAIL:]
    if not tail.startswith(_CHECKSUM) or not line.startswith(b"{"):
        raise ValueError("it is not a record")
    if tail != b'%s%08x"}' % (_CHECKSUM, zlib.crc32(body)):
        raise ValueError("its checksum does not fit its content")
    try:
        fields, data = _read(body, packed=_NAMES in body[:64])
        return Record(fields["seq"], fields["type"], float(fields["used"]), fields["time"], data)
    except (KeyError, TypeError) as error:
        raise ValueError("it is not a record") from error


def read_data(type: str, text: str) -> dict[str, Any]:
    """The data of a record as a reader sees them.

    Args:
        type: The record's type.
        text: Its data as `spell` spells them.
    """
    return _read(f'{{"data":{text}}}'.encode(), packed=type == "configuration")[1]


def _read(body: bytes, *, packed: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The members of a record, and its data.

    A configuration is by far the largest part of a journal, and most are never looked into: where it stands as it is
    written, it is cut out and not read as JSON.

    Args:
        body: The record.
        packed: Whether its data name a configuration, to be packed.
    """
    if not packed:
        fields = json.loads(body)
        return fields, fields["data"]
    start, end = body.find(_BEFORE), body.rfind(_BEHIND)
    if 0 <= start < end:
        begin = start + len(_BEFORE) - len('{"')
        with contextlib.suppress(ValueError):
            # Where the cut went through something else, the rest is no JSON, or holds a configuration still.
            fields = json.loads(body[:begin] + b"null" + body[end + 1 :])
            if fields["data"].get("configuration", 0) is None:
                fields["data"]["configuration"] = Packed(body[begin : end + 1])
                return fields, fields["data"]
    fields = json.loads(body)
    data = fields["data"]
    if isinstance(data.get("configuration"), dict):
        data["configuration"] = Packed(spell(data["configuration"]))
    return fields, data
