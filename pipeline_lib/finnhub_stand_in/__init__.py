"""A stand-in for Finnhub on the loopback: REST and WebSocket, with the real service's shapes, limits, headers and faults.

What it answers is as Finnhub's documentation and issues have it. It is a server of its own, which the real client talks to
through FINNHUB_BASE_URL and FINNHUB_WEBSOCKET_URL; it is no source of ticks, and the pipeline knows nothing of it. Called by
`stocks finnhub-stand-in` and by the tests, which compare its ledger with what arrived.
"""

from __future__ import annotations

from pipeline_lib.finnhub_stand_in.answers import UNKNOWN, Answer, quote
from pipeline_lib.finnhub_stand_in.faults import FAULTS, PASSING, REST_FAULTS, SOCKET_FAULTS, FaultSchedule
from pipeline_lib.finnhub_stand_in.ledger import Delivery, Gap, Ledger, Poll
from pipeline_lib.finnhub_stand_in.server import FinnhubStandIn, Plan

__all__ = [
    "FAULTS",
    "PASSING",
    "REST_FAULTS",
    "SOCKET_FAULTS",
    "UNKNOWN",
    "Answer",
    "Delivery",
    "FaultSchedule",
    "FinnhubStandIn",
    "Gap",
    "Ledger",
    "Plan",
    "Poll",
    "quote",
]
