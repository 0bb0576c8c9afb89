"""The command line `stocks`: each command puts stages together through pipeline.py, and says what became of it.

A mistake or an absent service is one line on standard error and exit status 2, or 75 where another try may succeed. No
logic of any stage is here.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipeline_lib.config import Settings
from pipeline_lib.errors import EXIT_TRY_AGAIN, PipelineError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A real-time stock analytics pipeline: feed, Kafka, Spark, PostgreSQL, dashboard. Settings: the environment and .env.",
)
# No markup: what is printed may hold brackets of its own.
out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

Source = Literal["auto", "simulated", "replay", "finnhub"]
Speed = Literal["1", "60", "max"]
SourceOption = Annotated[Source | None, typer.Option("--source", help="Where ticks come from; auto is Finnhub with a key, else simulated.")]
TapeOption = Annotated[Path | None, typer.Option("--tape", help="A tape to replay: .jsonl, .parquet, or a folder of LEAN zips.")]
SpeedOption = Annotated[Speed | None, typer.Option("--speed", help="How fast a tape is replayed.")]
RateOption = Annotated[float | None, typer.Option("--rate", help="Ticks per second of the simulated market.")]
MoveOption = Annotated[bool | None, typer.Option("--move-to-now/--keep-times", help="Whether a tape's event times are moved to now.")]
VerbatimOption = Annotated[bool | None, typer.Option("--verbatim", help="Replay a tape as it was recorded, message for message.")]
AgainOption = Annotated[int | None, typer.Option("--again", help="Publish a tape once more, under ids of their own: 1, then 2, and so on.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
UntilEofOption = Annotated[bool, typer.Option("--until-eof", hidden=True, help="End when standard input ends.")]


@app.command()
def up() -> None:
    """Start Kafka and PostgreSQL, unless they run or their addresses are given."""
    from pipeline_lib.services import start_services

    start_services(Settings.load(), out.print)
    _print_status(Settings.load())


@app.command()
def down() -> None:
    """Stop the services that were started here."""
    from pipeline_lib.services import stop_services

    stopped = stop_services(Settings.load())
    out.print(f"stopped {' and '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show the services: state, address, memory, log."""
    _print_status(Settings.load(), as_json)


def _print_status(settings: Settings, as_json: bool = False) -> None:
    import msgspec

    from pipeline_lib.services import service_status

    statuses = service_status(settings)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(statuses)).decode())
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("service", "state", "version", "address", "pid", "memory"):
        table.add_column(heading, overflow="fold")
    for found in statuses:
        memory = f"{found.memory_mb} MB" if found.memory_mb else ""
        table.add_row(found.name, found.state, found.version or "", found.address or "", str(found.pid or ""), memory)
    out.print(table)
    for found in statuses:
        if found.log:
            out.print(f"log of {found.name}: {found.log}")


@app.command()
def env() -> None:
    """Print the addresses of the running services, for psql, kcat and other programs."""
    from pipeline_lib.services import find_services

    settings = find_services(Settings.load())
    print(f"KAFKA_BOOTSTRAP_SERVERS={settings.kafka_bootstrap_servers}")
    print(f"DATABASE_URL={settings.database_url.get_secret_value() if settings.database_url else ''}")


@app.command()
def doctor() -> None:
    """Check all that the pipeline needs, and print the remedy for each fault."""
    from pipeline_lib.doctor import check

    checks = check(Settings.load())
    table = Table("check", "", "found", "remedy")
    for found in checks:
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}[found.verdict]
        table.add_row(found.name, Text(found.verdict, style=colour), found.found, found.remedy or "")
    out.print(table)
    if any(found.verdict == "fail" for found in checks):
        raise typer.Exit(1)


