// The board: every symbol with its price, change, volume and the age of what is known; of a live feed also its freshness in
// words, and the gaps of the feed. A click chooses a symbol.
import { element, keepDrawing, kernelClock, setText } from "./page.js";
import * as words from "./words.js";

const FRESH_MS = 15_000; // a guess; above the eight seconds between two polls of eight symbols
const FLASH_MS = 400;
const STALE_MS = 120_000; // a guess; nothing depends on it but the colour

const STATES = { LIVE: "live", DELAYED: "delayed", STALE: "stale", CLOSED: "closed", "NO DATA": "none" };
const SHOWN_GAPS = 3;

const COLUMNS = [
  ["Symbol", "sp-symbol"],
  ["Price", "sp-number"],
  ["Change", "sp-number"],
  ["Volume", "sp-number sp-volume"],
  ["Age", "sp-number sp-age"],
];

/** "up", "down" or "flat": what the sign on the page shows too. */
const direction = (change) => (change > 0 ? "up" : change < 0 ? "down" : "flat");
const ARROWS = { up: "▲", down: "▼", flat: "" };

function makeRow(choose) {
  const row = element("tr");
  const cells = COLUMNS.map(([, className]) => element("td", className));
  const button = element("button", "sp-choose");
  button.type = "button";
  const state = element("div", "sp-freshness");
  cells[0].append(button, state);
  const change = element("span", "sp-change");
  const percent = element("span", "sp-percent");
  cells[2].append(change, percent);
  row.append(...cells);
  row.addEventListener("click", () => choose(button.textContent));
  return { row, button, state, price: cells[1], change, percent, volume: cells[3], age: cells[4], shown: undefined };
}

/** Tints the price for a moment. Without fading: prices change several times a second, and a page that always fades is painted all the time. */
function flash(parts, is) {
  const { price, shown } = parts;
  if (shown === undefined || shown === is || is == null) return;
  clearTimeout(parts.timer);
  price.classList.toggle("sp-rose", is > shown);
  price.classList.toggle("sp-fell", is < shown);
  parts.timer = setTimeout(() => price.classList.remove("sp-rose", "sp-fell"), FLASH_MS);
}

function fill(parts, quote, now, selected) {
  const way = direction(quote.change);
  parts.row.dataset.direction = way;
  parts.row.dataset.symbol = quote.symbol;
  parts.row.setAttribute("aria-current", String(quote.symbol === selected));
  setText(parts.button, quote.symbol);
  setText(parts.price, words.price(quote.price));
  flash(parts, quote.price);
  parts.shown = quote.price;
  setText(parts.change, words.signed(quote.change));
  setText(parts.percent, quote.change_pct == null ? "" : `${ARROWS[way]} ${words.signed(quote.change_pct)}%`.trim());
  parts.change.parentElement.title = quote.change_since && `since the ${quote.change_since}`;
  setText(parts.volume, words.volume(quote.volume));
  const seen = quote.receipt_time ?? quote.updated_at;
  const old = seen == null ? null : now - seen;
  setText(parts.age, words.age(old));
  const guessed = old == null || old > STALE_MS ? "stale" : old > FRESH_MS ? "delayed" : "live";
  parts.age.dataset.freshness = STATES[quote.freshness] ?? guessed;
  parts.row.dataset.freshness = STATES[quote.freshness] ?? "";
  setText(parts.state, words.freshness(quote, now));
  parts.age.title = quote.event_time == null ? "" : `last tick ${words.full(quote.event_time)} New York`;
}

function render({ model, el }) {
  el.classList.add("sp-root", "sp-board");
  const table = element("table");
  table.append(element("caption", "sp-hidden", "Last price of every symbol"));
  const head = element("tr");
  for (const [name, className] of COLUMNS) {
    const cell = element("th", className, name);
    cell.scope = "col";
    head.append(cell);
  }
  const top = element("thead");
  top.append(head);
  const body = element("tbody");
  table.append(top, body);
  const empty = element("p", "sp-empty", "No prices yet.");
  const gaps = element("section", "sp-gaps");
  const gapList = element("ul");
  gaps.append(element("h2", "", "Gaps of the feed"), gapList);
  el.append(table, empty, gaps);

  const clock = kernelClock(model);
  const rows = new Map();
  const choose = (symbol) => {
    model.set("selected", symbol);
    model.save_changes();
  };

  const draw = () => {
    const quotes = model.get("rows");
    const now = clock.now();
    for (const quote of quotes) {
      if (!rows.has(quote.symbol)) rows.set(quote.symbol, makeRow(choose));
      fill(rows.get(quote.symbol), quote, now, model.get("selected"));
    }
    const wanted = quotes.map((quote) => rows.get(quote.symbol).row);
    if (wanted.length !== body.children.length || wanted.some((row, i) => row !== body.children[i])) body.replaceChildren(...wanted);
    empty.hidden = quotes.length > 0;
    const last = model.get("gaps").slice(-SHOWN_GAPS).reverse();
    gaps.hidden = last.length === 0;
    gapList.replaceChildren(...last.map((gap) => element("li", "", `${words.span(gap.started_at, gap.ended_at, now)}, ${gap.source}: ${gap.reason}`)));
    el.classList.toggle("sp-aged", model.get("aged"));
  };
  const stop = keepDrawing(model, ["rows", "gaps", "selected", "aged", "clock"], draw);
  return () => {
    stop();
    clock.stop();
  };
}

export default { render };
