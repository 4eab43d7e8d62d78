"""Where does it pay to train several trials together?

Rows per second of packs of 1, 2, 4 and 8 on MiniLM, over batch sizes and lengths of rows; the sizes take turns in one
process. Members are LoRA on query and value, as the memory-hungry half of a search has it, and a mixture of LoRA,
a serial adapter, IA3 and a bias, whose parts sit at more places.

    python benchmarks/packs.py [--device cuda] [--precision bfloat16] [--attention sdpa] [--seconds 10] [--write]

``--write`` keeps the table as ``results/packs-<device>.json``, by the name of a GPU. A ratio above 1 says that a pack
of that size trains rows so many times faster than the same members one after the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from autopeft.compose.base import attach, load_base
from autopeft.data.encoded import EncodedData, EncodedSplit
from autopeft.inspect import module_map
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.space.modules import ModuleMap
from autopeft.testing.real import minilm_folder
from autopeft.trial.pack_speed import pack_speeds
from autopeft.trial.setup import WorkSetup

ROWS = 512
SIZES = (1, 2, 4, 8)


def rows_of(length: int) -> EncodedSplit:
    """Random rows of about a length: from three quarters of it to all of it, as sorted batches have it."""
    rng = np.random.default_rng(length)
    lengths = rng.integers(max(2, 3 * length // 4), length + 1, ROWS)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = rng.integers(1000, 20_000, offsets[-1]).astype(np.int32)
    return EncodedSplit(offsets, tokens, None, rng.integers(0, 2, ROWS).astype(np.int64))


def members(modules: ModuleMap, kind: str, batch: int) -> list[Configuration]:
    """What a pack trains: ``lora`` alike, or a ``mixture`` of methods."""
    mixture: list[tuple[str, ...]] = [("lora",), ("serial",), ("ia3", "bias"), ("lora", "serial")]
    sets = mixture if kind == "mixture" else [("lora",)]
    found = []
    for names in sets:
        sites: dict[str, list[Part]] = {}
        for name in names:
            row = METHODS[name]
            for site in modules.sites:
                wanted = site.role in ("query", "value") if name == "lora" else row.fits(site)
                if wanted:
                    sites.setdefault(site.name, []).append(Part.of(name, row.knobs(site, 8 if row.size else None)))
        rates = tuple((name, METHODS[name].rate.default) for name in sorted(names))
        found.append(Configuration.of(sites, Training(rates, 1e-3, batch, 0.05)))
    return found


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of the table for every kind of pack, batch size and length."""
    device = torch.device(arguments.device)
    base = load_base(minilm_folder(), kind="sequence_classification", dtype=arguments.precision)
    carrier = attach(base, head="mean", labels=2, attention=arguments.attention)
    carrier.model.to(device)
    modules, found = module_map(carrier.model), []
    for kind, batch, length in itertools.product(("lora", "mixture"), arguments.batches, arguments.lengths):
        split = rows_of(length)
        data = EncodedData({"train": split}, "sequence_classification", ("a", "b"), 0, length, {})
        setup = WorkSetup(
            base=base, data=data, kind="sequence_classification", metric="accuracy", labels=2, folder=".",
            precision=arguments.precision, attention=arguments.attention,
        )  # fmt: skip
        speeds = pack_speeds(
            carrier, modules, members(modules, kind, batch), setup, device, sizes=SIZES, seconds=arguments.seconds
        )
        found.append({"members": kind, "batch": batch, "length": length, "seconds_per_row": speeds})
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("members", "batch", "length", "rows/s alone", *(f"pack of {size}" for size in SIZES[1:]))
    for row in found:
        speeds = row["seconds_per_row"]
        ratios = [f"{speeds[1] / speeds[size]:.2f}x" for size in SIZES[1:]]
        table.add_row(row["members"], str(row["batch"]), str(row["length"]), f"{1 / speeds[1]:.0f}", *ratios)
    Console().print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Rows per second of packs.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--attention", default="eager", choices=("eager", "sdpa"))
    parser.add_argument("--seconds", type=float, default=10.0, help="for each line of the table")
    parser.add_argument("--batches", type=int, nargs="+", default=(4, 8, 16))
    parser.add_argument("--lengths", type=int, nargs="+", default=(16, 128))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments)
    show(found)
    if arguments.write:
        about = {"device": arguments.device, "precision": arguments.precision, "torch": torch.__version__}
        if arguments.device != "cpu":
            about["name"] = torch.cuda.get_device_name(torch.device(arguments.device))
        place = "-".join(str(about.get("name", arguments.device)).lower().split())
        path = Path(__file__).parent / "results" / f"packs-{place}.json"
        path.write_text(json.dumps({**about, "rows": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
