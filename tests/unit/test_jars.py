"""The jars: exactly those on record, and no other byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline_lib.errors import InstallError
from pipeline_lib.services import jars


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a copy of every jar."""
    jars.fetch_jars()
    copy = tmp_path / "jars"
    shutil.copytree(jars.JARS, copy, copy_function=shutil.copy2)
    return copy


def refuse_to_fetch(*arguments: object) -> None:
    raise AssertionError("the network was asked")


def test_every_jar_that_is_fetched_has_a_sum_on_record_and_none_besides() -> None:
    module = ElementTree.parse(jars.HERE / "jars.xml").getroot()
    named = {f"{each.get('conf')}/{each.get('name')}-{each.get('rev')}.jar" for each in module.iter("dependency")}
    assert named == set(jars.recorded_sums())
    assert all(len(total) == 64 for total in jars.recorded_sums().values())


def test_the_versions_are_those_of_the_broker_and_of_spark() -> None:
    assert jars.jar_version("kafka_2.13") == "4.3.1"
    assert jars.jar_version("spark-sql-kafka-0-10_2.13", "connector") == "4.2.0"


def test_no_address_of_a_registry_is_written_down() -> None:
    for name in ("jars.xml", "jars-settings.xml", "jars.py", "jars.sha256"):
        assert "http" not in (jars.HERE / name).read_text().replace("https_proxy", "").replace("https.proxy", "").replace('"https"', "")


def test_a_complete_folder_is_found_complete_without_network_or_hashing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "_fetch", refuse_to_fetch)
    jars.fetch_jars(folder=folder)
    monkeypatch.setattr(jars, "check_jars", refuse_to_fetch)
    jars.fetch_jars(folder=folder)
    assert [jar.name for jar in jars.connector_jars(folder=folder) if not jar.is_file()] == []


def test_a_jar_with_another_sum_is_refused_by_name(folder: Path) -> None:
    victim = folder / "broker" / "jose4j-0.9.6.jar"
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.write_bytes(content)
    for use in (jars.fetch_jars, jars.broker_classpath):
        with pytest.raises(InstallError, match=r"jose4j-0\.9\.6\.jar: its sha256 is \w{64}, the one on record is \w{64}; delete"):
            use(None, folder)
    with pytest.raises(InstallError, match=r"jose4j-0\.9\.6\.jar"):
        jars.check_jars(folder)


def test_a_missing_jar_that_cannot_be_fetched_is_one_plain_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "broker" / "jose4j-0.9.6.jar").unlink()
    # Port 9 of the loopback is where nobody listens: no network, for Java alone.
    monkeypatch.setattr(jars, "_proxy_options", lambda: ["-Dhttps.proxyHost=127.0.0.1", "-Dhttps.proxyPort=9"])
    with pytest.raises(InstallError, match=r"cannot fetch the jar.*; check the network.*make install") as caught:
        jars.fetch_jars(folder=folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_written_is_one_plain_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InstallError, match=r"cannot keep the jars in .*; make the folder writable"):
        jars.fetch_jars(folder=tmp_path / "file" / "jars")
