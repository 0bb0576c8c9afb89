// The chart of one symbol: candles, volume and VWAP, by lightweight-charts.
//
// `snapshot` holds all bars of a symbol and width, `tail` those that differ from it by now; the two together are always
// the whole picture, so that a page that opens late, or missed an update, draws the same.
import { CandlestickSeries, createChart, HistogramSeries, LineSeries, LineStyle, TickMarkType } from "lightweight-charts";
import { element, setText } from "./page.js";
import { faded, onThemeChange, palette } from "./theme.js";
import * as words from "./words.js";

// The library puts a day's mark where the day changes in UTC. Times are handed to it five hours early, so that this is
// midnight in New York (one o'clock in summer, when nothing trades); labels take the five hours off again.
const SHIFT = 5 * 3600;
const utc = (time) => (time + SHIFT) * 1000;

const LABELS = {
  [TickMarkType.Year]: words.year,
  [TickMarkType.Month]: words.month,
  [TickMarkType.DayOfMonth]: words.day,
  [TickMarkType.Time]: words.shortClock,
  [TickMarkType.TimeWithSeconds]: words.clock,
};

/** The bars of snapshot and tail by time, in order of time. A bar is [start ms, open, high, low, close, volume, vwap, final]. */
function merged(snapshot, tail) {
  const bars = new Map(snapshot.bars.map((bar) => [bar[0], bar]));
  if (tail.symbol === snapshot.symbol && tail.width === snapshot.width) for (const bar of tail.bars) bars.set(bar[0], bar);
  return new Map([...bars].sort((a, b) => a[0] - b[0]));
}

function candle([start, open, high, low, close, , , final], colours) {
  const colour = faded(close >= open ? colours.up : colours.down, final ? 1 : 0.5);
  return { time: start / 1000 - SHIFT, open, high, low, close, color: colour, borderColor: colour, wickColor: colour };
}

function histogram([start, open, , , close, volume, , final], colours) {
  return { time: start / 1000 - SHIFT, value: volume ?? 0, color: faded(close >= open ? colours.up : colours.down, final ? 0.38 : 0.2) };
}

function line([start, , , , , , vwap]) {
  const time = start / 1000 - SHIFT;
  return vwap == null ? { time } : { time, value: vwap };
}

