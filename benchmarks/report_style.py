"""The look of the benchmark page, on top of what all pages share."""

from yolact_deploy.page_style import PAGE_STYLE

STYLE = (
    PAGE_STYLE
    + """
:root { --s0: #2563c9; --s1: #c2570c; --s2: #1b7f4b; --s3: #8b3fb5; --s4: #b3261e;
    --s5: #0f7f8f; --s6: #5c6570; --on: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --s0: #7fb0ff; --s1: #f5a25d; --s2: #6fd3a0; --s3: #cf9bf0; --s4: #ff8a80;
    --s5: #5fd0de; --s6: #aab2bd; --on: #14161a; }
}
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px; overflow-x: auto; }
.chart svg { display: block; width: 100%; height: auto; min-width: 720px; }
.charts .chart svg { min-width: 290px; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
svg text { fill: var(--soft); font-size: 12px; }
svg .name { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg .on { fill: var(--on); }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--line); }
svg .mark { stroke: var(--ink); stroke-dasharray: 2 2; }
svg .curve { fill: none; stroke-width: 2; }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); }
.s3 { fill: var(--s3); } .s4 { fill: var(--s4); } .s5 { fill: var(--s5); }
.s6 { fill: var(--s6); }
.l0 { stroke: var(--s0); } .l1 { stroke: var(--s1); } .l2 { stroke: var(--s2); }
.l3 { stroke: var(--s3); } .l4 { stroke: var(--s4); } .l5 { stroke: var(--s5); }
.l6 { stroke: var(--s6); }
td.words, thead th.words { white-space: normal; text-align: left; min-width: 220px; }
.scroll + .chart, .chart + .scroll, .charts + .scroll { margin-top: 16px; }
@media (max-width: 720px) { .charts { grid-template-columns: 1fr; } .chart { padding: 10px; } }
@media print { .chart { break-inside: avoid; } }
"""
)
