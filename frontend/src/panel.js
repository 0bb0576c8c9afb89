// The panel of notebook 06: a row a stage with its state and a button that kills it, the counts, and what verify says.
import { element, keepDrawing, kernelClock, setText } from "./page.js";
import * as words from "./words.js";

const COUNTS = { accepted: "ticks accepted", in_topic: "messages in the topic", consumed: "messages consumed", bars: "bars" };

function makeRow(model, stage) {
  const row = element("tr", "sp-fault-row");
  const name = element("th", "sp-fault-name");
  name.scope = "row";
  const title = element("span");
  name.append(element("span", "sp-dot"), title);
  const [state, detail, seen, returns, action] = ["state", "detail", "seen", "returns", "action"].map((part) => element("td", `sp-fault-${part}`));
  const button = element("button", "sp-kill", "kill -9");
  button.type = "button";
  button.addEventListener("click", () => model.send({ kind: "kill", stage }));
  const why = element("span", "sp-fault-why");
  action.append(button, why);
  row.append(name, state, detail, seen, returns, action);
  return { row, title, state, detail, seen, returns, button, why };
}

function fillRow(parts, found, now, stopped) {
  parts.row.dataset.stage = found.stage;
  parts.row.dataset.state = found.state;
  setText(parts.title, found.title);
  setText(parts.state, `${found.state} since ${words.since(found.since, now)}`);
  setText(parts.detail, found.detail);
  setText(parts.seen, found.seen == null ? "none yet" : words.age(now - found.seen) === "now" ? "now" : `${words.age(now - found.seen)} ago`);
  setText(parts.returns, `${found.returns}×`);
  parts.button.hidden = Boolean(found.spared);
  parts.button.disabled = stopped || found.state === "down" || found.state === "stopped";
  parts.button.setAttribute("aria-label", `kill -9 ${found.title}`);
  setText(parts.why, found.spared);
}

function render({ model, el }) {
  el.classList.add("sp-root", "sp-faults");
  const counts = element("div", "sp-counts");
  const numbers = Object.fromEntries(
    Object.entries(COUNTS).map(([name, label]) => {
      const [pair, number] = [element("div"), element("div", "sp-count")];
      number.dataset.count = name;
      pair.append(element("div", "sp-count-name", label), number);
      counts.append(pair);
      return [name, number];
    }),
  );
  const table = element("table");
  const head = element("tr");
  head.append(...["stage", "state (New York time)", "", "last sign of life", "came back", ""].map((text) => element("th", "", text)));
  const body = element("tbody");
  table.append(element("thead"), body);
  table.firstChild.append(head);
  const foot = element("div", "sp-fault-foot");
  const verify = element("button", "sp-verify", "verify");
  verify.type = "button";
  verify.addEventListener("click", () => model.send({ kind: "verify" }));
  const verdict = element("span", "sp-verdict");
  verdict.setAttribute("role", "status");
  const detail = element("span", "sp-verdict-detail");
  foot.append(verify, verdict, detail);
  const notice = element("div", "sp-notice");
  notice.setAttribute("role", "status");
  el.append(counts, notice, table, foot);

  const clock = kernelClock(model);
  const rows = new Map();
  const draw = () => {
    const [stopped, fault] = [model.get("stopped"), model.get("fault")];
    const now = stopped ? model.get("clock") : clock.now();
    for (const [name, number] of Object.entries(numbers)) setText(number, (model.get("counts")[name] ?? 0).toLocaleString("en-US"));
    const wanted = model.get("rows").map((found) => {
      if (!rows.has(found.stage)) rows.set(found.stage, makeRow(model, found.stage));
      fillRow(rows.get(found.stage), found, now, stopped);
      return rows.get(found.stage).row;
    });
    if (wanted.length !== body.children.length) body.replaceChildren(...wanted);
    const said = model.get("verdict");
    verify.disabled = stopped || said.kind === "busy";
    verdict.dataset.kind = said.kind ?? "";
    setText(verdict, said.text ?? "");
    setText(detail, said.detail ?? "");
    const problem = fault || (stopped ? `Stopped at ${words.clock(now)} New York: what you see is from then.` : "");
    notice.hidden = !problem;
    notice.dataset.kind = fault ? "fault" : "stopped";
    setText(notice, problem);
    el.classList.toggle("sp-stopped", stopped);
  };
  const stopDrawing = keepDrawing(model, ["rows", "counts", "fault", "verdict", "stopped", "clock"], draw);
  return () => {
    stopDrawing();
    clock.stop();
  };
}

export default { render };
