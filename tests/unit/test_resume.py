"""A tape resumed: what of it is in the topic is found from the topic's end, against a model of what was published."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import accumulate

import pytest
from runs import tick

from pipeline_lib.records import Message, Tick, encode_tick
from pipeline_lib.sources.resume import Span, TopicSearch

BOUND = 20
SYMBOLS = ("A", "B", "C", "D", "E")


def home(symbol: str) -> int:
    return SYMBOLS.index(symbol) % 4


class Topic:
    """Four partitions, with a count of what is read of them."""

    def __init__(self) -> None:
        self.log: dict[int, list[Tick]] = {number: [] for number in range(4)}
        self.start = dict.fromkeys(self.log, 0)
        self.messages_read = 0

    def append(self, ticks: Iterable[Tick]) -> None:
        for each in ticks:
            self.log[home(each.symbol)].append(each)

    def read(self, spans: dict[int, Span]) -> Iterable[Message]:
        for number, span in spans.items():
            assert self.start[number] <= span.start < span.end <= len(self.log[number])
            for offset in range(span.start, span.end):
                self.messages_read += 1
                yield Message(number, offset, 0, b"", encode_tick(self.log[number][offset]))

    def search(self, tape: list[Tick]) -> TopicSearch:
        spans = {number: Span(self.start[number], len(log)) for number, log in self.log.items()}
        search = TopicSearch(tape, home, spans, bound=BOUND)
        while wanted := search.wanted():
            search.take(self.read(wanted))
        return search


def tape_of(dice: random.Random, length: int, first: int = 0) -> list[Tick]:
    return [tick(number, symbol=dice.choice(SYMBOLS)) for number in range(first, first + length)]


def others(dice: random.Random, count: int) -> list[Tick]:
    """Ticks that are not on the tape."""
    return [tick(dice.randrange(10**6, 10**9), symbol=dice.choice(SYMBOLS)) for _ in range(count)]


def killed(dice: random.Random, tape: list[Tick], flags: list[bool]) -> list[Tick]:
    """Return what a producer delivers until it is killed: in order in each partition, and of the last BOUND not all.

    It goes beyond the holes that the life before it has left when they are filled.
    """
    last = max((place for place, there in enumerate(flags) if there), default=-1)
    left = [place for place, there in enumerate(flags) if not there]
    holes = sum(place < last for place in left)
    left = left[: dice.randint(1, len(left))]
    filled = holes if len(left) > holes else 0
    cut = {number: dice.randint(max(filled, len(left) - BOUND), len(left)) for number in range(4)}
    sent = [place for at, place in enumerate(left) if at < cut[home(tape[place].symbol)]]
    for place in sent:
        flags[place] = True
    return [tape[place] for place in sent]


def with_repeats(dice: random.Random, tape: list[Tick], share: float, most: int) -> list[Tick]:
    """Return the tape with some ticks coming a second time, at most so far behind the first."""
    places = sorted(
        [(float(at), each) for at, each in enumerate(tape)]
        + [(at + dice.randint(0, most) + 0.5, each) for at, each in enumerate(tape) if dice.random() < share],
        key=lambda pair: pair[0],
    )
    return [each for _, each in places]


@pytest.mark.parametrize("kind", ["every id once", "ids repeated near", "ids repeated anywhere", "the whole twice"])
@pytest.mark.parametrize("noise", [0, 1, 40])
def test_over_many_lives_every_tick_of_a_tape_is_published_once(kind: str, noise: int) -> None:
    for seed in range(60 // (noise + 1) + 2):
        dice = random.Random(seed)
        tape = tape_of(dice, dice.choice([1, 15, 300, 900]))
        if kind == "the whole twice":
            tape = tape * 2
        elif kind != "every id once":
            tape = with_repeats(dice, tape, 0.1, 5 if kind == "ids repeated near" else len(tape))
        topic, flags = Topic(), [False] * len(tape)
        topic.append(others(dice, dice.randint(0, 20 * noise)))
        for _ in range(4):
            for each in killed(dice, tape, flags):
                topic.append([each])
                topic.append(others(dice, dice.randint(0, noise)))
            found = topic.search(tape).published()
            # Of ticks that are byte for byte the same, it matters how many there are, not which.
            assert sorted(each.id for each, there in zip(tape, found.flags, strict=True) if there) == sorted(
                each.id for each, there in zip(tape, flags, strict=True) if there
            ), (kind, noise, seed)
            flags = [bool(flag) for flag in found.flags]
            if all(flags):
                break


def test_of_a_long_tape_the_end_of_the_topic_and_one_message_are_read() -> None:
    dice = random.Random(1)
    topic, tape = Topic(), tape_of(dice, 20_000)
    topic.append(tape[:15_000])
    found = topic.search(tape).published()
    assert found.ticks == 15_000 and found.flags == b"\1" * 15_000 + b"\0" * 5_000
    assert topic.messages_read <= 20 * BOUND + 1


def test_a_tape_of_which_retention_has_removed_the_beginning_goes_on_where_it_stopped() -> None:
    for seed in range(20):
        dice = random.Random(seed)
        topic, tape = Topic(), tape_of(dice, 1_000)
        topic.append(tape[:700])
        topic.start = {number: dice.randint(1, len(log) - 30) for number, log in topic.log.items()}
        assert topic.search(tape).published().flags == b"\1" * 700 + b"\0" * 300


@pytest.mark.parametrize("days", [(0, 1), (1, 2), (0, 2), (2, 1, 0)])
def test_of_a_tape_that_overlaps_with_others_exactly_what_is_not_there_is_left(days: tuple[int, ...]) -> None:
    dice = random.Random(2)
    day = [tape_of(dice, 500, first) for first in (0, 500, 1_000)]
    topic = Topic()
    for each in days:
        topic.append(day[each])
    found = topic.search([*day[0], *day[1], *day[2]]).published()
    assert found.flags == b"".join(bytes([number in days]) * 500 for number in range(3))


def test_the_last_tick_in_the_topic_is_told_with_its_place_there_and_its_time_on_the_tape() -> None:
    tape = [tick(number, symbol=symbol, at=at) for number, (symbol, at) in enumerate(zip("ABACAB", accumulate([1.0] * 6), strict=True))]
    topic = Topic()
    topic.append(tape[:4])
    assert topic.search(tape).published().last == (home("C"), 0, tape[3].event_time)


def test_of_a_topic_without_any_tick_of_the_tape_nothing_is_left_out() -> None:
    dice = random.Random(3)
    topic = Topic()
    topic.append(others(dice, 500))
    found = topic.search(tape_of(dice, 100)).published()
    assert found.last is None and found.ticks == 0
