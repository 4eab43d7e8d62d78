"""The report in a real browser: at two widths, without a network, clicked through."""

from __future__ import annotations

import json
import re
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, NONE, browse
from example_search import ExampleSearch
from wide_search import WideSearch

from autopeft.report import report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason=NONE)]

SECTIONS = (
    "Comparison",
    "Progress",
    "LoRA's learning rate",
    "Score against size, memory and latency",
    "Which methods, in which blocks",
    "What mattered",
    "Learning curves",
    "Learning rates of all methods",
    "Predicted and measured",
    "Trials",
    "What became of the others",
    "Budget",
    "Task, model, space",
    "Run it again",
    "Environment",
)
BIDI = "\u202eevil\u202c \u05d0\u05d1\u05d2\n  x "


class Hostile(WideSearch):
    """Long and right-to-left labels, eval sets with long names, and long reasons."""

    def add(self, type: str, /, later: float = 0.0, **data: Any) -> None:
        if type == "trial_ended" and data["status"] == "stopped":
            data["reason"] = "R" * 250
        if type == "finished":
            names = ["L" * 3000, BIDI, "a b " * 90]
            score = {"recall": 0.5, "f1": 0.5}
            classes = [{"label": name, "rows": 9, "winner": score, "opponent": score} for name in names]
            sets = {name: {"rows": 9, "evaluated": 9, "winner": {"accuracy": 0.5}} for name in ("S" * 90, BIDI)}
            more = {"slices": {"split": "test", "classes": classes}, "eval_sets": sets}
            data["result"] = {**data["result"], **more}
        super().add(type, later, **data)


OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
ERRORS = """<script>window.said = [];
addEventListener('error', event => said.push(String(event.message)), true);
console.error = (...words) => said.push(words.join(' '));</script>"""
PROBE = """<script>
const page = document.getElementById('page');
page.addEventListener('load', () => {
  const inner = page.contentDocument, found = {};
  inner.querySelectorAll('details').forEach(one => one.querySelector('summary').click());
  found.details = [...inner.querySelectorAll('details')].map(one => one.open && one.scrollHeight > 40);
  const first = () => [...inner.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[1].textContent);
  const head = inner.querySelectorAll('table.sortable th')[1];
  if (head) {
    head.click();
    found.down = first();
    head.click();
    found.up = first();
    found.sorted = head.getAttribute('aria-sort');
  }
  found.sections = [...inner.querySelectorAll('h2')].map(one => one.textContent);
  found.width = inner.documentElement.clientWidth;
  found.scroll = inner.documentElement.scrollWidth;
  found.charts = [...inner.querySelectorAll('svg')].map(one => one.getBoundingClientRect().width);
  const outside = text => {
    const box = text.getBoundingClientRect(), around = text.closest('svg').getBoundingClientRect();
    return box.width > 0 && (box.left < around.left - 1 || box.right > around.right + 1);
  };
  found.cut = [...inner.querySelectorAll('svg text')].filter(outside).map(one => one.textContent);
  found.hidden = [...inner.querySelectorAll('.wide')].filter(one => one.scrollWidth > one.clientWidth + 1)
    .map(one => one.textContent.slice(0, 60));
  const cells = [...inner.querySelectorAll('td')].map(one => one.getBoundingClientRect());
  found.beyond = cells.filter(box => box.left < -1 || box.right > found.width + 1).length;
  found.errors = page.contentWindow.said;
  found.fetched = page.contentWindow.performance.getEntriesByType('resource').map(entry => entry.name);
  document.body.append(Object.assign(document.createElement('pre'), {textContent: 'FOUND' + JSON.stringify(found)}));
});
page.srcdoc = document.getElementById('source').value;
</script>"""


def looked_at(folder: Path, width: int) -> dict[str, Any]:
    """What the page does in a frame of this width: a window cannot be as narrow as a telephone."""
    text = Path(report(folder)).read_text(encoding="utf-8").replace("<head>", f"<head>{ERRORS}")
    outer = folder.parent / f"outer-{width}.html"
    outer.write_text(
        f'<!doctype html><meta charset="utf-8"><textarea id="source" hidden>{escape(text)}</textarea>'
        f'<iframe id="page" width="{width}" height="900" style="border:0"></iframe>{PROBE}',
        encoding="utf-8",
    )
    document = browse(
        folder.parent / "profile", outer.as_uri(), "--dump-dom", "--hide-scrollbars", OFFLINE, milliseconds=20_000
    )
    answer = re.search(r"<pre>FOUND(.*?)</pre>", document)
    assert answer is not None, "the page did not load"
    return dict(json.loads(unescape(answer[1])))


@pytest.mark.parametrize("width", [420, 1280])
def test_the_report_can_be_clicked_through(tmp_path: Path, width: int) -> None:
    WideSearch(tmp_path / "run").whole()
    found = looked_at(tmp_path / "run", width)
    assert found["width"] == width
    assert found["scroll"] <= width, "something is wider than the page"
    assert found["hidden"] == []
    assert found["beyond"] == 0
    assert set(SECTIONS) <= set(found["sections"])
    assert found["details"]
    assert all(found["details"])
    assert found["down"] == sorted(found["down"], reverse=True)
    assert found["up"] == sorted(found["down"])
    assert found["down"] != found["up"]
    assert found["sorted"] == "ascending"
    assert len(found["charts"]) == 9
    assert all(200 < drawn <= width for drawn in found["charts"])
    assert found["cut"] == []
    assert found["errors"] == []
    assert found["fetched"] == []


@pytest.mark.parametrize("width", [420, 1280])
def test_no_column_is_out_of_sight_whatever_the_content(tmp_path: Path, width: int) -> None:
    Hostile(tmp_path / "run", name=BIDI).whole()
    found = looked_at(tmp_path / "run", width)
    assert "Classes" in found["sections"]
    assert "Eval sets" in found["sections"]
    assert found["scroll"] <= width
    assert found["hidden"] == []
    assert found["beyond"] == 0
    assert found["errors"] == []


@pytest.mark.parametrize("width", [420, 1280])
def test_a_search_that_died_early_has_a_page_too(tmp_path: Path, width: int) -> None:
    search = ExampleSearch(tmp_path / "run")
    search.head()
    search.journal.close()
    found = looked_at(tmp_path / "run", width)
    assert found["scroll"] <= width
    assert found["charts"] == []
    assert found["errors"] == []


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    ExampleSearch(tmp_path / "run").whole()
    path = Path(report(tmp_path / "run"))
    # The page's own script, driven by a click at its end: the score column, largest first.
    click = "<script>document.querySelectorAll('table.sortable th')[1].click()</script></body>"
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", click), encoding="utf-8")
    document = browse(tmp_path / "profile", path.as_uri(), "--dump-dom", OFFLINE, milliseconds=2_000)
    table = document[document.index('class="sortable') :]
    order = [table.index(f">{trial}</td>") for trial in ("t0007", "t0001", "t0000", "t0002", "t0003")]
    assert order == sorted(order)


def test_charts_open_as_files_of_their_own(tmp_path: Path) -> None:
    WideSearch(tmp_path / "run").whole()
    report(tmp_path / "run")
    files = sorted((tmp_path / "run" / "charts").glob("*.svg"))
    assert len(files) == 9
    for file in files[:2]:
        document = browse(tmp_path / "profile", file.as_uri(), "--dump-dom", OFFLINE, milliseconds=1_000)
        assert "parsererror" not in document
        assert "<title>" in document
        assert "var(" not in document
