"""Style and script of the HTML report."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --line: #8886; --good: #1a7f37; --bad: #cf222e; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.4em; } h2 { font-size: 1.2em; margin-top: 2em; } h3 { font-size: 1.05em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4em; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th.text, td.text { text-align: left; }
li.warning { color: var(--bad); }
svg { max-width: 100%; height: auto; display: block; margin: 1em 0; }
svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
.filters { display: flex; flex-wrap: wrap; gap: 1em; align-items: center; margin: 1em 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 1em; }
article { display: flex; gap: 1em; border: 1px solid var(--line); border-radius: 6px; padding: .8em; }
article[hidden] { display: none; }
article img, .missing { width: 160px; height: 160px; object-fit: contain; flex: none; background: #8882; }
.missing { display: grid; place-items: center; font-size: .85em; }
article p { margin: .1em 0 .4em; overflow-wrap: anywhere; } dl { margin: 0; }
dt { font-size: .85em; opacity: .75; } dd { margin: 0 0 .5em; overflow-wrap: anywhere; }
.tag { font-weight: 600; } .tag.better { color: var(--good); } .tag.worse { color: var(--bad); }
.truth { font-size: .85em; opacity: .75; }
mark { background: #ffb3b3; color: #5b0000; padding: 0 .15em; border-radius: 3px; }
"""

SCRIPT = """
for (const form of document.querySelectorAll("form.filters")) {
  const cards = [...form.nextElementSibling.children];
  const update = () => {
    const wanted = {};
    for (const field of form.querySelectorAll("[data-filter]")) wanted[field.dataset.filter] = field.value;
    const text = wanted.text.toLowerCase();
    let shown = 0;
    for (const card of cards) {
      card.hidden = (wanted.run && card.dataset.run !== wanted.run)
        || (wanted.change && card.dataset.change !== wanted.change)
        || (text && !card.textContent.toLowerCase().includes(text));
      shown += !card.hidden;
    }
    form.querySelector("output").textContent = `${shown} of ${cards.length} shown`;
  };
  form.addEventListener("input", update); // while text is typed
  form.addEventListener("change", update); // some browsers tell of a choice by this alone
  update();
}
"""
