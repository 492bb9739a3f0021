"""The look of the page, for light and dark screens, wide and narrow ones."""

STYLE = """
:root { color-scheme: light dark; --back: #f6f8fa; --card: #ffffff; --text: #24292f;
  --faint: #57606a; --line: #d8dee4; --right: 46, 160, 67; --wrong: 219, 84, 26; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --card: #161b22; --text: #d5dbe1;
  --faint: #9aa4af; --line: #3a424c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 16px; margin: 16px 0; }
p { margin: .3rem 0 .8rem; max-width: 75em; }
.about { color: var(--faint); overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(105px, 1fr)); gap: 8px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 8px 10px; color: var(--faint); font-size: .85rem; }
.card span { display: block; font-size: 1.25rem; color: var(--text); white-space: nowrap; }
.wide { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 8px; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { font-weight: 600; }
th[scope=row], tr > th:first-child { text-align: left; position: sticky; left: 0;
  background: var(--card); }
th[scope=row] { font-weight: 400; }
.right { background: color-mix(in srgb, rgb(var(--right)) calc(var(--share) * .6), transparent); }
.wrong { background: color-mix(in srgb, rgb(var(--wrong)) calc(var(--share) * .8), transparent); }
.beside { display: flex; flex-wrap: wrap; gap: 8px 40px; align-items: flex-start; }
.beside > .wide { max-width: 100%; }
.plot { display: block; width: 100%; min-width: 640px; height: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr));
  gap: 14px; }
figure { margin: 0; }
figure img { width: 100%; display: block; border-radius: 4px; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; padding-top: 4px; }
small { color: var(--faint); }
i { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .6em; border-radius: 2px; }
.annotated { background: #3cc85a; }
.detected { background: #ff8c00; }
@media (max-width: 640px) { main { padding: 8px; } section { padding: 10px; }
  .pictures { grid-template-columns: 1fr 1fr; gap: 8px; } }
"""