@app.command()
def produce(
    source: SourceOption = None,
    tape: TapeOption = None,
    speed: SpeedOption = None,
    rate: RateOption = None,
    move_to_now: MoveOption = None,
    verbatim: VerbatimOption = None,
    again: AgainOption = None,
    ticks: Annotated[int | None, typer.Option("--ticks", help="End after so many ticks.")] = None,
    until_eof: UntilEofOption = False,
) -> None:
    """Publish ticks to the topic, until the tape ends or Ctrl-C; what was accepted is acknowledged before it returns."""
    from pipeline_lib import pipeline
    from pipeline_lib.services import find_services
    from pipeline_lib.sources import open_source, plan_words

    chosen = "replay" if tape is not None and source is None else source
    settings = Settings.load(
        source=chosen, tape=tape, speed=speed, simulated_rate=rate, move_to_now=move_to_now, verbatim=verbatim, again=again
    )
    settings = find_services(settings)
    feed = open_source(settings, ticks=ticks, report=lambda line: err.print(line))
    out.print(f"feed: {feed.name} ({feed.reason}) -> {settings.kafka_topic}")
    if settings.chosen_source == "finnhub":
        out.print(f"plan: {plan_words(settings)}")
    stopping = threading.Event()

    def stop() -> None:
        stopping.set()
        feed.close()

    with _stop_on_signal(stop, until_eof), _progress(lambda: feed.total if feed.finite else None) as show:
        report = pipeline.produce(settings, feed, show, stopping=stopping, report=lambda line: err.print(f"feed: {line}"))
    out.print(f"feed: {report}")
    if report.failed:
        raise typer.Exit(1)


@contextlib.contextmanager
def _progress(total: Callable[[], int | None]) -> Iterator[Callable[[Any], None] | None]:
    """Yield what shows a publish report: a bar where a person looks on, nothing else elsewhere.

    The total is asked for again, since of a tape that goes on there is less.
    """
    if not out.is_terminal:
        yield None
        return
    ends = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) if total() else (SpinnerColumn(), TimeElapsedColumn())
    with Progress(TextColumn("{task.description}"), *ends, console=out, transient=True) as progress:
        task = progress.add_task("publishing", total=total())
        yield lambda report: progress.update(
            task,
            total=total(),
            completed=report.acknowledged,
            description=f"{report.acknowledged:,} acknowledged, {report.rate:,.0f} ticks/s",
        )


@app.command()
def stream(
    until_caught_up: Annotated[bool, typer.Option("--until-caught-up", help="End when all that is in the topic has been read.")] = False,
    console: Annotated[bool, typer.Option("--console", help="Print the bars that each micro-batch writes.")] = False,
    accept_gap: Annotated[
        bool, typer.Option("--accept-gap", help="Go on without messages that retention removed unread; which ones is recorded.")
    ] = False,
    until_eof: UntilEofOption = False,
) -> None:
    """Stream the topic into bars in PostgreSQL, until Ctrl-C."""
    from pipeline_lib.services import find_services
    from pipeline_lib.session import StartingSpark

    settings = find_services(Settings.load())
    spark = StartingSpark(settings, out.print)  # which takes seconds; what else there is to do is done meanwhile

    from pipeline_lib import pipeline

    store = pipeline.open_store(settings)
    with store.only_stream():
        pipeline.bind(settings, store, accept_gap=accept_gap, report=out.print)
        out.print(f"stream: starting Spark ({settings.spark_master})")
        running = pipeline.open_stream(settings, spark.wait(), store, console=console, report=out.print)
        stopping = threading.Event()
        with _stop_on_signal(stopping.set, until_eof), running, pipeline.Heartbeat(settings, running):
            running.start(until_caught_up=until_caught_up)
            out.print(f"stream: {settings.kafka_topic} -> {settings.window} bars, from the offsets in PostgreSQL")
            while not stopping.is_set() and not running.wait(0.2):
                pass
        out.print(f"stream: {running.committed_rows:,} messages in {running.committed_batches:,} micro-batches", end="")
        out.print(f", {running.dead_letters:,} dead letters" if running.dead_letters else "")
    store.close()


