"""The look of the comparison page, on top of what all pages share."""

from yolact_deploy.page_style import PAGE_STYLE

STYLE = (
    PAGE_STYLE
    + """
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
header .pair { margin-top: 24px; }
.letter {
  flex: none; display: inline-grid; place-items: center; width: 22px; height: 22px; border-radius: 6px;
  font-size: 13px; font-weight: 700; color: var(--paper);
}
.side-a .letter { background: var(--a); }
.side-b .letter { background: var(--b); }
table td.path { text-align: right; }
.bars { list-style: none; margin: 0; padding: 0; max-width: 640px; }
.bars li { display: grid; grid-template-columns: 104px 1fr 48px; gap: 12px; align-items: center; font-size: 14px; }
.bars .band { color: var(--soft); }
.bars .bar { background: var(--track); border-radius: 4px; height: 10px; overflow: hidden; }
.bars i { display: block; height: 100%; background: var(--a); border-radius: 4px; }
.bars .count { font-variant-numeric: tabular-nums; }
.lead-in { margin: -8px 0 16px; }
.example { margin: 0 0 36px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 20px; margin-bottom: 8px; }
figcaption .path { font-weight: 600; }
.panel img { display: block; width: 100%; height: auto; border-radius: 8px; background: var(--track); }
.panel p { display: flex; align-items: baseline; flex-wrap: wrap; gap: 2px 8px; margin-top: 6px; font-size: 14px; }
.panel .letter { width: 18px; height: 18px; font-size: 11px; border-radius: 5px; align-self: center; }
.lone { color: var(--worse); overflow-wrap: anywhere; }
@media (max-width: 720px) {
  header .pair { grid-template-columns: 1fr; gap: 10px; }
  .example .pair { gap: 8px; }
}
@media print { .example { break-inside: avoid; } }
"""
)
