"""A model of a stock market that makes trades: arrays in, arrays out, and no clock, no pace, no message.

`simulated` calls it and makes ticks of what it returns. It is no forecast and fits no particular year; it has the
stylised facts that a stream of real trades has and uniform noise has not, each as simple as it can be:

- Trades come in clusters: a Hawkes process, made exactly, by its branching. Some trades come by themselves; every trade
  sets off a Poisson number of further ones in its symbol, after exponential delays.
  (Hawkes & Oakes, "A cluster process representation of a self-exciting process", 1974; Bacry, Mastromatteo & Muzy,
  "Hawkes processes in finance", 2015.)
- Trading is busier at the open and the close of a New York session, and prices move more then.
  (Wood, McInish & Ord, "An investigation of transactions data for NYSE stocks", 1985; Admati & Pfleiderer, 1988.)
- Returns have no memory, their size has: volatility clusters, tails are fat. GARCH(1,1) in steps of a second.
  (Cont, "Empirical properties of asset returns: stylized facts and statistical issues", 2001; Bollerslev, 1986.)
- Stocks move together: one market factor and a part of each stock's own. (Sharpe, 1963.)
- From trade to trade the price bounces between bid and ask, on a grid of cents. (Roll, "A simple implicit measure of
  the effective bid-ask spread", 1984.)
- About half of the trades are odd lots; round lots have a power-law tail. (O'Hara, Yao & Ye, "What's not there: odd lots
  and market data", 2014; Gopikrishnan et al., "Statistical properties of share volume traded", 2000.)
- A small share of the trades is delivered late, so event times do not come in order.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from pipeline_lib.records import MAX_PRICE
from pipeline_lib.sources.market_hours import session_at

# Of all trades, this share was set off by another one, after this many seconds on average. Guesses within what the
# literature finds (0.5 to 0.9); nothing depends on them.
BRANCHING = 0.6
MEAN_DELAY_SECONDS = 0.5

# A shock to volatility halves in about two minutes, so that a viewer can see calm and storm. The kurtosis is finite: 7.5.
GARCH_ALPHA, GARCH_BETA = 0.06, 0.934

# Volatility for a second, from one of 0.16 a year for the market and about 0.25 for a stock alone, of 252 sessions of 6.5 hours.
_SECONDS_A_YEAR = 252 * 6.5 * 3_600
MARKET_SIGMA = 0.16 / _SECONDS_A_YEAR**0.5
OWN_SIGMA = 0.25 / _SECONDS_A_YEAR**0.5

HALF_SPREAD = 0.5e-4  # of the price, and never less than the way to the next cent
ODD_LOT_SHARE = 0.45
ROUND_LOT_TAIL = 1.5  # P(lots > x) falls as x to the minus this
MAX_LOTS = 100

LATE_SHARE = 0.02
MAX_LATE_MS = 400

# About where these stood in 2025. A symbol that is not here gets a price from the seed and its name.
STARTING_PRICES = {
    "AAPL": 230.0,
    "MSFT": 430.0,
    "GOOGL": 175.0,
    "TSLA": 260.0,
    "AMZN": 200.0,
    "META": 580.0,
    "NVDA": 130.0,
    "NFLX": 780.0,
}


class Trades(NamedTuple):
    """Trades in the order of their delivery: arrays of one length. Times in epoch milliseconds; `symbol` is an index."""

    event_time: np.ndarray
    delivery_time: np.ndarray
    symbol: np.ndarray
    price: np.ndarray
    volume: np.ndarray

    def where(self, chosen: np.ndarray) -> Trades:
        """Return the trades that a mask or an array of places chooses."""
        return Trades(*(column[chosen] for column in self))

    def first(self, number: int) -> Trades:
        """Return the first so many trades, or all if there are fewer."""
        return Trades(*(column[:number] for column in self))

    def and_then(self, others: Trades) -> Trades:
        """Return these trades, and the others behind them."""
        return Trades(*(np.concatenate(pair) for pair in zip(self, others, strict=True)))


class Arrivals(NamedTuple):
    """When trades happen, in milliseconds since the model's start, and in which symbol."""

    when: np.ndarray
    symbol: np.ndarray


