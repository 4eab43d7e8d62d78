"""Full fine-tuning with a tuned rate: the reference that an adapter is held against.

    python benchmarks/full_finetuning.py --model MODEL --data FOLDER --name sst2 [--kind causal_lm --prompt-column ...]

Every weight is trained (float32 weights, autocast), with the head, batches, schedule and metrics of the search. Each
rate runs once; the best by validation runs with two more seeds. One JSON line per run is appended to
``results/full_finetuning.jsonl``; runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.compose.base import SharedBase, attach, load_base, load_tokenizer, model_positions
from autopeft.cost.step import step_tensors, train_step
from autopeft.data.batches import TrainStream, pad
from autopeft.data.encode import encode
from autopeft.data.encoded import EncodedData
from autopeft.data.read import read
from autopeft.evidence.metrics import score
from autopeft.spec import Task
from autopeft.trial.computing import EVALUATION_ROWS, precision_here
from autopeft.trial.evaluate import outputs, subset
from autopeft.trial.schedule import factor

RESULTS = Path(__file__).parent / "results" / "full_finetuning.jsonl"
RATES = (3e-5, 1e-4, 3e-4)
SEEDS = (1, 2, 3)


class FullModel(nn.Module):
    """The whole base with mean pooling and one linear layer, or a language model as it is."""

    def __init__(self, base: SharedBase, kind: str, labels: int, seed: int) -> None:
        super().__init__()
        head = "lm" if kind == "causal_lm" else "mean"
        self.base = attach(base, head=head, labels=labels).model
        for parameter in self.base.parameters():
            parameter.data = parameter.data.clone().float()
            parameter.requires_grad_(True)
        generator = torch.Generator().manual_seed(seed)
        self.head = None
        if kind != "causal_lm":
            width = self.base.config.hidden_size
            self.head = nn.Linear(width, labels)
            self.head.weight.data = torch.randn(labels, width, generator=generator) * 0.02
            self.head.bias.data.zero_()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.base(input_ids=input_ids, attention_mask=attention_mask, **extra)
        if self.head is None:
            logits: Tensor = output.logits
            return logits
        mask = attention_mask[..., None].float()
        pooled = (output.last_hidden_state.float() * mask).sum(1) / mask.sum(1)
        scores: Tensor = self.head(pooled)
        return scores


def train(
    setup: Any,
    base: SharedBase,
    data: EncodedData,
    *,
    rate: float,
    seed: int,
    epochs: float,
    batch: int,
    evaluated: int | None,
) -> dict[str, Any]:
    """One run; metrics on validation and test."""
    torch.manual_seed(seed)
    model = FullModel(base, setup.kind, setup.labels, seed)
    groups = [{"params": list(model.base.parameters()), "peak": rate}]
    if model.head is not None:
        groups.append({"params": list(model.head.parameters()), "peak": max(rate, 1e-3)})
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.01)
    split, total, seen = data.splits["train"], int(epochs * data.splits["train"].rows), 0
    precision = torch.bfloat16 if setup.precision == "bfloat16" else None
    began = time.monotonic()
    for rows in TrainStream(split, batch, seed).batches(0):
        if seen >= total:
            break
        scale = factor(seen, warmup_rows=total // 15, rows_to=total, cooldown_rows=total)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * scale
        train_step(model, step_tensors(pad(split, rows, data.pad_token), setup.kind), optimizer, setup.kind, precision)
        seen += len(rows)
    seconds = time.monotonic() - began
    device = torch.device("cpu")
    result = {"seconds": seconds, "rows": seen}
    for name in ("validation", "test"):
        part = data.splits[name]
        arrays = outputs(model, part, setup, device, rows=subset(part, evaluated))
        result[name] = score(setup.metric, arrays)
    return result


def main() -> None:
    """Run what is missing, print all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--prompt-column")
    parser.add_argument("--response-column")
    parser.add_argument("--kind")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--evaluated", type=int, help="validation and test rows to evaluate on; all when left out")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = Task(
        arguments.model,
        arguments.data,
        kind=arguments.kind,
        prompt_column=arguments.prompt_column,
        response_column=arguments.response_column,
    )
    raw = read(task, seed=0)
    base = load_base(arguments.model, kind=raw.kind, dtype="float32")
    data, _ = encode(raw, load_tokenizer(arguments.model), max_length=None, model_max=model_positions(base.config))
    labels = {"sequence_classification": len(data.label_names), "regression": 1}.get(raw.kind, 0)
    setup = SimpleNamespace(
        kind=raw.kind,
        metric=raw.metric,
        labels=labels,
        precision=precision_here(False),
        data=data,
        evaluation_rows=EVALUATION_ROWS,
    )
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    mine = {(r["rate"], r["seed"]): r for r in done if r["name"] == arguments.name and r["epochs"] == arguments.epochs}

    def run(rate: float, seed: int) -> None:
        if (rate, seed) in mine:
            return
        batch = 8 if raw.kind == "causal_lm" else 16
        result = train(
            setup,
            base,
            data,
            rate=rate,
            seed=seed,
            epochs=arguments.epochs,
            batch=batch,
            evaluated=arguments.evaluated,
        )
        row = {
            "name": arguments.name,
            "metric": raw.metric,
            "rate": rate,
            "seed": seed,
            "epochs": arguments.epochs,
            **({} if arguments.evaluated is None else {"evaluated": arguments.evaluated}),
            **result,
        }
        mine[rate, seed] = row
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    for rate in arguments.rates:
        run(rate, SEEDS[0])
    best = max(arguments.rates, key=lambda rate: mine[rate, SEEDS[0]]["validation"])
    for seed in SEEDS[: arguments.seeds]:
        run(best, seed)
    runs = [mine[best, seed] for seed in SEEDS[: arguments.seeds]]
    mean = {split: sum(r[split] for r in runs) / len(runs) for split in ("validation", "test")}
    scores = ", ".join(f"{split} {value:.4f}" for split, value in mean.items())
    print(f"{arguments.name}: rate {best:g}, {scores} over {len(runs)} seeds")


if __name__ == "__main__":
    main()
