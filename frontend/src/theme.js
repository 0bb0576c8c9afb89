// Light or dark, and the colours that a canvas cannot take from the style sheet.

const wish = window.matchMedia("(prefers-color-scheme: dark)");

/** True if the page is dark: JupyterLab says so on its body, elsewhere the browser's wish decides. */
export function isDark() {
  const lab = document.body.dataset.jpThemeLight;
  return lab === undefined ? wish.matches : lab === "false";
}

/** Calls `draw` whenever light becomes dark or dark light; returns what stops that. */
export function onThemeChange(draw) {
  const body = new MutationObserver(draw);
  body.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  wish.addEventListener("change", draw);
  return () => {
    body.disconnect();
    wish.removeEventListener("change", draw);
  };
}

// Blue and orange stay apart for every common kind of colour blindness, unlike green and red. Okabe and Ito's pair,
// moved in lightness for contrast on each ground.
const LIGHT = { up: "#0b6fb8", down: "#c8500a", vwap: "#6b7280", text: "#5b6472", grid: "#eef0f3", line: "#dfe3e8", cross: "#8b95a3", label: "#3d4653" };
const DARK = { up: "#4ea8e6", down: "#f0883e", vwap: "#a3adba", text: "#98a3b1", grid: "#1f262f", line: "#2c3540", cross: "#77828f", label: "#46515e" };

/** The chart's colours in force. */
export function palette() {
  return isDark() ? DARK : LIGHT;
}

/** The colour with this opacity, 0 to 1. */
export function faded(colour, opacity) {
  return colour + Math.round(opacity * 255).toString(16).padStart(2, "0");
}
