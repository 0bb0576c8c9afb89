// How long a tick takes to the table and to the screen: two figures in the head of the page, and on demand where the time goes.
import { element, setText } from "./page.js";
import * as words from "./words.js";

const STAGES = { feed: "Feed", kafka: "Kafka", spark: "Spark", postgres: "PostgreSQL", screen: "Screen" };
const WHAT = "Median and 99th percentile of the last minute, from the moment this pipeline first saw a tick. Ticks of one micro-batch are taken to be spread evenly.";

/** Makes the element; returns it, what shows a value of the trait `latency` in it, and what lets go of the page. */
export function makeLatency() {
  const root = element("details", "sp-latency");
  const summary = element("summary");
  summary.title = WHAT;
  const figures = element("span", "sp-latency-figures");
  const [table, screen] = ["table", "screen"].map((name) => {
    const pair = element("span", `sp-to-${name}`);
    const [half, most] = [element("strong"), element("span")];
    pair.append(element("span", "sp-latency-name", name === "table" ? "tick to table " : "to screen "), half, most);
    figures.append(pair);
    return { pair, half, most };
  });
  summary.append(figures, makeBar());
  const panel = element("div", "sp-latency-panel");
  const title = element("div", "sp-latency-title");
  const bar = makeBar();
  const grid = element("table");
  const head = element("tr");
  head.append(...["", "", "mean", "most"].map((name) => element("th", name && "sp-number", name)));
  const body = element("tbody");
  grid.append(element("thead"), body);
  grid.firstChild.append(head);
  panel.append(title, bar, grid, element("p", "sp-latency-note", WHAT));
  root.append(summary, panel);

  const show = (latency) => {
    root.hidden = !latency.table;
    if (root.hidden) return;
    fillPair(table, latency.table);
    fillPair(screen, latency.screen);
    const total = latency.parts.reduce((sum, part) => sum + Math.max(0, part.mean), 0);
    for (const each of [summary.lastChild, bar]) fillBar(each, latency.parts, total);
    const end = latency.parts.some((part) => part.stage === "screen") ? "screen" : "table";
    setText(title, `Where the time goes, from first sight to ${end}: ${words.took(total)} of the mean tick`);
    if (root.open) body.replaceChildren(...rowsOf(latency.parts));
  };
  let last = {};
  root.addEventListener("toggle", () => show(last));
  const leave = (event) => root.contains(event.target) || (root.open = false);
  document.addEventListener("click", leave);
  return { root, show: (latency) => show((last = latency)), stop: () => document.removeEventListener("click", leave) };
}

function fillPair({ pair, half, most }, { p50, p99 }) {
  pair.hidden = p50 === undefined;
  if (pair.hidden) return;
  setText(half, words.took(p50));
  setText(most, ` / ${words.took(p99)}`);
  [pair.dataset.p50, pair.dataset.p99] = [p50.toFixed(1), p99.toFixed(1)];
}

function makeBar() {
  const bar = element("span", "sp-latency-bar");
  bar.setAttribute("aria-hidden", "true"); // the table says the same
  return bar;
}

function fillBar(bar, parts, total) {
  while (bar.children.length < parts.length) bar.append(element("span"));
  while (bar.children.length > parts.length) bar.lastChild.remove();
  parts.forEach((part, i) => {
    const piece = bar.children[i];
    piece.dataset.stage = part.stage;
    piece.title = `${STAGES[part.stage]}, ${part.part}: ${words.took(part.mean)}`;
    piece.style.flexGrow = total > 0 ? Math.max(0, part.mean) / total : 0;
  });
}

/** A row a part; a stage is named at the first of its parts that stand together. */
function rowsOf(parts) {
  return parts.map((part, i) => {
    const row = element("tr");
    row.dataset.stage = part.stage;
    const stage = element("td", "sp-latency-stage");
    stage.append(element("span", "sp-latency-dot"), part.stage === parts[i - 1]?.stage ? "" : STAGES[part.stage]);
    row.append(stage, element("td", "", part.part), element("td", "sp-number", words.took(part.mean)), element("td", "sp-number", words.took(part.most)));
    return row;
  });
}
