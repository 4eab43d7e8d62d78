"""Configurations trained by Ray Tune function trainables, each with transformers' Trainer on a peft model.

    python benchmarks/peer_tune.py BLOCK.json RESULT.json

As the documentation of Ray shows: a function that trains and reports, a grid over the configurations, one core for each
trial. ``tuned`` keeps the worker processes (`reuse_actors`), so that imports are paid once for each core.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parent)


def trainable(config: dict[str, Any]) -> None:
    """What one trial does."""
    if HERE not in sys.path:
        sys.path.insert(0, HERE)
    import peer_trainer
    from ray import tune

    peer_trainer.quieten()
    began = time.time()
    tune.report({**peer_trainer.train_one(config["job"]), "entered": began})


def main() -> None:
    """Train the block of the first file, write what came of it to the second."""
    import peer_trainer

    peer_trainer.quieten()
    block = json.loads(Path(sys.argv[1]).read_text())
    import ray
    from ray import tune

    # A cluster of its own, also where another one runs on the machine.
    ray.init("local", num_cpus=block["workers"], include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    jobs = block["jobs"]
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"job": tune.grid_search(jobs)},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            max_concurrent_trials=block["workers"],
            reuse_actors=block["style"] == "tuned",
        ),
        run_config=tune.RunConfig(name="block", storage_path=block["out"], verbose=0),
    )
    found = {}
    for result in tuner.fit():
        if result.error is not None:
            raise SystemExit(f"a trial failed: {result.error}")
        kept = ("score", "seconds", "train_seconds", "evaluate_seconds", "cpu_seconds", "rows", "entered", "began")
        found[result.config["job"]["index"]] = {name: result.metrics[name] for name in kept}
    ray.shutdown()
    first = min(values["entered"] for values in found.values())
    last = max(values["began"] + values["seconds"] for values in found.values())
    trials = [found[job["index"]] for job in jobs]
    Path(sys.argv[2]).write_text(json.dumps({"first": first, "last": last, "trials": trials}))


if __name__ == "__main__":
    main()
