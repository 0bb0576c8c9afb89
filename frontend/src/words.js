// Numbers and times as a person reads them. Times are New York's, where these symbols trade.

const ZONE = "America/New_York";
const format = (options) => new Intl.DateTimeFormat("en-US", { timeZone: ZONE, hourCycle: "h23", ...options });
const CLOCK = format({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
const SHORT = format({ hour: "2-digit", minute: "2-digit" });
const DAY = format({ month: "short", day: "numeric" });
const MONTH = format({ month: "short", year: "numeric" });
const WEEKDAY = format({ weekday: "short" });
const YEAR = format({ year: "numeric" });
const FULL = format({ month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const clock = (ms) => CLOCK.format(ms);
export const shortClock = (ms) => SHORT.format(ms);
export const day = (ms) => DAY.format(ms);
export const month = (ms) => MONTH.format(ms);
export const year = (ms) => YEAR.format(ms);
export const full = (ms) => FULL.format(ms);

/** "14:03:05" of today, "Mar 4, 14:03:05" of another day. */
export const since = (ms, now) => (day(ms) === day(now) ? clock(ms) : full(ms));

/** "16:00" of today, "Fri 16:00" of another day of these, "Mar 4, 16:00" of one longer ago. */
const moment = (ms, now) => (day(ms) === day(now) ? shortClock(ms) : Math.abs(now - ms) < 6 * 86_400_000 ? weekTime(ms) : `${day(ms)}, ${shortClock(ms)}`);
const weekTime = (ms) => `${WEEKDAY.format(ms)} ${shortClock(ms)}`;

/** A state and since when: "CLOSED since 16:00 New York, opens Mon 09:30", "STALE since 14:03:05". Nothing of no state. */
export function freshness({ freshness: state, fresh_since: began, opens_at: opens }, now) {
  if (!state) return "";
  if (began == null) return state;
  if (state !== "CLOSED") return `${state} since ${since(began, now)}`;
  return `CLOSED since ${moment(began, now)} New York${opens == null ? "" : `, opens ${opens - now < 6 * 86_400_000 ? weekTime(opens) : moment(opens, now)}`}`;
}

/** A span of time: "14:03:05 to 14:03:42", "since 14:03:05" of one that lasts. */
export const span = (from, to, now) => (to == null ? `since ${since(from, now)}` : `${since(from, now)} to ${since(to, now)}`);

export const NOTHING = "–";

/** A price with two decimals, more below one: 187.20, 0.0431. */
export function price(value) {
  if (value == null) return NOTHING;
  const digits = Math.abs(value) < 1 && value !== 0 ? 4 : 2;
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A change with its sign, a true minus: +0.42, −1.07. */
export function signed(value, digits = 2) {
  if (value == null) return NOTHING;
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "" : value > 0 ? "+" : "−") + text;
}

/** A volume in few figures: 940, 12.4K, 3.07M. */
export function volume(value) {
  return value == null ? NOTHING : new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
}

/** An age in one unit: "now", "4 s", "12 min", "3 h", "2 d". */
export function age(ms) {
  if (ms == null || Number.isNaN(ms)) return NOTHING;
  const seconds = Math.floor(ms / 1000);
  if (seconds < 2) return "now";
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

/** How long something took: "8 ms", "1,240 ms", "12.4 s". */
export const took = (ms) => (Math.abs(ms) < 10_000 ? `${Math.round(ms).toLocaleString("en-US")} ms` : `${(ms / 1000).toFixed(1)} s`);
