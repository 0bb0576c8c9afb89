"""compose.yml, which cannot be run everywhere: held to the specification, to the settings, and to Kafka's own image.

The image makes Kafka's configuration out of the environment with a class that the broker's jars bring: that class, and
the broker's list of its properties, judge here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline_lib.config import Settings
from pipeline_lib.services.jars import broker_classpath, jar_version
from pipeline_lib.services.java import find_java
from pipeline_lib.services.kafka import PROPERTIES
from pipeline_lib.services.postgres import find_binaries

ROOT = Path(__file__).parents[2]
FILE = ROOT / "compose.yml"
# Variables of the image that are no properties of the broker.
OF_THE_IMAGE = {"KAFKA_HEAP_OPTS"}
# Where a broker in a container has to differ from one on this machine.
OF_THE_PLACE = {"controller.quorum.voters", "listeners", "advertised.listeners", "log.dirs"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text("utf-8"))


def read_properties(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def test_it_keeps_the_compose_specification():
    checked = subprocess.run(
        [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


def test_a_misspelt_key_would_be_told(tmp_path: Path):
    wrong = tmp_path / "compose.yml"
    wrong.write_text(FILE.read_text("utf-8").replace("healthcheck:", "healtcheck:"), "utf-8")
    checked = subprocess.run(
        [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", wrong], capture_output=True, text=True
    )
    assert checked.returncode == 1 and "healtcheck" in checked.stdout


def test_versions_are_those_that_make_run_uses(compose: dict[str, Any]):
    images = {name: service["image"] for name, service in compose["services"].items()}
    assert images == {
        "kafka": f"apache/kafka:{jar_version('kafka_2.13')}",
        "postgres": f"postgres:{find_binaries().version}-alpine",
        "spark-master": f"apache/spark:{version('pyspark')}",
        "spark-worker": f"apache/spark:{version('pyspark')}",
    }


def test_everything_listens_on_the_loopback_only(compose: dict[str, Any]):
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        if service.get("network_mode") == "host":
            command = service["command"]
            assert command[command.index("--host") + 1] == service["environment"]["SPARK_LOCAL_IP"] == "127.0.0.1", name


def test_no_port_is_taken_twice_or_is_the_dashboards(compose: dict[str, Any]):
    taken = [port.split(":")[1] for service in compose["services"].values() for port in service.get("ports", [])]
    for service in compose["services"].values():
        command = service.get("command", [])
        taken += [command[place + 1] for place, word in enumerate(command) if word in ("--port", "--webui-port")]
    taken.append(str(Settings.model_fields["dashboard_port"].default))
    assert len(taken) == len(set(taken))


def test_every_service_has_a_health_check_and_comes_back(compose: dict[str, Any]):
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD" and service["restart"] == "unless-stopped", name


def test_data_is_in_named_volumes_at_the_images_places(compose: dict[str, Any]):
    mounts = {name: [mount.split(":") for mount in service.get("volumes", [])] for name, service in compose["services"].items()}
    assert all(volume in compose["volumes"] for found in mounts.values() for volume, _ in found)
    assert mounts["kafka"][0][1] == compose["services"]["kafka"]["environment"]["KAFKA_LOG_DIRS"]
    assert mounts["postgres"][0][1] == "/var/lib/postgresql"


def test_the_password_has_no_default_and_stands_nowhere(compose: dict[str, Any]):
    secret = compose["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?[^}]+\}", secret)


def test_the_cluster_is_started_only_when_asked_for(compose: dict[str, Any]):
    profiles = {name: service.get("profiles", []) for name, service in compose["services"].items()}
    assert profiles == {"kafka": [], "postgres": [], "spark-master": ["cluster"], "spark-worker": ["cluster"]}
    worker, master = (compose["services"][name]["command"] for name in ("spark-worker", "spark-master"))
    assert worker[-1] == f"spark://{master[master.index('--host') + 1]}:{master[master.index('--port') + 1]}"
    assert f"SPARK_MASTER={worker[-1]}" in FILE.read_text("utf-8")


def test_the_images_entry_point_makes_a_broker_of_it(compose: dict[str, Any], tmp_path: Path):
    environment = compose["services"]["kafka"]["environment"]
    given, empty, made = tmp_path / "default", tmp_path / "mounted", tmp_path / "made"
    for folder in (given, empty, made):
        folder.mkdir()
    (given / "server.properties").touch()
    for name in ("log4j2.yaml", "tools-log4j2.yaml"):
        (given / name).write_text("Configuration:\n  Loggers:\n    Root:\n      level: INFO\n")
    java = [str(find_java().executable), "-cp", broker_classpath()]
    set_up = subprocess.run(
        [
            *(*java, "kafka.docker.KafkaDockerWrapper", "setup", "--default-configs-dir", given),
            *("--mounted-configs-dir", empty, "--final-configs-dir", made),
        ],
        env={"PATH": os.environ["PATH"], "CLUSTER_ID": "4L6g3nShT-eMCtK--X86sw", **environment, "KAFKA_LOG_DIRS": str(tmp_path / "data")},
        capture_output=True,
        text=True,
    )
    # It ends by formatting the folder of the data, for which the broker reads and checks its configuration.
    assert set_up.returncode == 0 and (tmp_path / "data" / "meta.properties").exists(), set_up.stdout + set_up.stderr
    properties = read_properties((made / "server.properties").read_text())
    assert len(properties) == len(environment) - len(OF_THE_IMAGE)
    documented = subprocess.run([*java, "kafka.server.KafkaConfig"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r'id="brokerconfigs_([^"]+)"', documented))
    assert "listeners" in known
    assert set(properties) <= known
    here = read_properties(PROPERTIES)
    assert {name: value for name, value in properties.items() if name not in OF_THE_PLACE} == {
        name: here[name] for name in properties if name not in OF_THE_PLACE
    }