@app.command()
def verify(
    since: Annotated[
        str | None, typer.Option("--from", help="Compare bars from then on: ISO time or date, in UTC; with NY at its end New York's.")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="And up to then; a date is the whole day.")] = None,
    symbol: Annotated[
        list[str] | None, typer.Option("--symbol", help="Compare the bars of this symbol; may be given several times.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with what is new, a line a pass, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two passes.")] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Recompute every bar from the topic without Spark, and compare with the table: 0 when equal, 1 when not."""
    from pipeline_lib import pipeline
    from pipeline_lib.services import find_services
    from pipeline_lib.sources.market_hours import moment_words, read_moment

    scope = pipeline.Scope(
        None if since is None else read_moment(since),
        None if until is None else read_moment(until, is_end=True),
        frozenset(symbol) if symbol else None,
    )
    settings = find_services(Settings.load())
    if not as_json and (scope.since or scope.until):
        ends = ("from", scope.since), ("to", scope.until)
        out.print(" ".join(f"{word} {moment_words(moment)}" for word, moment in ends if moment is not None))
    if watch:
        raise typer.Exit(0 if _watch(pipeline, settings, scope, every, as_json) else 1)
    report = pipeline.verify(settings, scope)
    if as_json:
        _print_report_json(report)
    else:
        out.print(f"{report.messages:,} messages: {report.good:,} ticks + {report.dead_letters:,} dead letters")
        out.print(f"{report.bars:,} bars compared, {report.differing_bars:,} differ")
        if unread_whole := len(report.offsets) - len(report.accounts):
            out.print(f"the accounts of {unread_whole} partitions were not compared, since they were not read whole")
        if report.unread:
            out.print(f"{report.unread:,} messages of the topic have not been streamed yet")
        _print_findings(report)
    raise typer.Exit(0 if report.equal else 1)


def _watch(pipeline: Any, settings: Settings, scope: Any, every: float, as_json: bool) -> bool:
    """Print a line a pass until Ctrl-C; return whether every pass found all equal."""
    equal, stopping = True, threading.Event()
    with _stop_on_signal(stopping.set):
        for report in pipeline.watch(settings, stopping, scope, every, lambda line: err.print(line)):
            equal &= report.equal
            if as_json:
                _print_report_json(report)
                continue
            counts = f"{report.messages:,} new messages, {report.bars:,} bars compared, {report.differing_bars:,} differ"
            unread = f", {report.unread:,} not streamed yet" if report.unread else ""
            out.print(f"{dt.datetime.now(dt.UTC):%H:%M:%S} UTC: {counts}{unread}")
            _print_findings(report)
    return equal


def _print_report_json(report: Any) -> None:
    fields = {**report._asdict(), "differences": [row._asdict() for row in report.differences], "equal": report.equal}
    print(json.dumps(fields, default=str), flush=True)


def _print_findings(report: Any) -> None:
    """Print what a report has to tell beside its counts."""
    if report.left_out:
        named = ", ".join(report.left_out[:5]) + (" …" if len(report.left_out) > 5 else "")
        out.print(f"{len(report.left_out):,} bars left out, since retention has removed ticks of theirs: {named}")
    if report.ids_twice:
        named = ", ".join(f"{id} (partition {partition}, offset {offset})" for partition, offset, id in report.ids_shown)
        out.print(f"{report.ids_twice:,} messages have an id that came before, and are counted as often as they came: {named}")
    for fault in report.account_faults:
        out.print(f"account: {fault}")
    if report.differences:
        table = Table("symbol", "window_start", "column", "topic says", "table says")
        for row in report.differences:
            table.add_row(*(str(cell) for cell in row))
        out.print(table)


@app.command()
def rebuild(
    tape: Annotated[Path | None, typer.Option("--tape", help="Make the topic again from this tape first, if it is gone or empty.")] = None,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Do without ticks that the topic does not hold any more.")] = False,
) -> None:
    """Make everything in PostgreSQL again from the topic, verify it, and put it in the place of the old tables."""
    from pipeline_lib import pipeline
    from pipeline_lib import rebuild as rebuilding
    from pipeline_lib.services import find_services

    settings = find_services(Settings.load())
    if tape is not None:
        rebuilding.fill_topic(settings, tape, out.print)
    report = rebuilding.rebuild(settings, lambda: pipeline.open_spark(settings, out.print), accept_loss=accept_loss, report=out.print)
    out.print(f"rebuild: {report.bars:,} bars equal what the topic says, and are in place of the old tables")


@app.command()
def record(
    to: Annotated[Path, typer.Option("--out", help="The tape to write: .parquet or .jsonl.")],
) -> None:
    """Write what is in the topic to a tape, with both clocks."""
    from pipeline_lib import pipeline
    from pipeline_lib.services import find_services
    from pipeline_lib.sources.tape import write_tape

    recording = pipeline.read_topic(find_services(Settings.load()))
    written = write_tape(recording.ticks, to)
    out.print(f"{written:,} ticks -> {to}")
    if recording.bad:
        out.print(f"{len(recording.bad):,} messages are no ticks and were left out; the first: {recording.bad[0]}")


@app.command()
def dashboard(port: Annotated[int | None, typer.Option("--port", help="Port on the loopback.")] = None) -> None:
    """Serve the live dashboard as a web page on this machine, until Ctrl-C."""
    from pipeline_lib import pipeline
    from pipeline_lib.services import find_services
    from pipeline_lib.web import serve_dashboard

    settings = find_services(Settings.load(dashboard_port=port))
    pipeline.open_store(settings).create_tables()
    server = serve_dashboard(settings, out.print)
    out.print(f"dashboard: {server.url} (Ctrl-C stops it)")
    stopping = threading.Event()
    try:
        with _stop_on_signal(stopping.set):
            while not stopping.wait(0.5) and server.is_running:
                pass
        if not stopping.is_set():
            raise PipelineError(f"the dashboard has ended by itself: see {server.log}")
    finally:
        server.stop()


@app.command()
def run(
    source: SourceOption = None,
    tape: TapeOption = None,
    speed: SpeedOption = None,
    rate: RateOption = None,
    move_to_now: MoveOption = None,
    verbatim: VerbatimOption = None,
    again: AgainOption = None,
) -> None:
    """Start all that is not running: services, feed, stream, dashboard; Ctrl-C stops what this started, in order."""
    from pipeline_lib.run import run_pipeline

    chosen = "replay" if tape is not None and source is None else source
    settings = Settings.load(
        source=chosen, tape=tape, speed=speed, simulated_rate=rate, move_to_now=move_to_now, verbatim=verbatim, again=again
    )
    stopping = threading.Event()
    with _stop_on_signal(stopping.set):
        run_pipeline(settings, stopping, out)


@app.command()
def finnhub_stand_in(
    port: Annotated[int, typer.Option("--port", help="Port on the loopback.")] = 8900,
    key: Annotated[str, typer.Option("--key", help="The key that it takes; no real one.")] = "stand-in",
    tape: Annotated[Path | None, typer.Option("--tape", help="A tape to play; without one, the simulated market.")] = None,
    speed: SpeedOption = None,
    rate: RateOption = None,
    faults: Annotated[str, typer.Option("--faults", help="Faults to have, divided by commas, or: none, passing.")] = "none",
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two faults, on average.")] = 30.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the market and of the faults.")] = 7,
) -> None:
    """Stand in for Finnhub on this machine: REST and WebSocket, with its limits, and its faults on demand, until Ctrl-C."""
    from pipeline_lib.finnhub_stand_in import PASSING, FaultSchedule, FinnhubStandIn
    from pipeline_lib.sources import open_source

    source: Source = "replay" if tape is not None else "simulated"
    settings = Settings.load(
        source=source, tape=tape, speed=speed, simulated_rate=rate, simulated_seed=seed, move_to_now=True if tape is not None else None
    )
    names = {"none": (), "passing": PASSING}.get(faults, tuple(name.strip() for name in faults.split(",")))
    schedule = FaultSchedule(seed, every, names) if names else None
    market = open_source(settings, report=lambda line: err.print(line))
    stopping = threading.Event()
    with _stop_on_signal(stopping.set), FinnhubStandIn(key, market=market, schedule=schedule, port=port) as stand_in:
        out.print(f"stand-in for Finnhub, on {market.name}; faults: {', '.join(names) or 'none'}")
        out.print(f"FINNHUB_BASE_URL={stand_in.rest_url} FINNHUB_WEBSOCKET_URL={stand_in.websocket_url} FINNHUB_API_KEY={key}")
        out.print(f"to make a fault: curl -X POST '{stand_in.control_url}/fault?name=drop'; Ctrl-C stops it")
        while not stopping.wait(0.5):
            pass
        counts = stand_in.ledger.counts
    out.print(f"stand-in: {', '.join(f'{number:,} {name}' for name, number in counts.items())}")


@contextlib.contextmanager
def _stop_on_signal(stop: Callable[[], Any], until_eof: bool = False) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C or SIGTERM, and at the end of standard input if asked; a second Ctrl-C interrupts."""

    def on_signal(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    saved = {name: signal.signal(getattr(signal, name), on_signal) for name in names}
    if until_eof:
        threading.Thread(target=_wait_for_eof, args=(stop,), name="until-eof", daemon=True).start()
    try:
        yield
    finally:
        for name, handler in saved.items():
            signal.signal(getattr(signal, name), handler)


def _wait_for_eof(stop: Callable[[], Any]) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop()


def main() -> None:
    """Run the command line; a foreseen error is one line and exit status 2, or 75 if another try may succeed."""
    try:
        app()
    except PipelineError as error:
        err.print(f"error: {error}")
        sys.exit(EXIT_TRY_AGAIN if error.retriable else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone: nothing is left to say, and Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
