"""The page's style sheet. Colours have names, so that dark and paper only change their values."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --soft: #5b6470; --line: #d9dde3;
  --source: #2f6fde; --target: #0f8a6d; --frozen: #d9480f; --frozen-back: #fdebdf;
  --good: #0f7a4f; --bad: #b42318;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1c2026; --ink: #e7eaee; --soft: #9aa4b1; --line: #333a43;
    --source: #6ea2ff; --target: #4cc7a5; --frozen: #ff8a4c; --frozen-back: #3a2417;
    --good: #4cc78f; --bad: #ff7a6e;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; max-width: 48rem; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.badge { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; font-weight: 600;
  border: 1px solid currentColor; margin-bottom: .4rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.fault { border-left: 4px solid var(--bad); background: var(--card); padding: .6rem 1rem;
  margin-top: 1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem;
  margin-top: 1.2rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
.wide > * { min-width: 36rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
td { overflow-wrap: anywhere; }
td.n, th.n { text-align: right; white-space: nowrap; overflow-wrap: normal; }
tr.source td:first-child { border-left: 3px solid var(--source); padding-left: .6rem; }
tr.destination td:first-child { border-left: 3px solid var(--target); padding-left: .6rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .soft { fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .source { fill: var(--source); } svg .destination { fill: var(--target); }
svg .frozen { fill: var(--frozen-back); }
svg .edge { stroke: var(--frozen); stroke-width: 1.5; }
svg .area { fill: var(--source); opacity: .25; }
svg .curve { fill: none; stroke: var(--source); stroke-width: 1.5; }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
  margin: 0 .35rem 0 1rem; vertical-align: -.08rem; }
.key i:first-child { margin-left: 0; }
.key .source { background: var(--source); } .key .destination { background: var(--target); }
.key .frozen { background: var(--frozen-back); border: 1px solid var(--frozen); }
pre { overflow: auto; background: var(--card); border: 1px solid var(--line); padding: .8rem;
  border-radius: .5rem; font-size: 12px; max-height: 30rem; }
summary { cursor: pointer; color: var(--soft); }
@media print {
  :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #000; --soft: #444;
    --line: #bbb; --source: #2f6fde; --target: #0f8a6d; --frozen: #d9480f;
    --frozen-back: #fdebdf; --good: #0f7a4f; --bad: #b42318; }
  body { max-width: none; padding: 0; font-size: 11px; }
  .wide { overflow: visible; } .wide > * { min-width: 0; }
  section { break-inside: avoid; }
  details { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
