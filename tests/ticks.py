"""Strategies of hypothesis that make ticks, valid by the contract."""

from __future__ import annotations

from hypothesis import strategies as st

from pipeline_lib.records import (
    CONDITION_PATTERN,
    END,
    ID_PATTERN,
    MAX_CONDITIONS,
    MAX_PRICE,
    MAX_TIME,
    MAX_VOLUME,
    MIN_PRICE,
    MIN_TIME,
    MIN_VOLUME,
    REPEATS,
    SOURCES,
    SYMBOL_PATTERN,
    Tick,
)

_texts = {
    name: st.from_regex(pattern.replace(END, r"\Z"), alphabet=st.characters(max_codepoint=126, min_codepoint=32))
    for name, pattern in {"id": ID_PATTERN, "symbol": SYMBOL_PATTERN, "condition": CONDITION_PATTERN}.items()
}
_times = st.integers(MIN_TIME, MAX_TIME)
_numbers = st.none() | st.floats(-MAX_VOLUME, MAX_VOLUME)


def ticks(times: st.SearchStrategy[int] = _times) -> st.SearchStrategy[Tick]:
    """Return a strategy of ticks whose event times are from `times`."""
    return st.sampled_from(["trade", "quote"]).flatmap(
        lambda kind: st.builds(
            Tick,
            schema=st.just(1),
            id=_texts["id"],
            kind=st.just(kind),
            symbol=_texts["symbol"],
            price=st.floats(MIN_PRICE, MAX_PRICE),
            volume=st.just(0.0) | st.floats(MIN_VOLUME, MAX_VOLUME) if kind == "trade" else st.none(),
            event_time=times,
            receipt_time=_times,
            source=st.sampled_from(SOURCES),
            conditions=st.none() | st.lists(_texts["condition"], max_size=MAX_CONDITIONS if kind == "quote" else 3),
            repeat=st.none() | st.sampled_from(REPEATS),
            day_open=_numbers,
            day_high=_numbers,
            day_low=_numbers,
            previous_close=_numbers,
            change=_numbers,
            percent_change=_numbers,
        )
    )
