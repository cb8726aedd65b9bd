"""Omniglot: every drawing, both published splits, an alphabet a site; complaints that name a place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from public_files import SECRET, npz, present, refused

from clinimeta.common.errors import MissingDataError
from clinimeta.simulations.datasets import omniglot
from clinimeta.simulations.datasets.locate import digest
from clinimeta.simulations.datasets.omniglot import Omniglot, read_characters

INK = (np.arange(3 * 20 * 28 * 28) % 256).astype(np.uint8).reshape(3, 20, 28, 28)
HEADER = "class_id,alphabet,character,lake_split,vinyals_split"
LINES = ("1,Greek,1,background,train", "2,Greek,2,background,test", "3,Futurama,1,evaluation,val")


def tiny(folder: Path, lines: Sequence[str] = LINES, ink: object = INK) -> tuple[Path, Path]:
    (folder / "classes.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return npz(folder / "omniglot_28.npz", {"ink": ink}), folder / "classes.csv"


def test_a_character_has_its_drawings_alphabet_and_splits(tmp_path: Path) -> None:
    found = read_characters(*tiny(tmp_path), 3)
    assert np.array_equal(found.ink, INK)
    assert found.members() == (0, 1, 2)
    assert found.members("Greek") == (0, 1)
    assert found.members("Greek", vinyals="test") == (1,)
    assert found.members(vinyals="val", lake="evaluation") == (2,)
    assert found.members("Futurama", lake="background") == ()


def test_an_alphabet_is_a_site_and_test_characters_are_test_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(omniglot, "read_characters", lambda *paths: read_characters(*paths, 3))
    paths = tiny(tmp_path)
    sites = Omniglot().hospitals(tmp_path)
    assert {name: len(site.records) for name, site in sites.items()} == {"Futurama": 20, "Greek": 40}
    greek = sites["Greek"].records.cells
    assert greek["character"] == ["1"] * 20 + ["2"] * 20
    assert sites["Greek"].test == (False,) * 20 + (True,) * 20
    assert list(greek["pixel_29"]) == INK[:2].reshape(40, -1)[:, 29].astype(str).tolist()
    assert Omniglot().files(tmp_path) == {path.name: digest(path) for path in paths}


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        ((LINES[0], f"2,Greek,2,background,{SECRET}", LINES[2]), "line 3, column 'vinyals_split'"),
        ((LINES[0], LINES[1], f"3,Futurama,1,{SECRET},val"), "line 4, column 'lake_split'"),
        ((LINES[0], "2,,2,background,test", LINES[2]), "line 3, column 'alphabet'"),
        ((LINES[1], LINES[0], LINES[2]), "line 2, column 'class_id'"),
        (LINES[:2], "classes.csv"),
    ],
)
def test_other_characters_are_refused_by_line_and_column(
    tmp_path: Path, lines: Sequence[str], where: str
) -> None:
    paths = tiny(tmp_path, lines)
    assert refused(lambda: read_characters(*paths, 3)).where.endswith(where)


@pytest.mark.parametrize("ink", [INK[:2], INK[:, :19], INK.astype(float), INK.reshape(3, 20, 784)])
def test_other_drawings_are_refused(tmp_path: Path, ink: np.ndarray) -> None:
    paths = tiny(tmp_path, ink=ink)
    assert "omniglot_28.npz" in refused(lambda: read_characters(*paths, 3)).where


def test_a_missing_column_or_file_is_named(tmp_path: Path) -> None:
    paths = tiny(tmp_path)
    paths[1].write_text(paths[1].read_text().replace("lake_split", "lakes_split"))
    assert "did you mean 'lakes_split'?" in refused(lambda: read_characters(*paths, 3)).expected
    assert refused(lambda: Omniglot().hospitals(tmp_path)).expected == "1623 characters"
    paths[1].unlink()
    with pytest.raises(MissingDataError, match=r"classes\.csv"):
        Omniglot().files(tmp_path)


@pytest.mark.data
def test_the_splits_are_as_long_as_published(data_dir: Path) -> None:
    data = present(data_dir, "omniglot")
    every = Omniglot().characters(data)
    assert every.ink.shape == (1623, 20, 28, 28)
    assert len(set(every.alphabet)) == 50
    assert [len(every.members(vinyals=part)) for part in ("train", "val", "test")] == [1028, 172, 423]
    assert [len(every.members(lake=part)) for part in ("background", "evaluation")] == [964, 659]
    assert all(every.ink.any(axis=(2, 3)).ravel())
    sites = Omniglot().hospitals(data)
    assert sum(len(site.records) for site in sites.values()) == 32_460
    assert sum(sum(site.test or ()) for site in sites.values()) == 423 * 20
