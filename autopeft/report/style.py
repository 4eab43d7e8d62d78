"""Look and behaviour of the page."""

from __future__ import annotations

import re

FIGURES = """
svg text{fill:var(--quiet);font-size:12px}
.grid{stroke:var(--rule)}.line{fill:none;stroke-width:2}
path.space{stroke:var(--space)}path.baseline{stroke:var(--baseline)}path.incumbent{stroke:var(--incumbent)}
path.other{stroke:var(--other)}
circle.space,i.space{fill:var(--space);background:var(--space)}
circle.baseline,i.baseline{fill:var(--baseline);background:var(--baseline)}
circle.incumbent,i.incumbent{fill:var(--incumbent);background:var(--incumbent)}
circle.other,i.other{fill:var(--other);background:var(--other)}
path.thin{stroke-width:1;opacity:.55}path.thick{stroke-width:3}path.dashed{stroke-dasharray:5 5;stroke-width:1}
.ring{fill:none;stroke:var(--ink);stroke-width:1.5}.heat{fill:var(--baseline)}.cell{fill:var(--soft)}
.cell.marked{stroke:var(--space);stroke-width:4}svg text.strong{fill:var(--paper)}svg text.inked{fill:var(--ink)}
circle.early{fill:var(--paper);stroke-width:2}circle.space.early{stroke:var(--space)}
circle.baseline.early{stroke:var(--baseline)}circle.incumbent.early{stroke:var(--incumbent)}
"""
"""Of drawings, in the page and in files of their own."""

STYLE = """
:root{--ink:#1c2430;--quiet:#66707f;--paper:#fff;--soft:#f4f6f9;--rule:#dfe4ea;--space:#c2540a;--baseline:#2563a8;
--incumbent:#6b4fa0;--other:#66707f;--sure:#1d7a43;--unsure:#a8480a;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--quiet:#98a2b0;--paper:#14181e;--soft:#1d232b;--rule:#323a45;
--space:#f0924e;--baseline:#76aeea;--incumbent:#b49be0;--other:#98a2b0;--sure:#6fcf97;--unsure:#f0924e}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 20px 64px}
header p{margin:0}.name{font-weight:600;font-size:1.1rem;overflow-wrap:anywhere}.quiet{color:var(--quiet)}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 8px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:40px 0 8px;padding-bottom:4px;border-bottom:1px solid var(--rule)}
h3{font-size:1rem;margin:20px 0 4px}
.answer{background:var(--soft);border-radius:8px;padding:20px;margin-top:16px}.answer p{margin:0 0 12px}
.next{margin:14px 0 18px}.next code{overflow-wrap:anywhere}.next ol{margin:2px 0 0;padding-left:22px}
.boxes{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.boxes div{display:flex;flex-direction:column}.boxes b{font-size:1.35rem;font-variant-numeric:tabular-nums}
.boxes span{font-size:.82rem}
.boxes .lead{border-left:4px solid var(--space);padding-left:10px}.boxes .lead b{font-size:1.8rem}
.badge{display:inline-block;border-radius:10px;padding:1px 10px;margin:0 6px 4px 0;font-size:.82rem;font-weight:600}
.badge.sure{background:#1d7a4322;color:var(--sure)}.badge.tie{background:#66707f22;color:var(--quiet)}
.badge.unsure{background:#b4530922;color:var(--unsure)}.caution{border-left:4px solid var(--unsure);padding-left:10px}
.small,.answer details{font-size:.82rem}.answer details{margin-top:12px}.answer details p{margin:4px 0 0}
.strip{display:grid;grid-template-columns:minmax(6em,max-content) 1fr max-content;gap:4px 12px;align-items:center}
.strip .who,.strip .score{font-size:.88rem;overflow-wrap:anywhere}.strip .taken{font-weight:600}
.strip .score{font-variant-numeric:tabular-nums}
.track{position:relative;height:18px;border-bottom:1px solid var(--rule)}.track i{position:absolute}
.track .bar{top:7px;height:4px;width:auto;min-width:0;opacity:.45;border-radius:2px}
.track .point{top:3px;width:12px;height:12px;margin-left:-6px;border-radius:6px}
.wide{overflow-x:auto;margin:8px 0}
table{border-collapse:collapse;font-size:.88rem;min-width:100%}
th,td{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid var(--rule);white-space:nowrap;vertical-align:top}
th{white-space:normal}td.words{white-space:normal;overflow-wrap:anywhere;min-width:7.5em}
th:first-child,td:first-child{position:sticky;left:0;background:var(--paper)}.sortable{font-size:.8rem}
th{color:var(--quiet);font-weight:600}.number{font-variant-numeric:tabular-nums}
.taken td{font-weight:600}.sortable th{cursor:pointer}.sortable th[aria-sort]{color:var(--ink)}
td.bar{width:40%;min-width:80px}
td.bar i{display:block;height:.8em;margin-top:.35em;background:var(--baseline);border-radius:2px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;font-size:.9rem;margin:8px 0}
dt{color:var(--quiet)}dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--soft);padding:12px;border-radius:6px;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}
ul{margin:4px 0;padding-left:20px;overflow-wrap:anywhere}
svg{width:100%;max-width:760px;height:auto;display:block}
.legend{font-size:.85rem;color:var(--quiet);margin:4px 0}.key{margin-right:16px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:8px 24px}
.pair svg text{font-size:17px}
.key i{display:inline-block;width:10px;height:10px;border-radius:5px;margin-right:6px}
.key i.rule{height:2px;border-radius:0;width:16px;vertical-align:middle}
@media(max-width:560px){main{padding:16px 12px 48px}h1{font-size:1.3rem}.answer{padding:14px}
dl{grid-template-columns:1fr}dd{margin-bottom:6px}svg text,.pair svg text{font-size:19px}svg .upright{display:none}
.strip{grid-template-columns:minmax(5em,8em) 1fr max-content}
.cards,.cards tbody,.cards tr{display:block}.plain.cards thead{display:none}.sortable.cards thead{display:block}
.sortable.cards thead tr{display:flex;flex-wrap:wrap;gap:0 6px}
.cards tr{padding:6px 0;border-bottom:1px solid var(--rule)}
.cards th{border:0}.cards td,td.words{min-width:0}
.cards td{display:inline-block;max-width:100%;border:0;padding:0 14px 2px 0;white-space:normal}
.cards td:first-child{display:block;font-weight:600;overflow-wrap:anywhere}
.cards td:not(:first-child)::before{content:attr(data-head) " ";color:var(--quiet);font-weight:400}}
@media print{.wide{overflow:visible}}
"""
LIGHT = dict(re.findall(r"--(\w+):(#\w+)", STYLE.split("@media")[0]))


def figure_style() -> str:
    """The rules of drawings with the colours filled in: what reads SVG files may not know variables."""
    plain = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], FIGURES)
    return f"text{{font-family:system-ui,sans-serif}}.title{{font-weight:600}}{plain}"


SCRIPT = """
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0];
  table.tHead.querySelectorAll('th').forEach((head, column) => {
    head.tabIndex = 0;
    head.addEventListener('keydown', event => { if (event.key === 'Enter') head.click(); });
    head.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'descending';
      table.tHead.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'ascending' : 'descending');
      const key = row => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
      };
      const order = (a, b) => (typeof a === 'number' ? a - b : a.localeCompare(b)) * (down ? 1 : -1);
      [...body.rows].sort((a, b) => order(key(a), key(b))).forEach(row => body.append(row));
    });
  });
}
"""
