"""The page's style sheet: light and dark by the reader's preference, and print."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1c1e21; --soft: #5b6066; --line: #d9dce0; --panel: #f5f6f8;
  --accent: #005ea8; --good: #17693f; --bad: #a32018; --bad-paper: #fdf0ee;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #171717; --ink: #e8eaed; --soft: #a3a9b1; --line: #3a3d42; --panel: #202225;
    --accent: #66b3f0; --good: #5fc98f; --bad: #ff8f83; --bad-paper: #3a1d1a;
  }
  figure img { filter: invert(0.91) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 84rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.15rem; margin: 0; color: var(--soft); font-weight: 600; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 0.6rem; padding-top: 0.8rem;
     border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.2rem; }
a { color: var(--accent); }
.headline { font-size: 1.5rem; line-height: 1.35; margin: 0.4rem 0 1rem; max-width: 56rem;
            text-wrap: pretty; }
.warning { border-left: 5px solid var(--bad); background: var(--bad-paper);
           padding: 0.7rem 1rem; margin: 0.8rem 0 1.2rem; }
.warning p { margin: 0.2rem 0; }
.warning strong { color: var(--bad); margin-right: 0.4em; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
           gap: 0.6rem; margin: 0; }
dl.facts div { background: var(--panel); border-radius: 6px; padding: 0.55rem 0.8rem; }
dl.facts dt { font-size: 0.8rem; color: var(--soft); }
dl.facts dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; padding: 0; }
p { max-width: 46rem; margin: 0.5rem 0; }
.soft, figcaption, caption { color: var(--soft); font-size: 0.88rem; }
figure { margin: 1rem 0 1.6rem; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: 0.4rem; max-width: 46rem; }
.scroll { overflow-x: auto; margin: 0.8rem 0 1.2rem; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: 0.88rem; }
caption { text-align: left; padding-bottom: 0.35rem; }
th, td { text-align: left; padding: 0.28rem 0.75rem 0.28rem 0; vertical-align: top;
         border-bottom: 1px solid var(--line); }
tbody th { font-weight: 600; max-width: 18rem; }
th, td { overflow-wrap: break-word; }
td { max-width: 26rem; }
thead th { font-weight: 600; color: var(--soft); border-bottom-width: 2px; white-space: nowrap;
           vertical-align: bottom; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.n, th.n { padding-left: 0.3rem; }
code { font: 0.86em ui-monospace, "DejaVu Sans Mono", monospace; white-space: nowrap; }
.word { white-space: nowrap; }
.steps { display: inline-block; width: 18.5rem; }
small { display: block; color: var(--soft); font-size: 0.85em; }
code[title] { cursor: help; }
td code { margin-right: 0.5em; }
details { margin: 0.8rem 0; }
summary { cursor: pointer; color: var(--accent); }
footer { margin-top: 3rem; }
@page wide { size: landscape; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  figure, dl.facts div, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding-right: 0.4rem; }
  .steps { width: 15rem; }
  .wide { page: wide; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
