"""A disk without room, at the coordinator and at a hospital: it waits and says so, and goes on by itself."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from daemons import Federation, clinimeta, federation_of, until
from small import PAIR, model_of, some, undisturbed_by

from clinimeta.common.study import Study
from clinimeta.common.tasks.table import Records
from clinimeta.server.experiments import NO_ROOM

pytestmark = [
    pytest.mark.service,
    pytest.mark.long,
    pytest.mark.data,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("service"),
]
MIB = 2**20


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=700", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def fill(disk: Path) -> Path:
    """A file that takes all the room there is, to the last byte."""
    path = disk / "filler"
    with path.open("ab", buffering=0) as file:
        size = MIB
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tables: Mapping[str, Records]) -> Iterator[Federation]:
    """Coordinator and hospitals, each on a small disk of its own."""
    root = tmp_path_factory.mktemp("pair")
    with small_disk(root / "hub", 64), small_disk(root / "cleveland", 32), small_disk(root / "hungary", 32):
        federation = federation_of(root, some(tables, *PAIR))
        yield federation
        federation.stop()


@pytest.fixture(scope="module")
def expected(study: Study, tables: Mapping[str, Records], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return model_of(study, some(tables, *PAIR), tmp_path_factory.mktemp("expected"))


def test_the_coordinators_disk_is_full_in_the_middle_of_a_run(
    pair: Federation, study_text: str, expected: bytes
) -> None:
    def disturb(name: str) -> None:
        until(lambda: pair.rounds(name), 60)
        filler = fill(pair.hub.folder)
        until(lambda: "disk" in pair.hub.why(), 30)
        assert not pair.hub.ready()
        until(lambda: pair.experiment(name)["detail"] == NO_ROOM, 30)
        assert pair.experiment(name)["state"] == "waiting"
        assert NO_ROOM in clinimeta("show", name, "--home", pair.hub.folder)
        filler.unlink()
        until(pair.hub.ready, 90)

    undisturbed_by(pair, study_text, disturb, expected)


def not_sent(port: int) -> float:
    """How many answers could not be written down, and so did not leave."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return next(
        float(line.split()[1]) for line in text.splitlines() if line.startswith("clinimeta_not_sent_total")
    )


def test_a_hospitals_disk_is_full_in_the_middle_of_a_run(
    pair: Federation, study_text: str, expected: bytes
) -> None:
    site = pair.sites["cleveland"]

    def disturb(name: str) -> None:
        until(lambda: pair.rounds(name), 60)
        filler = fill(site.folder)
        if pair.experiment(name)["state"] != "finished":
            until(lambda: not_sent(site.health), 60)  # its log has no room, either
        site.stop()
        fill(site.folder)  # the lock's page, too
        said = clinimeta("site", "up", "--home", site.folder, expect=2)
        assert "No space left on device" in said
        filler.unlink()
        site.start(wait=False)

    undisturbed_by(pair, study_text, disturb, expected)
