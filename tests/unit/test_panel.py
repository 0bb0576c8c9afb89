"""The panel of notebook 06, by its traits: it shows what it is told, and a button does what it says or says why not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pipeline_lib.errors import ServiceError
from pipeline_lib.panel import FaultPanel
from pipeline_lib.verify import VerifyReport

STAGES = ("feed", "kafka", "spark", "postgres")
EQUAL = VerifyReport(30, 30, 0, 4, 0, [], [], [], {0: 30}, [0], {0: 0}, 0, 0, [], [])


class Stages:
    """Four stages that can be killed; Kafka is somebody else's."""

    def __init__(self) -> None:
        self.down: set[str] = set()

    def look(self) -> dict[str, Any]:
        rows = [
            {"stage": stage, "state": "down" if stage in self.down else "running", "since": 0, "seen": None, "detail": "", "returns": 0}
            | {"spared": "its address is given" if stage == "kafka" else ""}
            for stage in STAGES
        ]
        return {"stages": rows, "counts": {"consumed": 30 - len(self.down)}, "fault": ""}

    def kill(self, stage: str) -> None:
        if stage == "kafka":
            raise ServiceError("cannot kill Kafka: its address is given")
        self.down.add(stage)


def states(panel: FaultPanel) -> dict[str, str]:
    return {row["title"]: row["state"] for row in panel.rows}


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def press(panel: FaultPanel, **content: str) -> None:
    """Send what the button on the page sends."""
    panel._handle_custom_msg(content, [])


def test_a_button_kills_its_stage_and_no_other() -> None:
    async def scene() -> None:
        stages = Stages()
        panel = FaultPanel(stages.look, stages.kill, lambda: EQUAL)
        press(panel, kind="kill", stage="spark")
        await eventually(lambda: stages.down)
        assert states(panel) == {"Feed": "running", "Kafka": "running", "Spark": "down", "PostgreSQL": "running"}
        panel.stop()

    asyncio.run(scene())


def test_a_spared_stage_is_said_to_be_so_and_lives() -> None:
    stages = Stages()
    panel = FaultPanel(stages.look, stages.kill, lambda: EQUAL)
    assert {row["stage"]: row["spared"] for row in panel.rows}["kafka"] == "its address is given"
    panel.kill("kafka")
    assert panel.verdict == {"kind": "fault", "text": "cannot kill Kafka: its address is given"}
    assert set(states(panel).values()) == {"running"}


def test_it_moves_by_itself_until_it_is_stopped() -> None:
    async def scene() -> None:
        stages = Stages()
        panel = FaultPanel(stages.look, stages.kill, lambda: EQUAL)
        stages.down.add("postgres")
        await eventually(lambda: states(panel)["PostgreSQL"] == "down" and panel.counts == {"consumed": 29})
        panel.stop()
        press(panel, kind="kill", stage="spark")
        await asyncio.sleep(0)
        assert panel.stopped and "spark" not in stages.down

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("report", "verdict"),
    [
        (EQUAL, {"kind": "equal", "text": "verify: 0 differ", "detail": str(EQUAL)}),
        (
            EQUAL._replace(differing_bars=2),
            {"kind": "differs", "text": "verify: 2 differ", "detail": str(EQUAL._replace(differing_bars=2))},
        ),
    ],
)
def test_verify_says_how_many_bars_differ(report: VerifyReport, verdict: dict[str, str]) -> None:
    async def scene() -> None:
        stages = Stages()
        panel = FaultPanel(stages.look, stages.kill, lambda: report)
        press(panel, kind="verify")
        await eventually(lambda: panel.verdict == verdict)
        panel.stop()

    asyncio.run(scene())
