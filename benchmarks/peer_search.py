"""Searches as people run them today: Optuna or Ray Tune around transformers' Trainer, over plain LoRA.

    python benchmarks/peer_search.py optuna|tune BLOCK.json EVENTS.jsonl

Every evaluation on the validation rows is one line of EVENTS: the seconds since the search was begun, the score, and
how far the trial had come. Four ways:

* ``optuna documented``: `Trainer.hyperparameter_search` as transformers documents it: Optuna's TPE, one trial after the
  other in one process that uses all cores;
* ``optuna tuned``: two processes of one thread each that share a study by Optuna's journal file, with the tuned
  training of `peer_trainer.py`; nothing is imported or tokenised twice in a process;
* ``tune documented``: Ray Tune with `OptunaSearch` and ASHA; a function trainable reports after every quarter;
* ``tune tuned``: the same with kept worker processes and the tuned training.

The space is that of autopeft's `lora` within 1 % of MiniLM: placement, rank, scale, rate, batch and dropout.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import peer_trainer

HERE = str(Path(__file__).parent)
TARGETS = {"qv": ["query", "value"], "all": ["query", "key", "value", "output.dense", "intermediate.dense"]}
RANKS = {"qv": [1, 2, 3, 4, 6, 8, 12, 16, 24], "all": [1, 2, 3, 4]}
RATES = (3e-3 * math.exp(-1.6), 3e-3 * math.exp(1.2))
BATCHES, DROPOUTS, SCALES = [8, 16, 32], [0.0, 0.05, 0.1], [1.0, 2.0, 4.0]
QUARTERS = 4


def suggest(trial: Any) -> dict[str, Any]:
    """What one trial trains, by Optuna."""
    place = trial.suggest_categorical("place", list(TARGETS))
    return {
        "place": place,
        "rank": trial.suggest_categorical(f"rank_{place}", RANKS[place]),
        "scale": trial.suggest_categorical("scale", SCALES),
        "dropout": trial.suggest_categorical("dropout", DROPOUTS),
        "rate": trial.suggest_float("rate", *RATES, log=True),
        "batch": trial.suggest_categorical("batch", BATCHES),
    }


def define(trial: Any) -> None:
    """`suggest` as Ray's OptunaSearch wants it."""
    suggest(trial)


def lora(values: dict[str, Any]) -> dict[str, Any]:
    """The peft config of a trial, as plain values."""
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "r": values["rank"],
        "lora_alpha": values["scale"] * values["rank"],
        "lora_dropout": values["dropout"],
        "target_modules": TARGETS[values["place"]],
    }


