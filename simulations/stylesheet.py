"""The report's stylesheet: system fonts, light and dark, narrow and wide, screen and paper."""

_LIGHT = """
  --page: #f5f7f9; --card: #ffffff; --ink: #1b2733; --muted: #566573; --line: #d8dfe6;
  --accent: #17708c; --soft: #dcebf0; --warn: #a8430f; --warn-soft: #fdf0e3; --warn-line: #e8b98a;
  --good: #23744a;
  --series-1: #17708c; --series-2: #b4531a; --series-3: #5a4fa3; --series-4: #2f7d46;
  --series-5: #a83266; --series-6: #7a6512; --series-7: #47586b;
"""
_DARK = """
  --page: #11171d; --card: #19212a; --ink: #e4eaf0; --muted: #9fafbe; --line: #303c48;
  --accent: #5fb7d1; --soft: #203a45; --warn: #f0a36b; --warn-soft: #33261a; --warn-line: #7d5730;
  --good: #6fca97;
  --series-1: #5fb7d1; --series-2: #eda06a; --series-3: #a9a0ee; --series-4: #74c78e;
  --series-5: #ec8bb3; --series-6: #d2bb5c; --series-7: #a8b8c8;
"""

STYLESHEET = (
    f":root {{ color-scheme: light dark; {_LIGHT} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}\n"
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
.page { max-width: 66rem; margin: 0 auto; padding: 2.25rem 1.25rem 3rem; }
h1 { font-size: 1.75rem; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; margin: 0 0 1.1rem;
  text-wrap: balance; }
h1 .source { display: block; margin-top: .35rem; font-size: 1rem; line-height: 1.45; font-weight: 400;
  letter-spacing: 0; color: var(--muted); text-wrap: wrap; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 0 0 .55rem; font-weight: 650; }
p { margin: 0 0 .8rem; max-width: 46rem; }
a { color: var(--accent); }
.note, .missing, figcaption, caption { color: var(--muted); font-size: .9rem; }
.missing { border-left: 3px solid var(--line); padding: .1rem 0 .1rem .8rem; margin: .2rem 0; }
.notice { max-width: none; background: var(--warn-soft); border: 1px solid var(--warn-line);
  border-left-width: 5px; border-radius: 6px; padding: .75rem 1rem; margin: 0 0 .8rem; }
.notice.loud { border-color: var(--warn); font-size: 1.06rem; }
.notice strong { color: var(--warn); }
.key { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.6rem, 1fr)); gap: .75rem;
  margin: 1.4rem 0; }
.key > div { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem .95rem; }
.key dt { color: var(--muted); font-size: .83rem; line-height: 1.35; }
.key dd { margin: 0; }
.key .value { font-size: 1.4rem; line-height: 1.3; font-weight: 620; font-variant-numeric: tabular-nums;
  letter-spacing: -.01em; margin: .15rem 0; white-space: nowrap; }
.key .extra { font-size: .84rem; font-weight: 500; color: var(--muted); letter-spacing: 0; }
.key .about { color: var(--muted); font-size: .8rem; line-height: 1.35; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: 0; margin: 0 0 1.4rem;
  font-size: .9rem; }
nav a { text-decoration: none; }
nav a:hover, nav a:focus-visible { text-decoration: underline; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 1.2rem 1.35rem 1.1rem; grid-column: 1 / -1; min-width: 0; }
main { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
section.half { grid-column: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr));
  gap: 1.1rem 2rem; align-items: start; }
.pair > * { min-width: 0; }
figure { margin: .4rem 0 .6rem; }
figure.chart { max-width: 34rem; }
figure svg { display: block; width: 100%; height: auto; font-family: inherit; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { margin-top: .35rem; }
#roc:not(.half) figure { max-width: none; display: grid; align-items: start; gap: .4rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.scroll { overflow-x: auto; margin: .4rem 0 .7rem; }
.pair .scroll { max-height: 40rem; overflow-y: auto; }
.pair thead th { position: sticky; top: 0; background: var(--card); }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
table.full { width: 100%; }
caption { text-align: left; padding: 0 0 .45rem; }
th, td { padding: .36rem .9rem .36rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: break-word; }
thead th { color: var(--muted); font-weight: 550; font-size: .85rem; vertical-align: bottom; }
tbody th { font-weight: 500; max-width: 16rem; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
table.messages { min-width: 44rem; }
table.messages td:last-child { min-width: 18rem; }
tr.this th, tr.this td { font-weight: 650; }
table.confusion { border-collapse: separate; border-spacing: 3px; }
table.confusion th { border: 0; padding: .3rem .6rem .3rem 0; }
table.confusion thead th { padding: .3rem .5rem; text-align: center; max-width: 8rem; }
table.confusion td { border: 0; border-radius: 4px; min-width: 4.4rem; padding: .5rem .6rem;
  line-height: 1.25; text-align: center;
  background: color-mix(in srgb, var(--accent) calc(var(--share) * 48%), var(--page)); }
table.confusion td.corner { background: none; }
table.confusion td .percent { display: block; font-size: .8rem; opacity: .85; }
table.settings th { font: .86rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
table.settings, table.facts { table-layout: fixed; }
table.facts th:first-child { width: 52%; }
table.facts td { overflow-wrap: anywhere; }
table.settings th:first-child { width: 38%; }
table.settings th, table.settings td { overflow-wrap: anywhere; }
.samples { display: grid; grid-template-columns: repeat(8, 1fr); gap: .9rem;
  padding: 0; margin: .4rem 0 1rem; list-style: none; }
.samples img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #000;
  border-radius: 5px; image-rendering: pixelated; }
.samples .said { font-size: .84rem; line-height: 1.35; margin: .35rem 0 0; }
.samples .truth { color: var(--muted); }
h3 { font-size: .98rem; margin: .9rem 0 .3rem; font-weight: 620; }
.right { color: var(--good); } .wrong { color: var(--warn); }
details { margin: .5rem 0 .2rem; }
summary { cursor: pointer; color: var(--accent); font-size: .92rem; }
dl.glossary { display: grid; grid-template-columns: minmax(9rem, 14rem) 1fr; gap: .55rem 1.4rem; margin: 0; }
dl.glossary dt { font-weight: 620; }
dl.glossary dd { margin: 0; max-width: 44rem; }
footer { color: var(--muted); font-size: .85rem; margin-top: 1.4rem; }
@media screen and (max-width: 52rem) { section.half { grid-column: 1 / -1; } }
@media (max-width: 52rem) { .samples { grid-template-columns: repeat(4, 1fr); gap: .65rem; } }
@media (max-width: 34rem) {
  .page { padding: 1.3rem .8rem 2rem; }
  h1 { font-size: 1.35rem; }
  section { padding: 1rem .95rem .85rem; }
  .key { grid-template-columns: 1fr 1fr; gap: .55rem; }
  .key > div { padding: .65rem .75rem; }
  .key .value { font-size: 1.22rem; }
  table { font-size: .87rem; }
  th, td { padding-right: .6rem; }
  dl.glossary { grid-template-columns: 1fr; gap: .1rem; }
  dl.glossary dd { margin-bottom: .7rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  body { background: none; font-size: 10.5pt; }
  .page { max-width: none; padding: 0; }
  nav, details { display: none; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: .9rem 0 .2rem; }
  h2, h3, caption { break-after: avoid; }
  figure, tr, .samples li, .key > div, .notice { break-inside: avoid; }
  .key { grid-template-columns: repeat(3, 1fr); }
  .scroll, .pair .scroll { overflow: visible; max-height: none; }
  .notice, table.confusion td { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
)
