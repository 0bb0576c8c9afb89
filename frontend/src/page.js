// What every widget needs of the page: elements, the kernel's clock, a tick a second.

/** An element of this class holding this text. Text is set as text: nothing that was loaded is read as HTML. */
export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Sets the text only if it differs, so that a selection on the page survives. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The kernel's clock, carried on by the browser's own: ages are right on a machine whose clock is wrong, and grow when the kernel is silent. */
export function kernelClock(model) {
  let ahead = 0;
  let heard = Date.now();
  let shown = heard;
  const set = () => {
    const sent = model.get("clock");
    if (sent) {
      heard = Date.now();
      ahead = sent - heard;
    }
  };
  // The kernel may rest while the page is hidden: then its silence counts from the moment the page is seen again.
  const see = () => (shown = Date.now());
  model.on("change:clock", set);
  document.addEventListener("visibilitychange", see);
  set();
  return {
    now: () => Date.now() + ahead,
    heardAt: () => heard + ahead,
    silentFor: () => Date.now() - Math.max(heard, shown),
    stop: () => {
      model.off("change:clock", set);
      document.removeEventListener("visibilitychange", see);
    },
  };
}

/** Calls `draw` now, when one of the traits changes, and once a second while the page is seen; returns what stops that. */
export function keepDrawing(model, traits, draw) {
  const names = traits.map((trait) => `change:${trait}`).join(" ");
  const tick = () => document.visibilityState === "visible" && draw();
  const timer = setInterval(tick, 1000);
  model.on(names, draw);
  document.addEventListener("visibilitychange", tick);
  draw();
  return () => {
    clearInterval(timer);
    model.off(names, draw);
    document.removeEventListener("visibilitychange", tick);
  };
}