function options(colours) {
  return {
    autoSize: true,
    layout: { background: { color: "transparent" }, textColor: colours.text, fontSize: 12, fontFamily: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif" },
    grid: { vertLines: { color: colours.grid }, horzLines: { color: colours.grid } },
    crosshair: {
      mode: 0,
      vertLine: { color: colours.cross, labelBackgroundColor: colours.label },
      horzLine: { color: colours.cross, labelBackgroundColor: colours.label },
    },
    rightPriceScale: { borderVisible: false, scaleMargins: { top: 0.06, bottom: 0.26 } },
    timeScale: {
      borderColor: colours.line,
      timeVisible: true,
      secondsVisible: true,
      rightOffset: 4,
      minBarSpacing: 1,
      tickMarkFormatter: (time, type) => LABELS[type](utc(time)),
    },
    localization: { timeFormatter: (time) => `${words.full(utc(time))} New York`, priceFormatter: words.price },
  };
}

function addSeries(chart) {
  const volumes = chart.addSeries(HistogramSeries, { priceScaleId: "volume", priceFormat: { type: "volume" }, lastValueVisible: false, priceLineVisible: false });
  volumes.priceScale().applyOptions({ scaleMargins: { top: 0.8, bottom: 0 } });
  const candles = chart.addSeries(CandlestickSeries, { priceLineStyle: LineStyle.Dotted });
  const vwap = chart.addSeries(LineSeries, { lineWidth: 1, lastValueVisible: false, priceLineVisible: false, crosshairMarkerVisible: false });
  return { candles, volumes, vwap };
}

/** The line above the chart: symbol, width and the values of one bar. Returns what shows a bar. */
function addLegend(root) {
  const legend = element("div", "sp-legend");
  const symbol = element("span", "sp-legend-symbol");
  const width = element("span", "sp-legend-width");
  const time = element("span", "sp-legend-time");
  const values = element("div", "sp-legend-values");
  const fields = ["Open", "High", "Low", "Close", "VWAP", "Volume"].map((name) => {
    const pair = element("span", name === "VWAP" ? "sp-is-vwap" : "");
    const value = element("span");
    pair.append(element("span", "sp-legend-name", name), value);
    values.append(pair);
    return value;
  });
  legend.append(symbol, width, time, values);
  root.append(legend);
  return (snapshot, bar) => {
    setText(symbol, snapshot.symbol ?? "");
    setText(width, snapshot.symbol ? snapshot.label : "");
    setText(time, bar ? words.full(bar[0]) + (bar[7] ? "" : " · not finished") : "");
    const [, open, high, low, close, volume, vwap] = bar ?? [];
    [open, high, low, close, vwap].forEach((value, i) => setText(fields[i], words.price(value)));
    setText(fields[5], words.volume(volume));
  };
}

function render({ model, el }) {
  el.classList.add("sp-root", "sp-chart");
  const showBar = addLegend(el);
  const canvas = element("div", "sp-canvas");
  const message = element("div", "sp-chart-message");
  canvas.append(message);
  el.append(canvas);

  let colours = palette();
  const chart = createChart(canvas, options(colours));
  const series = addSeries(chart);
  let drawn = new Map(); // what the library holds, by time
  let drawnName = null;
  let wide = false; // false until the page has given the chart its first width
  let pointed = null; // the time under the crosshair

  const applyTheme = () => {
    colours = palette();
    chart.applyOptions(options(colours));
    series.candles.applyOptions({ upColor: colours.up, downColor: colours.down });
    series.vwap.applyOptions({ color: colours.vwap });
    drawAll();
  };

  function setAll() {
    const bars = [...drawn.values()];
    series.candles.setData(bars.map((bar) => candle(bar, colours)));
    series.volumes.setData(bars.map((bar) => histogram(bar, colours)));
    series.vwap.setData(bars.map(line));
  }

  /** Draws all bars anew and keeps the view where it was, measured from the bar that was last before. */
  function drawAll(before = [...drawn.keys()]) {
    const range = chart.timeScale().getVisibleLogicalRange();
    setAll();
    if (!range || !wide) return;
    const place = [...drawn.keys()].indexOf(before.at(-1));
    const moved = place < 0 ? drawn.size - before.length : place - (before.length - 1);
    chart.timeScale().setVisibleLogicalRange({ from: range.from + moved, to: range.to + moved });
  }

  function fit() {
    const count = drawn.size;
    // All bars if they have room, else the latest of them: candles below six pixels cannot be read.
    const room = Math.max(20, Math.floor(canvas.clientWidth / 8));
    if (count <= room) chart.timeScale().fitContent();
    else chart.timeScale().setVisibleLogicalRange({ from: count - room, to: count + 3 });
  }

  function updateOne(bar, last) {
    const historical = last !== undefined && bar[0] < last;
    series.candles.update(candle(bar, colours), historical);
    series.volumes.update(histogram(bar, colours), historical);
    series.vwap.update(line(bar), historical);
  }

  function draw() {
    const snapshot = model.get("snapshot");
    if (!snapshot.symbol) return showLegend();
    const bars = merged(snapshot, model.get("tail"));
    const name = `${snapshot.symbol} ${snapshot.width}`;
    const times = [...drawn.keys()];
    const last = times.at(-1);
    const isOther = name !== drawnName;
    // A bar between two drawn ones, which a late tick can open, has no place that `update` could put it in.
    const isInserted = last !== undefined && [...bars.keys()].some((time) => time < last && !drawn.has(time));
    const isLess = times.some((time) => !bars.has(time));
    const changed = [...bars.values()].filter((bar) => String(drawn.get(bar[0])) !== String(bar));
    drawn = bars;
    if (isOther) {
      drawnName = name;
      setAll();
      chart.applyOptions({ timeScale: { secondsVisible: snapshot.seconds < 60 } });
      fit();
    } else if (isInserted || isLess) drawAll(times);
    else changed.forEach((bar) => updateOne(bar, last));
    el.dataset.symbol = snapshot.symbol;
    el.dataset.width = snapshot.width;
    el.dataset.bars = drawn.size;
    el.dataset.close = [...drawn.values()].at(-1)?.[4] ?? "";
    showLegend();
  }

  function showLegend() {
    showBar(model.get("snapshot"), (pointed !== null && drawn.get(pointed)) || [...drawn.values()].at(-1));
    setText(message, model.get("message"));
    el.classList.toggle("sp-aged", model.get("aged"));
  }

  chart.subscribeCrosshairMove((event) => {
    pointed = event.time === undefined ? null : utc(event.time);
    showLegend();
  });
  chart.timeScale().subscribeVisibleTimeRangeChange((range) => {
    el.dataset.from = range ? utc(range.from) : "";
    el.dataset.to = range ? utc(range.to) : "";
  });
  // There is no width before the page shows the widget, so what was fitted till then fitted nothing.
  const sizes = new ResizeObserver(() => {
    if (!wide && canvas.clientWidth > 0) {
      wide = true;
      requestAnimationFrame(fit);
    }
  });
  sizes.observe(canvas);

  const forget = onThemeChange(applyTheme);
  applyTheme();
  draw();
  model.on("change:snapshot change:tail", draw);
  model.on("change:message change:aged", showLegend);
  return () => {
    forget();
    sizes.disconnect();
    model.off("change:snapshot change:tail", draw);
    model.off("change:message change:aged", showLegend);
    chart.remove();
  };
}

export default { render };