class MarketModel:
    """A market of these symbols from `start_ms` on, entirely determined by its arguments.

    `rate` is the mean number of trades a second, over all symbols, and over the busy and quiet hours of a session.
    """

    def __init__(self, symbols: tuple[str, ...], seed: int, start_ms: int, rate: float) -> None:
        self.now_ms = start_ms
        self._start_ms = start_ms
        self._rate = rate
        self._random = np.random.default_rng([seed, start_ms])
        # What a symbol is like depends on the seed and its name alone: adding another symbol does not change it.
        self._price, activity, self._beta, self._sigma = np.array([_character(symbol, seed) for symbol in symbols]).T
        self._share = np.cumsum(activity) / activity.sum()
        self._log_return = np.zeros(len(symbols))
        self._variance = np.ones(1 + len(symbols))  # the market's first, then each symbol's own; 1 is the long-run mean
        self._late = Trades(*(np.empty(0, dtype) for dtype in (np.int64, np.int64, np.intp, np.float64, np.float64)))
        # The market was open before we came to it: ten seconds of it, so that the first cluster is no rarer than the others.
        self._coming = self._cluster(Arrivals(np.empty(0), np.empty(0, np.intp)), -10_000.0, 0.0, 1.0)
        self._coming = Arrivals(*(column[self._coming.when >= 0] for column in self._coming))

    def advance(self, seconds: int) -> Trades:
        """Return the trades delivered in the next so many seconds, and stand at their end."""
        begin, end = self.now_ms - self._start_ms, self.now_ms - self._start_ms + 1_000 * seconds
        activity = activity_at(self.now_ms + 500 * seconds)
        paths = self._walk(seconds, activity)
        arrivals = self._cluster(self._coming, begin, end, activity)
        here = arrivals.when < end
        self._coming = Arrivals(*(column[~here] for column in arrivals))
        trades = self._late.and_then(self._trade(Arrivals(*(column[here] for column in arrivals)), begin, paths))
        self.now_ms += 1_000 * seconds
        delivered = trades.delivery_time < self.now_ms
        self._late = trades.where(~delivered)
        trades = trades.where(delivered)
        return trades.where(np.lexsort((trades.event_time, trades.delivery_time)))

    def skip_to(self, ms: int) -> None:
        """Go to a later time without the trades that would have happened until then."""
        self._coming = Arrivals(np.empty(0), np.empty(0, np.intp))
        self.now_ms = max(self.now_ms, ms)

    def _cluster(self, coming: Arrivals, begin: float, end: float, activity: float) -> Arrivals:
        """Return the trades that were coming, those that come by themselves in this time, and all that these set off."""
        random = self._random
        count = random.poisson(self._rate * (1 - BRANCHING) * activity * (end - begin) / 1_000)
        parents = Arrivals(random.uniform(begin, end, count), np.searchsorted(self._share, random.random(count)))
        generations = [coming, parents]
        while len(parents.when):
            children = random.poisson(BRANCHING, len(parents.when))
            delay = random.exponential(1_000 * MEAN_DELAY_SECONDS, children.sum())
            parents = Arrivals(np.repeat(parents.when, children) + delay, np.repeat(parents.symbol, children))
            generations.append(parents)
        return Arrivals(*(np.concatenate(columns) for columns in zip(*generations, strict=True)))

    def _walk(self, seconds: int, activity: float) -> np.ndarray:
        """Return the logarithm of each symbol's price over its starting price, at every second from now to the end."""
        normal = self._random.standard_normal((seconds, len(self._variance)))
        paths = np.empty((seconds + 1, len(self._log_return)))
        paths[0] = self._log_return
        for second in range(seconds):
            shock = np.sqrt(self._variance) * normal[second]
            self._variance = (1 - GARCH_ALPHA - GARCH_BETA) + GARCH_ALPHA * shock**2 + GARCH_BETA * self._variance
            step = self._beta * (MARKET_SIGMA * shock[0]) + self._sigma * shock[1:]
            paths[second + 1] = paths[second] + activity**0.5 * step
        self._log_return = paths[-1]
        return paths

    def _trade(self, arrivals: Arrivals, begin: int, paths: np.ndarray) -> Trades:
        """Return what is traded at these times, at which price, and when we hear of it."""
        random, (when, symbol) = self._random, arrivals
        count = len(when)
        second, part = np.divmod((when - begin) / 1_000, 1)
        # An arrival a hair before the end may be rounded onto it.
        row = np.minimum(second.astype(np.intp), len(paths) - 2)
        value = self._price[symbol] * np.exp(paths[row, symbol] * (1 - part) + paths[row + 1, symbol] * part)
        buys = random.random(count) < 0.5
        cents = np.where(buys, np.ceil(100 * value * (1 + HALF_SPREAD)), np.floor(100 * value * (1 - HALF_SPREAD)))
        odd = random.random(count) < ODD_LOT_SHARE
        size = random.random(count)
        lots = np.minimum(np.floor((1 - size) ** (-1 / ROUND_LOT_TAIL)), MAX_LOTS)
        event_time = self._start_ms + np.floor(when).astype(np.int64)
        late = np.where(random.random(count) < LATE_SHARE, random.integers(1, MAX_LATE_MS, count, endpoint=True), 0)
        return Trades(
            event_time=event_time,
            delivery_time=event_time + late,
            symbol=symbol,
            price=np.clip(cents, 1, 100 * MAX_PRICE) / 100,
            volume=np.where(odd, np.floor(1 + 99 * size**2), 100 * lots),
        )


def activity_at(ms: int) -> float:
    """Return how busy the market is: 1.8 at open and close, 0.6 at midday, 1 on average over a session; 1 outside of it."""
    session = session_at(ms)
    if not session.is_open:
        return 1.0
    from_noon = 2 * (ms - session.open_ms) / (session.close_ms - session.open_ms) - 1
    return 0.6 + 1.2 * from_noon**2


def _character(symbol: str, seed: int) -> tuple[float, float, float, float]:
    """Return a symbol's starting price, its activity beside others', its share in the market's moves, and its own volatility."""
    random = np.random.default_rng([seed, zlib.crc32(symbol.encode())])
    price = random.lognormal(4.3, 0.8)  # a median of 74, as the S&P 500's shares have it within a factor of two
    activity, beta, own = random.lognormal(0.0, 0.5), random.uniform(0.8, 1.4), random.uniform(0.7, 1.4)
    return STARTING_PRICES.get(symbol, price), activity, beta, own * OWN_SIGMA
