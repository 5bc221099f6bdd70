"use strict";
// Charts. `ast` interprets Vega's expressions, so that the page needs no eval.
const theme = JSON.parse(document.getElementById("theme").textContent);
for (const script of document.querySelectorAll("script.spec")) {
  const spec = JSON.parse(script.textContent);
  const options = {
    renderer: spec.datasets.table.length > 3000 ? "canvas" : "svg", // thousands of SVG nodes are slow
    ast: true, mode: "vega-lite", config: theme, downloadFileName: script.dataset.target,
    actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
  };
  const target = document.getElementById(script.dataset.target);
  vegaEmbed(target, spec, options).catch((error) => {
    target.textContent = "This chart failed: " + error.message;
    console.error(script.dataset.target, error);
  });
}

// Samples. Text enters by textContent alone: model text is never HTML.
function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function browser(root) {
  const { columns, objectives, rows } = JSON.parse(root.querySelector("script.samples").textContent);
  const at = Object.fromEntries(columns.map((name, i) => [name, i]));
  const score = (row, k) => row[columns.length + k];
  const outcome = (row, k) => row[columns.length + objectives.length + k];
  const form = root.querySelector("form"), cards = root.querySelector(".cards");
  const more = root.querySelector(".more"), count = root.querySelector(".count");
  const page = 25;
  let found = [], shown = 0;

  const fillSelect = (name, values) => {
    for (const value of new Set(values)) form.elements[name].append(new Option(value, value));
  };
  fillSelect("run", rows.map((row) => row[at.run]));
  fillSelect("source", rows.map((row) => row[at.source]));
  fillSelect("objective", objectives);

  function card(row) {
    const made = element("article", "card", "");
    const meta = element("div", "meta", "");
    meta.append(element("span", "", row[at.run]), element("span", "", row[at.source]));
    if (row[at.step] !== null) meta.append(element("span", "", "step " + row[at.step]));
    meta.append(element("span", "", row[at.example]));
    objectives.forEach((name, k) => {
      if (score(row, k) !== null) meta.append(element("span", "", `${name} ${score(row, k)} (${outcome(row, k)})`));
    });
    if (!row[at.ended]) meta.append(element("span", "", "cut at the longest length"));
    made.append(meta, element("p", "prompt", row[at.prompt]), element("p", "", row[at.completion]));
    return made;
  }

  function show() {
    cards.append(...found.slice(shown, shown + page).map(card));
    shown = Math.min(found.length, shown + page);
    count.textContent = `${found.length} of ${rows.length} completions; ${shown} shown`;
    more.hidden = shown === found.length;
  }

  function filter() {
    const field = (name) => form.elements[name].value;
    const bound = (name, otherwise) => (field(name) === "" ? otherwise : Number(field(name)));
    const words = field("text").toLowerCase().split(/\s+/).filter(Boolean);
    const k = objectives.indexOf(field("objective"));
    const [from, to] = [bound("from", -Infinity), bound("to", Infinity)];
    const [least, most] = [bound("least", -Infinity), bound("most", Infinity)];
    const scored = least > -Infinity || most < Infinity;
    const steps = from > -Infinity || to < Infinity;
    const within = (value) => value !== null && value >= least && value <= most;
    found = rows.filter((row) => {
      if (field("run") && row[at.run] !== field("run")) return false;
      if (field("source") && row[at.source] !== field("source")) return false;
      if (steps && (row[at.step] === null || row[at.step] < from || row[at.step] > to)) return false;
      if (k >= 0 && score(row, k) === null) return false;
      if (scored && !(k >= 0 ? within(score(row, k)) : objectives.some((_, j) => within(score(row, j))))) return false;
      const text = [row[at.prompt], row[at.completion], row[at.example]].join("\n").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    if (field("order")) {
      const sign = field("order") === "up" ? 1 : -1;
      const mean = (row) => {
        const values = objectives.map((_, j) => score(row, j)).filter((value) => value !== null);
        return values.length ? values.reduce((a, b) => a + b, 0) / values.length : -Infinity;
      };
      const key = k >= 0 ? (row) => score(row, k) : mean;
      found.sort((a, b) => sign * (key(a) - key(b)));
    }
    shown = 0;
    cards.replaceChildren();
    show();
  }

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", show);
  filter();
}
document.querySelectorAll(".browser").forEach(browser);
