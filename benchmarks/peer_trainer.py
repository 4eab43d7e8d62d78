"""One configuration trained by transformers' Trainer on a peft model: what people do today.

    python benchmarks/peer_trainer.py JOB.json RESULT.json

Imports nothing of autopeft, so that a peer pays for nothing that it does not use. In two styles:

* ``documented``: as the documentation of peft and transformers shows: float32, random batches padded to their longest
  row, fused attention (transformers' default), dropout of the base as its config says, batches of 32 for evaluation;
* ``tuned``: what an expert would change on a processor: a bfloat16 base under autocast with float32 adapters, batches
  of rows of similar length (also for evaluation), eager attention (its backward pass is faster on short rows), no
  dropout in the frozen base, batches of 64 for evaluation.

Both run on as many threads as they are given, save nothing, and log nothing while they train.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

STYLES = ("documented", "tuned")
WARMUP = 1 / 15


def peft_config(values: dict[str, Any]) -> Any:
    """The config of peft that plain values say."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    values = dict(values)
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(values.pop("peft_type"))](**values)


def read_data(job: dict[str, Any]) -> tuple[Any, Any, Any, int]:
    """Tokenizer, training rows, validation rows and the number of labels, as the documentation does it."""
    from datasets import Features, Value, load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    folder = Path(job["data"])
    files = {split: str(folder / f"{split}.csv") for split in ("train", "validation")}
    features = Features({"text": Value("string"), "label": Value("string")})
    rows = load_dataset("csv", data_files=files, features=features, cache_dir=job["cache"], keep_default_na=False)
    names = sorted(set(rows["train"]["label"]))

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        encoded: dict[str, list[Any]] = tokenizer(batch["text"], truncation=True)
        encoded["labels"] = [names.index(label) for label in batch["label"]]
        return encoded

    rows = rows.map(tokenize, batched=True, remove_columns=["text", "label"])
    return tokenizer, rows["train"], rows["validation"], len(names)


def build_model(job: dict[str, Any], labels: int) -> Any:
    """The base under transformers' own head, with the adapter."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    own: dict[str, Any] = {}
    if job["style"] == "tuned":
        own = {
            "dtype": torch.bfloat16 if job["bf16"] else torch.float32,
            "attn_implementation": "eager",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=labels, **own)
    model = get_peft_model(model, peft_config(job["peft"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def build_trainer(job: dict[str, Any], prepared: tuple[Any, Any, Any, int], **own: Any) -> Any:
    """A Trainer for a job.

    Args:
        job: ``style``, ``rate``, ``batch``, ``epochs``, ``seed``, ``out``, ``peft``, ``model``.
        prepared: Of `read_data`.
        own: Further arguments of `Trainer`, in place of those here.
    """
    import numpy as np
    from transformers import DataCollatorWithPadding, Trainer, set_seed

    tokenizer, train, validation, labels = prepared
    set_seed(job["seed"])

    def accuracy(predicted: Any) -> dict[str, float]:
        logits, expected = predicted
        return {"accuracy": float((np.argmax(logits, -1) == expected).mean())}

    given: dict[str, Any] = {
        "args": training_arguments(job, len(train)),
        "train_dataset": train,
        "eval_dataset": validation,
        "processing_class": tokenizer,
        "data_collator": DataCollatorWithPadding(tokenizer),
        "compute_metrics": accuracy,
    }
    if "model_init" not in own:
        given["model"] = build_model(job, labels)
    return Trainer(**{**given, **own})


def training_arguments(job: dict[str, Any], rows: int, **own: Any) -> Any:
    """The arguments of a style."""
    from transformers import TrainingArguments

    tuned = job["style"] == "tuned"
    steps = -(-rows // job["batch"]) * job["epochs"]
    given: dict[str, Any] = {
        "output_dir": job["out"],
        "learning_rate": job["rate"],
        "per_device_train_batch_size": job["batch"],
        "per_device_eval_batch_size": 64 if tuned else 32,
        "num_train_epochs": job["epochs"],
        "warmup_steps": int(WARMUP * steps),
        "weight_decay": 0.0,
        "seed": job["seed"],
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    if tuned:
        given |= {"bf16": job["bf16"], "train_sampling_strategy": "group_by_length"}
    return TrainingArguments(**{**given, **own})


def train_one(job: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate one configuration; its validation score and what it took in this process."""
    import torch

    torch.set_num_threads(job["threads"])
    began, used = time.time(), time.process_time()
    trainer = build_trainer(job, read_data(job))
    ready = time.time()
    trainer.train()
    trained = time.time()
    score = trainer.evaluate()["eval_accuracy"]
    return {
        "score": score,
        "began": began,
        "seconds": time.time() - began,
        "train_seconds": trained - ready,
        "evaluate_seconds": time.time() - trained,
        "cpu_seconds": time.process_time() - used,
        "rows": job["epochs"] * len(trainer.train_dataset),
    }


def quieten() -> None:
    """No progress bars, no hub: every contestant's output stays its own, and none waits for a network."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def main() -> None:
    """Train the job of the first file, write what came of it to the second."""
    quieten()
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(train_one(job)))


if __name__ == "__main__":
    main()
