"""What the page's one cell shows: the dashboard on the database that the environment names.

Runs in the kernel of one visitor. It reads the database and nothing else: no Kafka, no Spark, no feed.
"""

from __future__ import annotations

from pipeline_lib.config import Settings
from pipeline_lib.dashboard import Dashboard
from pipeline_lib.errors import SettingsError
from pipeline_lib.store import Store

# A page says every five seconds that somebody looks at it. After this silence the kernel rests, and can be culled.
IDLE_SECONDS = 20


def open_dashboard() -> Dashboard:
    """Return the running dashboard of this visitor."""
    settings = Settings.load()
    if settings.database_url is None:
        raise SettingsError("cannot open the dashboard: DATABASE_URL is not set; start it with `stocks dashboard`")
    store = Store(settings.database_url.get_secret_value(), settings.kafka_topic)
    return Dashboard(
        load_bars=store.load_bars,
        load_prices=store.load_prices,
        load_stages=store.load_stages,
        load_gaps=store.load_gaps,
        commits=store.watch_commits(),
        symbols=settings.symbols,
        window=settings.window,
        idle_seconds=IDLE_SECONDS,
    )
