// The head of the dashboard: where the data come from, how each stage does and since when, and what is wrong, in words.
import { element, keepDrawing, kernelClock, setText } from "./page.js";
import { makeLatency } from "./latency.js";
import * as words from "./words.js";

const ALIVE_MS = 5_000; // how often the page tells the kernel that it is looked at
const SILENT_MS = 6_000; // several refreshes: a busy kernel is not a dead one

function makeStage() {
  const card = element("li", "sp-stage");
  const name = element("span", "sp-stage-name");
  const state = element("span", "sp-stage-state");
  const since = element("span", "sp-stage-since");
  const detail = element("span", "sp-stage-detail");
  const line = element("div", "sp-stage-line");
  line.append(element("span", "sp-dot"), name, state);
  card.append(line, detail, since);
  return { card, name, state, since, detail };
}

function fillStage(parts, stage, now) {
  parts.card.dataset.stage = stage.stage;
  parts.card.dataset.state = stage.state;
  setText(parts.name, stage.title);
  setText(parts.state, stage.state);
  setText(parts.since, stage.since == null ? "" : `since ${words.since(stage.since, now)}`);
  setText(parts.detail, stage.detail);
  parts.card.title = stage.detail;
}

/** Tells the kernel that somebody looks, now and every few seconds; a hidden page is silent. */
function tellAlive(model) {
  const tell = () => document.visibilityState === "visible" && model.send({ kind: "alive" });
  const timer = setInterval(tell, ALIVE_MS);
  document.addEventListener("visibilitychange", tell);
  tell();
  return () => {
    clearInterval(timer);
    document.removeEventListener("visibilitychange", tell);
  };
}

/** Runs `then` when what was set before this call has been painted. */
function afterPaint(then) {
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      then();
    };
    channel.port2.postMessage(null);
  });
}

/** Tells the kernel when the picture that `shown` ends is painted. A hidden page paints nothing, and says so when it is seen again. */
function tellDrawn(model, el) {
  const say = (seen) => {
    const { stamp, run, batch } = model.get("shown");
    if (stamp === undefined) return;
    [el.dataset.run, el.dataset.batch] = [run, batch];
    model.send({ kind: "drawn", stamp, seen });
  };
  const tell = () => document.visibilityState === "visible" && afterPaint(() => say(true));
  const see = () => document.visibilityState === "visible" && say(false);
  model.on("change:shown", tell);
  document.addEventListener("visibilitychange", see);
  see(); // it has been painted for some time, or for another page
  return () => {
    model.off("change:shown", tell);
    document.removeEventListener("visibilitychange", see);
  };
}

function render({ model, el }) {
  el.classList.add("sp-root", "sp-strip");
  const head = element("div", "sp-head");
  const title = element("div", "sp-title", "Stock pipeline");
  title.setAttribute("role", "heading");
  title.setAttribute("aria-level", "1");
  const time = element("div", "sp-clock");
  const latency = makeLatency();
  head.append(title, latency.root, time);
  const banner = element("div", "sp-banner");
  const bannerTitle = element("strong");
  const bannerText = element("span");
  banner.append(bannerTitle, bannerText);
  const notice = element("div", "sp-notice");
  notice.setAttribute("role", "status");
  const noticeWords = element("div");
  const noticeText = element("div", "sp-notice-text");
  const noticeDetail = element("div", "sp-notice-detail");
  noticeWords.append(noticeText, noticeDetail);
  const reload = element("button", "sp-reload", "Reload the page");
  reload.type = "button";
  reload.addEventListener("click", () => location.reload());
  notice.append(noticeWords, reload);
  const stages = element("ol", "sp-stages");
  el.append(head, banner, notice, stages);

  const clock = kernelClock(model);
  const cards = new Map();
  const draw = () => {
    const now = clock.now();
    setText(time, model.get("clock") ? `${words.clock(now)} New York` : "");
    const { kind, title: what, text } = model.get("banner");
    banner.dataset.kind = kind ?? "";
    banner.hidden = !what;
    setText(bannerTitle, what ?? "");
    setText(bannerText, text ?? "");
    latency.show(model.get("latency"));
    const silent = model.get("clock") && clock.silentFor() > SILENT_MS;
    const said = model.get("notice");
    const problem = silent ? `This page's kernel has not answered since ${words.clock(clock.heardAt())}: what you see is from then.` : (said.text ?? "");
    notice.hidden = !problem;
    notice.dataset.kind = silent ? "silent" : (said.kind ?? "");
    setText(noticeText, problem);
    setText(noticeDetail, silent ? "" : (said.detail ?? ""));
    reload.hidden = !silent || document.body.dataset.voila === undefined; // reloading JupyterLab would not help
    el.classList.toggle("sp-silent", Boolean(silent));
    // Without the kernel nothing on the page is known to be true any more.
    el.closest(".sp-dashboard")?.classList.toggle("sp-kernel-silent", Boolean(silent));
    const wanted = model.get("stages").map((stage) => {
      if (!cards.has(stage.stage)) cards.set(stage.stage, makeStage());
      fillStage(cards.get(stage.stage), stage, now);
      return cards.get(stage.stage).card;
    });
    if (wanted.length !== stages.children.length || wanted.some((card, i) => card !== stages.children[i])) stages.replaceChildren(...wanted);
  };
  const stopDrawing = keepDrawing(model, ["stages", "banner", "notice", "latency", "clock"], draw);
  const stopTelling = tellAlive(model);
  const stopTellingDrawn = tellDrawn(model, el);
  return () => {
    stopDrawing();
    stopTelling();
    stopTellingDrawn();
    latency.stop();
    clock.stop();
  };
}

export default { render };
