"""Signatures over curves of which the truth is known."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from autopeft.evidence.outlook import WORTH, Gain, Outlook, labels_gain, outlook, search_gain
from autopeft.evidence.signatures import (
    Signature,
    Step,
    capacity,
    fall,
    latency,
    overfitting,
    spike,
    unstable_start,
)

ROWS = (1000, 3000, 9000)
RANGE = {"lora": (1e-4, 1e-3, 1e-2)}


def curve(losses: list[float]) -> list[tuple[int, float]]:
    return [(100 * (index + 1), loss) for index, loss in enumerate(losses)]


def falling(noise: float = 0.0, points: int = 16) -> list[float]:
    chance = np.random.default_rng(3)
    return [1.0 * math.exp(-index / 8) + noise * chance.standard_normal() for index in range(points)]


FLAT = [1.0, 0.6, 0.42, 0.4, 0.41, 0.39, 0.4, 0.4, 0.41, 0.4, 0.39, 0.4, 0.41, 0.4, 0.4, 0.39]
BOUNDS = {"least": 100, "most": 1000, "limit": "max_adapter_params"}


def test_a_full_size_with_a_falling_loss_asks_for_more() -> None:
    found = capacity("winner", 960, BOUNDS, curve(falling(0.005)))
    assert found.found is True
    assert "96% of the parameters" in found.words
    assert "--max-params" in found.next_step
    assert "--max-time" in found.next_step


@pytest.mark.parametrize(
    ("params", "losses", "expected"),
    [(500, falling(), False), (960, FLAT, False), (960, [1.0, 0.5], None), (500, [], False)],
)
def test_room_or_a_flat_loss_asks_for_nothing(params: int, losses: list[float], expected: bool | None) -> None:
    found = capacity("winner", params, BOUNDS, curve(losses))
    assert found.found is expected
    assert found.next_step == ""


@pytest.mark.parametrize(
    ("limit", "words"),
    [("max_adapter_size", "--max-size"), ("space.max_share", "space.max_share"), (None, "a space with larger sizes")],
)
def test_the_next_step_names_the_limit_that_binds(limit: str | None, words: str) -> None:
    assert words in capacity("winner", 1000, {"most": 1000, "limit": limit}, curve(falling())).next_step


def test_what_falls_only_because_the_rates_do_is_no_fall() -> None:
    losses = [*FLAT[:11], 0.36, 0.33, 0.30, 0.28, 0.27]
    assert fall(curve(losses)) > 0.1  # type: ignore[operator]
    assert fall(curve(losses), until=1100) == 0.0


def test_noise_is_no_fall_and_no_spike() -> None:
    for seed in range(50):
        chance = np.random.default_rng(seed)
        losses = list(0.5 + 0.02 * chance.standard_normal(16))
        assert (fall(curve(losses)) or 0.0) < 0.06
        assert spike(curve(losses)) is None
        assert spike(curve(list(np.array(falling()) + 0.02 * chance.standard_normal(16)))) is None


@pytest.mark.parametrize("place", [3, 4, 9, 14])
def test_a_spike_is_found_where_it_is(place: int) -> None:
    losses = falling(0.005)
    losses[place] = 1.6
    found = spike(curve(losses))
    assert found is not None
    assert found.rows == 100 * (place + 1)
    assert found.rise == pytest.approx(1.6 - min(losses[:place]))
    assert found.stayed is (place == 14)


def test_a_training_that_breaks_down_late_is_said_to_stay_there() -> None:
    """The losses of a LoRA on two classes that ended where it began, at log 2."""
    losses = [0.59, 0.03, 0.0, 0.0, 0.0, 0.0, 2.54, 3.35, 1.47, 1.01, 0.7, 0.79, 0.7, 0.71, 0.69, 0.69]
    made = unstable_start("baseline", [curve(losses), curve(falling())], (0, 5), {}, {})
    assert made.found is True
    assert "by up to 3.35 (after 800 rows) in 1 of 2 trainings, and stayed up in 1" in made.words


def test_an_unstable_start_says_all_that_was_seen() -> None:
    bad = falling()
    bad[3] = 3.0
    made = unstable_start("winner", [curve(bad), curve(FLAT)], (2, 9), {"lora": 9.9e-3}, RANGE, (-2.3026, 2.3026))
    assert made.found is True
    for words in ("after 400 rows) in 1 of 2", "in 2 of 9 trials", "high end"):
        assert words in made.words
    assert "lower rates" in made.next_step


def test_a_rate_inside_of_its_range_and_a_quiet_curve_are_fine() -> None:
    made = unstable_start("winner", [curve(FLAT)], (0, 9), {"lora": 1e-3}, RANGE, (-2.3, 2.3))
    assert (made.found, made.next_step) == (False, "")
    assert unstable_start("winner", [curve(FLAT)], (1, 11), {}, RANGE).found is False
    assert unstable_start("winner", [], (0, 9), {"lora": 1e-3}, {}).found is None
    fixed = unstable_start("winner", [curve(FLAT)], (0, 9), {"lora": 1e-3}, {"lora": (1e-3, 1e-3, 1e-3)}, (0.0, 0.0))
    assert fixed.found is False


@pytest.mark.parametrize(
    ("rate", "span", "plain", "step"),
    [
        (1.01e-4, (1e-4, 1e-3, 1e-2), False, "space.rate_offset=[-3.3, 2.3]"),
        (9.9e-3, (1e-4, 1e-3, 1e-2), False, "space.rate_offset=[-2.3, 3.3]"),
        (9.9e-3, (1e-4, 1e-3, 1e-2), True, "--space lora: --set space.rate_offset=[-2.3, 3.3]"),
        (8e-3, (1e-4, 1e-3, 8e-3), False, "wider bounds in a space file"),
    ],
)
def test_the_next_step_widens_the_side_that_ends_the_range(
    rate: float, span: tuple[float, ...], plain: bool, step: str
) -> None:
    made = unstable_start("winner", [], (0, 5), {"lora": rate}, {"lora": span}, (-2.3, 2.3), plain=plain)
    assert made.found is True
    assert step in made.next_step


def steps(change: float, loss: float, count: int = 8, noise: float = 0.002, shift: float = 0.0) -> list[Step]:
    chance = np.random.default_rng(5)
    pairs = [(0.8, 0.8 + change + noise * chance.standard_normal()) for _ in range(count)]
    return [Step((3000, 9000), pairs, [(0.4, 0.4 + loss)] * count, shift)]


def test_overfitting_is_validation_down_and_training_loss_down() -> None:
    assert overfitting(steps(-0.02, -0.2)).found is True
    assert "-0.02" in overfitting(steps(-0.02, -0.2)).words
    assert overfitting(steps(-0.02, 0.2)).found is False
    assert overfitting(steps(0.02, -0.2)).found is False
    assert overfitting(steps(-0.0005, -0.2)).found is False
    assert overfitting(steps(-0.02, -0.2, shift=0.02)).found is False
    assert overfitting(steps(-0.02, -0.2, count=2)).found is None
    assert overfitting([]).found is None


def test_the_fall_that_choosing_causes_is_not_called_overfitting() -> None:
    """The best third of noisy scores falls back at the next rung although nothing has changed."""
    called = 0
    for seed in range(100):
        chance = np.random.default_rng(seed)
        first = 0.8 + 0.005 * chance.standard_normal(30)
        chosen = np.sort(first)[-10:]
        second = 0.8 + 0.005 * chance.standard_normal(10)
        step = Step((1000, 3000), list(zip(chosen, second, strict=True)), [(0.4, 0.3)] * 10)
        called += overfitting([step]).found is True
    assert called <= 15
    mild = overfitting([Step((1000, 3000), [(0.806, 0.803 + 0.005 * z) for z in (-1, 0, 1, 0.5)], [(0.4, 0.3)] * 4)])
    assert mild.found is False


@pytest.mark.parametrize(
    ("ratios", "lora", "found"),
    [
        # What a call costs shows at one row of a small model, LoRA's too.
        ({"1": 1.42, "16": 1.10}, {"1": 1.35, "16": 1.06}, False),
        ({"1": 1.42, "16": 1.10}, None, False),
        ({"1": 1.60, "16": 1.10}, {"1": 1.35, "16": 1.06}, True),
        ({"1": 1.10, "16": 1.24}, {"1": 1.10, "16": 1.05}, True),
        ({"1": 1.10, "16": 1.42}, None, True),
        ({"1": 1.40}, {"16": 1.0}, True),
    ],
)
def test_latency_is_named_where_it_cannot_be_merged_and_lora_would_be_faster(
    ratios: dict[str, float], lora: dict[str, float] | None, found: bool
) -> None:
    made = latency("winner", ratios, lora=lora)
    assert made.found is found
    assert made.next_step.startswith("It cannot be merged: where latency matters, search with") is found
    assert latency("winner", ratios, lora=lora, mergeable=True).found is False
    assert latency("winner", ratios, lora=lora, limit=2.0).found is False


def test_latency_says_what_was_measured_and_a_limit_that_tuned_lora_keeps() -> None:
    assert latency("winner", None).found is None
    made = latency("winner", {"batch_1": 1.62, "batch_16": 1.02, "method": "best of 5"}, lora={"1": 1.311, "16": 1.0})
    assert "times 1.62 with 1 row, times 1.02 with 16 rows" in made.words
    assert "tuned LoRA: times 1.31 with 1 row" in made.words
    assert "--max-latency 1.32," in made.next_step
    assert "--max-latency 1.25," in latency("winner", {"1": 1.3, "16": 1.3}).next_step
    assert "adds nothing" in latency("winner", {"1": 1.42}, mergeable=True).words
    assert "within the limit of 1.5" in latency("winner", {"1": 1.42}, limit=1.5).words


def world(seed: int, count: int, gain: float, spread: float, noise: float = 0.002) -> tuple[Outlook, float]:
    """Power-law curves with alpha 0.5 over three rungs; the true gain of twice the rows."""
    chance = np.random.default_rng(seed)
    quality = 0.85 + spread * chance.standard_normal((count, 1))
    missing = np.array([gain * (rows / ROWS[-1]) ** -0.5 for rows in ROWS])
    scores = quality - missing + noise * chance.standard_normal((count, len(ROWS)))
    seeds = 0.85 + noise * chance.standard_normal((2, 3))
    found = outlook(labels_gain(ROWS, scores.tolist(), most=1.0), search_gain(scores[:, -1].tolist(), seeds.tolist()))
    return found, gain * (1 - 2**-0.5)


def test_curves_that_still_rise_ask_for_labels_and_the_interval_holds_the_truth() -> None:
    found = [world(seed, 8, 0.1, 0.002) for seed in range(40)]
    assert {outlook.answer for outlook, _ in found} == {"labels"}
    held = [made.labels.low <= truth <= made.labels.high for made, truth in found if made.labels]
    assert len(held) == 40
    assert sum(held) >= 34


def test_flat_curves_of_equal_trials_ask_for_neither() -> None:
    found = [world(seed, 8, 0.0, 0.0) for seed in range(40)]
    assert {made.answer for made, _ in found} == {"neither"}
    assert all(made.labels and made.search and max(made.labels.high, made.search.high) < WORTH for made, _ in found)


def test_trials_that_differ_under_flat_curves_ask_for_search_and_never_for_labels() -> None:
    answers = Counter(world(seed, 24, 0.0, 0.03)[0].answer for seed in range(40))
    assert answers["search"] >= 30
    assert answers["labels"] == answers["neither"] == 0


def test_seed_noise_alone_is_no_gain_from_search() -> None:
    medians, lows = [], []
    for seed in range(20):
        chance = np.random.default_rng(seed)
        noisy = (0.85 + 0.02 * chance.standard_normal(16)).tolist()
        seeds = (0.85 + 0.02 * chance.standard_normal((2, 5))).tolist()
        gains = search_gain(noisy, seeds)
        assert gains is not None
        lows.append(float(np.quantile(gains, 0.025)))
        medians.append(float(np.median(gains)))
    assert lows.count(0.0) >= 18
    # Half of what the maximum of 32 instead of 16 such scores would seem to add.
    assert np.mean(medians) < 0.003


@pytest.mark.parametrize(("ahead", "answer"), [(0.85, "open"), (0.95, "labels")])
def test_one_answer_is_given_only_where_it_is_clearly_ahead(ahead: float, answer: str) -> None:
    # Both gain something that is worth it; labels gain more in this share of the draws.
    labels = np.where(np.arange(1000) < 1000 * ahead, 0.04, 0.02)
    assert outlook(labels, np.full(1000, 0.03)).answer == answer


def test_too_few_trainings_give_no_answer() -> None:
    assert labels_gain(ROWS, [[0.7, 0.8, 0.85]] * 2) is None
    assert labels_gain((9000,), [[0.8]] * 5) is None
    assert search_gain([0.8, 0.81, 0.82]) is None
    assert outlook(None, search_gain([0.8, 0.81, 0.82, 0.83])).answer == "unknown"


def test_two_rungs_leave_the_shape_open_and_a_wider_interval() -> None:
    chance = np.random.default_rng(1)
    table = 0.8 + np.array([[0.0, 0.04, 0.06]]) + 0.001 * chance.standard_normal((8, 3))
    three, two = labels_gain(ROWS, table.tolist()), labels_gain(ROWS[1:], table[:, 1:].tolist())
    assert three is not None
    assert two is not None
    widths = [Gain.of(draws).high - Gain.of(draws).low for draws in (three, two)]
    assert widths[1] > 3 * widths[0]
    # The line in log rows is the most that two rungs allow.
    assert Gain.of(two).high <= 0.02 * math.log(2) / math.log(3) * 1.15


def test_falling_rates_and_other_validation_rows_widen_the_interval() -> None:
    table = [[0.7 + d, 0.8 + d, 0.85 + d] for d in (0.0, 0.001, 0.002, 0.003)]
    plain, doubtful = labels_gain(ROWS, table), labels_gain(ROWS, table, bonus=0.5)
    other = labels_gain(ROWS, table, shift=0.01)
    assert plain is not None
    assert doubtful is not None
    assert other is not None
    assert Gain.of(doubtful).low < 0.6 * Gain.of(plain).low
    assert Gain.of(other).high > 1.2 * Gain.of(plain).high


def test_a_score_that_cannot_rise_gains_nothing() -> None:
    gains = labels_gain(ROWS, [[0.96, 0.98, 0.999]] * 4, most=1.0)
    assert gains is not None
    assert gains.max() <= 0.001 + 1e-9
    spread = search_gain([0.9, 0.95, 0.99, 1.0], most=1.0)
    assert spread is not None
    assert spread.max() == 0.0


def test_draws_are_the_same_every_time() -> None:
    first, second = (labels_gain(ROWS, [[0.7, 0.8, 0.85], [0.71, 0.8, 0.84], [0.7, 0.79, 0.85]]) for _ in range(2))
    assert first is not None
    np.testing.assert_array_equal(first, second)


def test_a_signature_is_plain_values() -> None:
    assert Signature("capacity", "winner", None, "Unknown.").to_dict() == {
        "name": "capacity",
        "of": "winner",
        "found": None,
        "words": "Unknown.",
        "next_step": "",
    }
