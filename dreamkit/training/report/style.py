"""The style sheet and the script of a report: no library, no font, no network."""

CSS = """
:root { color-scheme: light dark; --paper: #fcfcfb; --ink: #1c1d1f; --soft: #63666b; --line: #e2e2de;
  --card: #ffffff; --accent: #2f6fb0; --warn: #b3401f; --best: #1d7a46; }
@media (prefers-color-scheme: dark) { :root { --paper: #141517; --ink: #e7e7e4; --soft: #9a9da3; --line: #303236;
  --card: #1c1d20; --accent: #7db4ec; --warn: #f08a62; --best: #6fd19a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.2rem; letter-spacing: -0.01em; margin: 3rem 0 .35rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
p, li { max-width: 68ch; }
.meta, .hint, figcaption, .cap { color: var(--soft); }
.meta, .hint { font-size: .9rem; margin: 0 0 .9rem; }
.notes { margin-top: 1.6rem; padding-left: 1.1rem; border-left: 3px solid var(--accent); }
.notes h3:first-child, .notes p:first-child { margin-top: 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
table { border-collapse: separate; border-spacing: 0; font-size: .87rem; font-variant-numeric: tabular-nums; }
.scroll > .sortable { min-width: 100%; }
th, td { padding: .5rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); z-index: 1; }
.text { text-align: left; }
thead th { font-weight: 600; vertical-align: bottom; white-space: normal; }
.fit { width: fit-content; max-width: 100%; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort] button::after { content: " \\2193"; color: var(--accent); }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
.best { font-weight: 650; color: var(--best); }
.warn { color: var(--warn); font-weight: 600; }
.dot { display: inline-block; width: .72em; height: .72em; border-radius: 50%; margin-right: .5em;
  border: 2px solid var(--dot); background: var(--dot); vertical-align: -.02em; }
.dot.hollow { background: none; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0; padding: 1rem; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
figure svg { display: block; width: 100%; max-width: 32rem; height: auto; margin: 0 auto; }
figcaption { font-size: .85rem; margin-bottom: .6rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .88rem; margin: 0 0 .9rem; padding: 0;
  list-style: none; }
.grid th, .grid td { border-bottom: 0; padding: .35rem .4rem; text-align: center; vertical-align: top; }
.grid th:first-child { text-align: left; font-weight: 500; white-space: normal; width: 9rem; min-width: 7rem;
  padding: .9rem .7rem; }
.grid thead th { font-weight: 600; border-bottom: 1px solid var(--line); vertical-align: bottom; }
.grid thead th > span { display: block; max-width: 14rem; white-space: normal; overflow-wrap: anywhere; }
.grid img { display: block; border-radius: 8px; margin: 0 auto; }
.asset { display: inline-block; vertical-align: top; margin: 0 .15rem .2rem; }
.cap { font-size: .78rem; line-height: 1.3; margin-top: .25rem; }
.failed { display: grid; place-items: center; border: 1px dashed var(--warn); border-radius: 8px; font-size: .8rem;
  margin: 0 auto; }
code { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.set { display: flex; flex-wrap: wrap; gap: .3rem .4rem; padding: 0; margin: .4rem 0 1.2rem; list-style: none; }
.set li { border: 1px solid var(--line); background: var(--card); border-radius: 6px; padding: 0 .5em; }
.set li.own { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--accent); }
@media (max-width: 40rem) {
  main { padding: 1.5rem .9rem 3rem; } h1 { font-size: 1.5rem; } h2 { margin-top: 2.2rem; }
  th, td { padding: .45rem .55rem; } figure { padding: .7rem; }
  .grid th:first-child { width: 5.4rem; min-width: 5.4rem; padding: .6rem .5rem; font-size: .82rem; }
  .sortable th:first-child, .sortable td:first-child {
    min-width: 7.5rem; max-width: 9rem; white-space: normal; overflow-wrap: anywhere; }
}
@media print { .scroll { overflow: visible; } }
"""

SCRIPT = """
document.querySelectorAll("table.sortable th button").forEach((button) => {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const column = [...head.parentNode.children].indexOf(head);
    const first = head.dataset.first || "descending";
    const other = first === "descending" ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    [...head.parentNode.children].forEach((cell) => cell.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
    });
    body.append(...rows);
  });
});
"""
