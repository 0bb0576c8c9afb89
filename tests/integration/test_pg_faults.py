"""What passes is waited for, what does not ends the stage: by the server's own SQLSTATE, and by its words where it gives none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from runs import open_store

from pipeline_lib.config import Settings
from pipeline_lib.errors import PipelineError, SchemaError, UnavailableError
from pipeline_lib.pipeline import Place
from pipeline_lib.store import Store

# SQLSTATE, what it is said to be, and whether waiting helps.
FAULTS = {
    "08006": (r"is it running\?", UnavailableError),
    "25006": ("it takes no writes", UnavailableError),
    "40001": ("another transaction was in the way", UnavailableError),
    "40P01": ("another transaction was in the way", UnavailableError),
    "53100": ("cannot write into PostgreSQL at .+ free its disk", UnavailableError),
    "53200": ("no memory left", UnavailableError),
    "53300": ("too many connections", UnavailableError),
    "55P03": ("a lock is held by somebody else", UnavailableError),
    "57014": ("was cancelled", UnavailableError),
    "57P01": ("it was stopped or is starting", UnavailableError),
    "57P03": ("it was stopped or is starting", UnavailableError),
    "58030": ("its disk does not work", UnavailableError),
    "42501": ("grant the right to this user", PipelineError),
    "42P01": ("undo that change", SchemaError),
    "42703": ("undo that change", SchemaError),
    "22003": ("undo that change", SchemaError),
    "23505": ("undo that change", SchemaError),
    "XX001": (r"\(SQLSTATE XX001\)", PipelineError),
}


@pytest.fixture(scope="module")
def store(services: Settings) -> Iterator[Store]:
    with Place(services, "pg-faults") as place:
        found = open_store(place)
        yield found
        found.close()


@pytest.mark.parametrize("code", FAULTS)
def test_waiting_is_for_what_passes_and_for_nothing_else(store: Store, code: str) -> None:
    words, kind = FAULTS[code]
    with pytest.raises(PipelineError, match=words) as caught, store._transaction() as cursor:
        cursor.execute(f"do $$ begin raise exception 'as told' using errcode = '{code}'; end $$")
    assert type(caught.value) is kind
    assert caught.value.retriable == (kind is UnavailableError)
    assert "\n" not in str(caught.value)
    assert store.query("select 1 as one")["one"][0] == 1  # and the store is of use again


def test_a_connection_that_is_refused_for_good_is_not_waited_for(store: Store) -> None:
    for wrong in ("postgresql://nobody:x@", "postgresql://stocks:wrong@"):
        address = store.url.split("@", 1)[1]
        with pytest.raises(PipelineError, match="password authentication failed") as caught:
            Store(wrong + address, "topic").load_offsets()
        assert not caught.value.retriable
    with pytest.raises(PipelineError, match="does not exist") as caught:
        Store(store.url + "-gone", "topic").load_offsets()
    assert not caught.value.retriable
    with pytest.raises(UnavailableError, match=r"is it running\?"):
        Store("postgresql://stocks:x@127.0.0.1:1/stocks", "topic").load_offsets()


def test_a_question_that_cannot_be_asked_is_no_reason_to_wait(store: Store) -> None:
    with pytest.raises(PipelineError, match="report this as a fault") as caught:
        store.query("select %s", (object(),))
    assert not caught.value.retriable