def job_of(block: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A trial's job for `peer_trainer`."""
    common = {name: block[name] for name in ("model", "data", "cache", "out", "style", "epochs", "bf16", "seed")}
    return {**common, "peft": lora(values), "rate": values["rate"], "batch": values["batch"]}


def note(events: Path, block: dict[str, Any], score: float, part: float, values: dict[str, Any]) -> None:
    """One more line; lines are short enough to be appended by several processes."""
    line = {"at": time.time() - block["began"], "score": score, "part": part, "values": values}
    with events.open("a") as file:
        file.write(json.dumps(line) + "\n")


def optuna_documented(block: dict[str, Any], events: Path) -> None:
    """`Trainer.hyperparameter_search`."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    prepared = peer_trainer.read_data(block)
    latest: dict[str, Any] = {}

    def model_init(trial: Any) -> Any:
        if trial is None:
            return peer_trainer.build_model(job_of(block, FIRST), prepared[3])
        latest.update(suggest(trial))
        return peer_trainer.build_model(job_of(block, latest), prepared[3])

    def space(trial: Any) -> dict[str, Any]:
        values = suggest(trial)
        return {"learning_rate": values["rate"], "per_device_train_batch_size": values["batch"]}

    def objective(metrics: dict[str, float]) -> float:
        note(events, block, metrics["eval_accuracy"], 1.0, dict(latest))
        return metrics["eval_accuracy"]

    trainer = peer_trainer.build_trainer(job_of(block, FIRST), prepared, model_init=model_init)
    trainer.hyperparameter_search(
        hp_space=space,
        compute_objective=objective,
        direction="maximize",
        backend="optuna",
        n_trials=None,
        timeout=block["seconds"] - (time.time() - block["began"]),
        sampler=optuna.samplers.TPESampler(seed=block["seed"]),
    )


FIRST = {"place": "qv", "rank": 8, "scale": 1.0, "dropout": 0.0, "rate": 1e-3, "batch": 16}
"""What a Trainer is made with before the first trial is known."""


def optuna_tuned(block: dict[str, Any], events: Path) -> None:
    """One of the processes that share a study."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    prepared = peer_trainer.read_data(block)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(Path(block["out"]) / "study.log"))),
        study_name="lora",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=block["seed"] + 1000 * block["worker"], constant_liar=True),
        load_if_exists=True,
    )

    def objective(trial: Any) -> float:
        values = suggest(trial)
        trainer = peer_trainer.build_trainer(job_of(block, values), prepared)
        trainer.train()
        score = float(trainer.evaluate()["eval_accuracy"])
        note(events, block, score, 1.0, values)
        return score

    study.optimize(objective, timeout=block["seconds"] - (time.time() - block["began"]))


def trainable(config: dict[str, Any]) -> None:
    """One trial of Ray Tune: it reports after every quarter of its training, and ASHA may stop it there."""
    if HERE not in sys.path:
        sys.path.insert(0, HERE)
    import peer_trainer
    import torch
    from ray import tune
    from transformers import TrainerCallback

    peer_trainer.quieten()
    torch.set_num_threads(1)
    config = dict(config)
    block, place = config.pop("block"), config["place"]
    values = {**config, "rank": config[f"rank_{place}"]}
    kept = {name: values[name] for name in FIRST}
    prepared = peer_trainer.read_data(block)
    job = job_of(block, kept)

    class Report(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **rest: Any) -> None:
            note(Path(block["events"]), block, metrics["eval_accuracy"], state.global_step / state.max_steps, kept)
            tune.report({"score": metrics["eval_accuracy"]})

    arguments = peer_trainer.training_arguments(job, len(prepared[1]), eval_strategy="steps", eval_steps=1 / QUARTERS)
    peer_trainer.build_trainer(job, prepared, args=arguments, callbacks=[Report()]).train()


def tune_search(block: dict[str, Any], events: Path) -> None:
    """Ray Tune with OptunaSearch and ASHA, until the time is up."""
    import optuna
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # A cluster of its own, also where another one runs on the machine.
    ray.init("local", num_cpus=block["workers"], include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(bound({**block, "events": str(events)}), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(space=define, metric="score", mode="max", seed=block["seed"]),
            scheduler=ASHAScheduler(metric="score", mode="max", max_t=QUARTERS, grace_period=1, reduction_factor=2),
            num_samples=-1,
            max_concurrent_trials=block["workers"],
            time_budget_s=block["seconds"] - (time.time() - block["began"]),
            reuse_actors=block["style"] == "tuned",
        ),
        run_config=tune.RunConfig(name="search", storage_path=block["out"], verbose=0),
    )
    tuner.fit()
    ray.shutdown()


def bound(block: dict[str, Any]) -> Any:
    """`trainable` with what does not vary."""

    def run(config: dict[str, Any]) -> None:
        trainable({**config, "block": block})

    return run


def main() -> None:
    """Search as the block says."""
    peer_trainer.quieten()
    kind, block, events = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    Path(block["out"]).mkdir(parents=True, exist_ok=True)
    if kind == "tune":
        tune_search(block, events)
    elif block["style"] == "tuned":
        optuna_tuned(block, events)
    else:
        optuna_documented(block, events)


if __name__ == "__main__":
    main()
