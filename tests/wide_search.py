"""A search with enough trials for every figure of the report, whose numbers are known."""

from __future__ import annotations

import math

from example_search import ExampleSearch, configuration

LORA = {5e-4: 0.760, 1e-3: 0.800, 2e-3: 0.812, 4e-3: 0.806, 6.5e-3: 0.700}
"""Learning rate -> accuracy at the first rung."""
LORA_FULL = {1e-3: 0.852, 2e-3: 0.861, 4e-3: 0.857}
"""Learning rate -> accuracy at the last rung."""
RUNGS = (1000, 3000, 9000)


class WideSearch(ExampleSearch):
    """Five trials of LoRA, sixteen of the space: `lora+bias` in the upper half does well, `ia3` poorly."""

    def configured(
        self, method: str, first: int, rate: float, arm: str, values: dict[str, object], predicted: int | None
    ) -> str:
        made = configuration(
            method, 4 if method == "lora" else 0, first, rate, bias=arm == "space" and method == "lora"
        )
        self.add(
            "configuration",
            hash=made.hash,
            configuration=made.to_dict(),
            values=values,
            adapter_params=(6 - first) * (6144 if method == "lora" else 768),
            arm=arm,
            predicted_bytes=predicted,
            predicted_exactly=predicted is not None,
        )
        return made.hash

    def explore(self) -> tuple[str, str]:
        """Exploration of both arms; hashes of the two best."""
        best: dict[str, str] = {}
        for rate, score in LORA.items():
            hash = self.configured("lora", 0, rate, "baseline", {"rate": math.log(rate / 3e-3)}, 290 * 2**20)
            trial = self.begin(hash, "baseline")
            self.climb(trial, score, LORA_FULL.get(rate))
            if rate == 2e-3:
                best["baseline"] = hash
        for number in range(16):
            good, first = number % 2 == 0, 3 if number % 4 < 2 else 1
            rate = 1e-3 * 1.1**number
            values = {"attention": "lora" if good else "ia3", "rate": number / 16, "batch": 32}
            hash = self.configured("lora" if good else "ia3", first, rate, "space", values, None)
            trial = self.begin(hash, "space")
            score = (0.80 if good else 0.70) + 0.001 * ((7 * number) % 5)
            full = 0.86 + 0.001 * number if number in (0, 4, 8, 12) else None
            self.climb(trial, score, full)
            if number == 12:
                best["space"] = hash
        return best["baseline"], best["space"]

    def climb(self, trial: str, score: float, full: float | None) -> None:
        """A trial to its first rung, or through all of them."""
        self.rung(trial, 0, RUNGS[0], score)
        if full is None:
            self.add("decision", trial=trial, rung=0, action="stop", reason="not among the best third")
            self.end(trial, "stopped", "below the best third at 1000 rows")
            return
        for rung, share in ((1, 0.5), (2, 1.0)):
            self.rung(trial, rung, RUNGS[rung], score + share * (full - score), 20.0)
        self.end(trial, "completed")
