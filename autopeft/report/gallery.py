"""All drawings of a report by name: for the page, and as files of their own."""

from __future__ import annotations

from html import escape
from pathlib import Path

from autopeft.report.charts import progress_chart, rate_chart
from autopeft.report.contenders import by_role
from autopeft.report.drawing import ARM_LABELS, Drawing
from autopeft.report.facts import Facts
from autopeft.report.figures.curves import curves_drawing
from autopeft.report.figures.forecast import forecast_drawing
from autopeft.report.figures.front import front_drawing
from autopeft.report.figures.importance import importance_drawing
from autopeft.report.figures.places import places_drawing
from autopeft.report.figures.rates import rates_drawing


def gallery(facts: Facts) -> dict[str, Drawing]:
    """Name -> drawing, in the order of the page. Those without data say so."""
    metric, found = facts.rung_metric, facts.figures
    return {
        "progress": progress_chart(facts.progress, facts.used, metric, ARM_LABELS, _ends(facts)),
        "lora-learning-rate": rates_drawing(found.rates, metric),
        "pareto-parameters": front_drawing(found.fronts, "adapter_params", metric),
        "pareto-memory": front_drawing(found.fronts, "bytes", metric),
        "pareto-latency": front_drawing(found.fronts, "latency", metric),
        "layers-and-methods": places_drawing(found.places),
        "importance": importance_drawing(found.importance),
        "learning-curves": curves_drawing(found.curves, metric),
        "learning-rates": rate_chart(facts.rates, metric, ARM_LABELS),
        "memory-predicted": forecast_drawing(found.forecast),
    }


def _ends(facts: Facts) -> dict[str, float]:
    """Arm -> mean of its finalist's fresh runs, where rungs are judged by the same metric."""
    arms = {"baseline": "baseline", "challenger": "space"}
    named = by_role(facts.contenders)
    fresh = {arm: named[role] for role, arm in arms.items() if role in named and named[role].low is not None}
    same = facts.metric == facts.rung_metric
    return {arm: one.validation for arm, one in fresh.items() if one.validation is not None and same}


def write_charts(facts: Facts, folder: Path) -> None:
    """Write every drawing that has data as an SVG file; those that no longer have any go."""
    for name, drawing in gallery(facts).items():
        target = folder / f"{name}.svg"
        if drawing.empty:
            target.unlink(missing_ok=True)
            continue
        folder.mkdir(exist_ok=True)
        half = folder / f".{name}.part"
        half.write_text(drawing.svg(), encoding="utf-8")
        half.replace(target)


def sections(facts: Facts) -> list[tuple[str, str, str]]:
    """`(title, HTML, why it is empty)` of the sections that are drawings; one of the last two is empty."""
    drawn, found = gallery(facts), facts.figures
    fronts = [drawn[f"pareto-{name}"] for name in ("parameters", "memory", "latency")]
    known = [drawing.html() for drawing in fronts if not drawing.empty]
    worth = "".join(f"<div>{html}</div>" for html in known)
    worth = f'<div class="pair">{worth}</div>' if len(known) > 1 else fronts[0].html()
    made = [
        ("Progress", "progress", drawn["progress"].html()),
        ("LoRA's learning rate", "lora-learning-rate", _said(found.rates.sentence(), drawn["lora-learning-rate"])),
        ("Score against size, memory and latency", "pareto-parameters", worth),
        ("Which methods, in which blocks", "layers-and-methods", drawn["layers-and-methods"].html()),
        ("What mattered", "importance", _said(found.importance.sentence(), drawn["importance"])),
        ("Learning curves", "learning-curves", drawn["learning-curves"].html()),
        ("Learning rates of all methods", "learning-rates", drawn["learning-rates"].html()),
        ("Predicted and measured", "memory-predicted", _said(found.forecast.sentences(), drawn["memory-predicted"])),
    ]
    return [(title, "" if drawn[name].empty else html, drawn[name].empty) for title, name, html in made]


def _said(sentence: str, drawing: Drawing) -> str:
    return f"<p>{escape(sentence)}</p>{drawing.html()}"
