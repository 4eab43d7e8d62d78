"""The table of methods as a page: ``python -m autopeft.cli.methods_page > docs/methods.md``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from autopeft.methods import METHODS, Method
from autopeft.space.example import parameters

HEAD = """# Methods

Made from the table in `autopeft/methods` by `make docs`; do not edit it here.

`autopeft ls methods` prints the same in the terminal, `--json` with everything. What a row claims is tested for every
method (`tests/test_methods.py`): parameters by formula equal those that were built, reload is exact in a fresh process,
merging is exact where claimed, plain peft loads what is lowered.

- **sits on**: `attention` and `block` methods change linear layers, `extra` ones biases and norms, `prefix` what
  attention sees; all of these mix in one adapter. `whole model` methods share state between layers or are prompts, and
  are searched alone (`--space whole`).
- **size**: the knob that spends parameters. **parameters**: trainable ones at the smallest and the largest size, on
  everything in BERT-base (12 blocks of width 768, 110 million) that the method fits.
- **starts as base**: before training the model is unchanged.
  `hybrid` methods are parts of UniPELT: each with a gate of its own, computed from what the module reads.
- **targets**: what can load an adapter of this method alone. `peft`: plain peft, at any mixture of sizes; other methods
  of peft on linear layers, except `psoft`, are saved as plain peft too when all sizes are equal. `merged`: folded into
  the weights. `vllm`: its rules for LoRA. `peft beside`: plain peft too, as one config with one of those methods, where
  `--target peft` asks for it; it then overwrites what the base has there (`docs/adapter.md`).
- **base**: `shared` when the layer asks the frozen module once, with its own input, so that adapters can share that.
- **4/8 bit**: trains on bitsandbytes' 4-bit and 8-bit bases and is read back exactly there (`tests/test_quantised.py`).
- **tier**: 1 in the default space, 2 by name, 3 experimental.
"""


def markdown() -> str:
    """The page."""
    searched = [row for row in METHODS.values() if row.unsearchable is None]
    left = [row for row in METHODS.values() if row.unsearchable is not None]
    lines = [
        HEAD,
        f"## {len(searched)} methods that can be searched",
        "",
        "| method | family | sits on | size | parameters | other knobs | learning rate | starts as base | merges | "
        "targets | base | 4/8 bit | tier | paper |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(method) for method in searched),
        "",
        f"## {len(left)} that are not",
        "",
        "| method | family | why not | paper |",
        "|---|---|---|---|",
        *(f"| `{row.name}` | {row.family} | {row.unsearchable} | {_paper(row)} |" for row in left),
    ]
    return "\n".join(lines) + "\n"


def _row(method: Method) -> str:
    knobs = [f"{name} {_values(values)}" for name, values in method.values.items()]
    costs = parameters(method)
    sizes = [size for size in costs if size is not None]
    cells = (
        f"`{method.name}`",
        method.family,
        "whole model" if method.whole else ", ".join(method.slots),
        f"{method.size} {_range(sizes)}" if sizes else "",
        _range(sorted(costs.values())),
        "; ".join(knobs),
        f"{method.rate.low:g} to {method.rate.high:g}",
        _yes(method.identity),
        _yes(method.mergeable),
        ", ".join([*sorted(method.targets), *_beside(method)]),
        method.base,
        _yes(method.quantised),
        str(method.tier),
        _paper(method),
    )
    return f"| {' | '.join(cells)} |"


def _beside(method: Method) -> list[str]:
    return [f"peft beside {' or '.join(sorted(method.beside))}"] if method.beside else []


def _range(numbers: Sequence[int]) -> str:
    low, high = numbers[0], numbers[-1]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _values(values: tuple[object, ...]) -> str:
    return "/".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _paper(method: Method) -> str:
    return f"[{method.paper.title}]({method.paper.link})"


if __name__ == "__main__":
    sys.stdout.write(markdown())
