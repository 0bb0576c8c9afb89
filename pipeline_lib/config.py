"""Settings: explicit argument > environment variable > `.env` > default, decided here and nowhere else.

A `Settings` is a frozen value. Its repr masks the key and the password, so that it may be printed in a notebook. Every
field is described in `.env.example`, which a test holds to the defaults written here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pipeline_lib.errors import SettingsError
from pipeline_lib.records import SYMBOL_PATTERN

# The demo that this project grew out of watched these eight.
DEFAULT_SYMBOLS = ("AAPL", "MSFT", "GOOGL", "TSLA", "AMZN", "META", "NVDA", "NFLX")

_UNIT_MS = {"millisecond": 1, "second": 1_000, "minute": 60_000, "hour": 3_600_000}
_DURATION = re.compile(r"^\s*(\d+)\s*(millisecond|second|minute|hour)s?\s*$")

# One day, because a bar's own order of ticks is kept in one 64-bit number (bars.py).
MAX_WINDOW_MS = 24 * 3_600_000


def duration_ms(text: str) -> int:
    """Return the milliseconds of a duration in Spark's words: "10 seconds", "1 minute", "500 milliseconds".

    Raises SettingsError for anything else.
    """
    match = _DURATION.match(text)
    if match is None:
        raise SettingsError(f"cannot read the duration {text!r}: write a whole number and a unit, as in '10 seconds'")
    return int(match[1]) * _UNIT_MS[match[2]]


def find_project_home() -> Path:
    """Return the folder that settings and data belong to: the nearest one, from here upwards, that holds a project.

    A notebook runs in `notebooks/`, a command in the root: both must find the same `.env` and `.pipeline`.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if any((folder / name).exists() for name in (".env", ".pipeline", "pyproject.toml")):
            return folder
    return here


class Settings(BaseSettings):
    """What a person can set. Names in capitals are those of the environment and of `.env`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, env_file_encoding="utf-8", hide_input_in_errors=True
    )

    finnhub_api_key: SecretStr | None = None
    finnhub_base_url: str = "https://finnhub.io/api/v1"
    finnhub_calls_per_minute: int = Field(default=60, ge=1, le=100_000)
    finnhub_calls_per_second: int = Field(default=30, ge=1, le=10_000)
    finnhub_websocket_url: str = Field(default="wss://ws.finnhub.io", pattern="^wss?://[^/?#]+")
    # Of 65 symbols that a free key asked for on one socket, 50 brought trades.
    finnhub_socket_symbols: int = Field(default=50, ge=0)
    drop_suspected_repeats: bool = False
    symbols: Annotated[tuple[str, ...], NoDecode] = DEFAULT_SYMBOLS
    source: Literal["auto", "simulated", "replay", "finnhub"] = "auto"
    simulated_rate: float = Field(default=50.0, gt=0, le=100_000)
    simulated_seed: int = Field(default=7, ge=0, lt=2**32)
    tape: Path | None = None
    speed: Literal["1", "60", "max"] = "1"
    move_to_now: bool = False
    verbatim: bool = False
    again: int = Field(default=0, ge=0, le=1_000_000)
    kafka_bootstrap_servers: str | None = None
    kafka_topic: str = Field(default="stock-market-data", pattern=r"^[A-Za-z0-9._-]{1,200}$")
    database_url: SecretStr | None = None
    spark_master: str = "local[2]"
    window: str = "10 seconds"
    watermark_delay: str = "10 seconds"
    trigger: str = "200 milliseconds"
    max_offsets_per_trigger: int = Field(default=1_000_000, ge=1)
    checkpoint_dir: Path | None = None
    dashboard_port: int = Field(default=8866, ge=1, le=65535)
    pipeline_home: Path = Field(default_factory=lambda: find_project_home() / ".pipeline")

    @classmethod
    def load(cls, **explicit: Any) -> Self:
        """Return the settings in force; arguments that are None count as not given.

        Raises SettingsError that names each wrong setting, what is wrong with it, and never its value if it is secret.
        """
        given = {name: value for name, value in explicit.items() if value is not None}
        unknown = sorted(set(given) - set(cls.model_fields))
        if unknown:
            raise SettingsError(f"cannot read the settings: there is none called {', '.join(unknown)}")
        try:
            return cls(_env_file=find_project_home() / ".env", **given)  # type: ignore[call-arg]
        except ValidationError as error:
            faults = "; ".join(
                f"{str(fault['loc'][0]).upper() if fault['loc'] else 'settings'}: {fault['msg'].removeprefix('Value error, ')}"
                for fault in error.errors(include_input=False)
            )
            raise SettingsError(f"cannot read the settings: {faults}; correct it in the environment or in .env") from None

    def replaced(self, **changes: Any) -> Self:
        """Return a copy with these settings changed, checked like all others."""
        return type(self).load(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    @field_validator("pipeline_home", "checkpoint_dir", "tape")
    @classmethod
    def _from_home(cls, value: Path | None) -> Path | None:
        """A relative path in `.env` means one place, from whichever folder it is read."""
        return None if value is None else value if value.is_absolute() or value.exists() else find_project_home() / value

    @field_validator("symbols", mode="before")
    @classmethod
    def _split_symbols(cls, value: Any) -> Any:
        return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip())) if isinstance(value, str) else value

    @field_validator("symbols")
    @classmethod
    def _check_symbols(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [symbol for symbol in value if not re.match(SYMBOL_PATTERN, symbol)]
        if wrong or not value:
            raise ValueError(f"not symbols as Finnhub spells them: {wrong}" if wrong else "name at least one symbol")
        return value

    @field_validator("window", "watermark_delay", "trigger")
    @classmethod
    def _check_duration(cls, value: str) -> str:
        try:
            duration_ms(value)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("window")
    @classmethod
    def _check_window(cls, value: str) -> str:
        if not 0 < duration_ms(value) <= MAX_WINDOW_MS or MAX_WINDOW_MS % duration_ms(value):
            raise ValueError("a window must divide a day evenly, as 10 seconds or 5 minutes do")
        return value

    @property
    def window_ms(self) -> int:
        """The width of a bar in milliseconds."""
        return duration_ms(self.window)

    @property
    def checkpoint_folder(self) -> Path:
        """Where Spark's checkpoints go: CHECKPOINT_DIR, or a folder of PIPELINE_HOME."""
        return self.checkpoint_dir or self.pipeline_home / "checkpoints"

    @property
    def chosen_source(self) -> Literal["simulated", "replay", "finnhub"]:
        """The source that `auto` stands for: Finnhub with a key, the simulated market without one."""
        if self.source != "auto":
            return self.source
        return "finnhub" if self.finnhub_api_key else "simulated"

    def __repr_args__(self) -> Any:
        for name, value in super().__repr_args__():
            yield name, masked_url(value.get_secret_value()) if name == "database_url" and value else value


def masked_url(url: str) -> str:
    """Return the URL with its password replaced by stars, fit to be printed."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@", 1)))
