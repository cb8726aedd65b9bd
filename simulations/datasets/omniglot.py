"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each; an alphabet is a site.

Source: Lake, Salakhutdinov, Tenenbaum, Science 2015 (MIT), all 32,460 drawings, made 28 x 28 pixels wide.
Protocol: Vinyals et al. (NeurIPS 2016) and Snell et al. (NeurIPS 2017): 1,028 characters train, 172 validate,
423 test, N-way k-shot, a character turned by 90, 180 or 270 degrees is another one. Lake's own split: 964
characters of 30 alphabets in the background, 659 of 20 alphabets evaluated.

`omniglot_28.npz` holds `ink` [1623, 20, 28, 28] (0: paper, 255: ink); `classes.csv` names the characters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from clinimeta.client.sources.csv_files import read_csv
from clinimeta.common.errors import DataError, nearest
from clinimeta.common.tasks.table import Records
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.arrays import Wanted, check_count, read_arrays
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.cells import ArrayCells
from clinimeta.simulations.datasets.locate import PublicFile, digest, locate

PAGE = "https://github.com/brendenlake/omniglot (packed into one .npz file)"
FILES = tuple(PublicFile("omniglot", name, PAGE) for name in ("omniglot_28.npz", "classes.csv"))
CHARACTERS, DRAWINGS, SIDE = 1623, 20, 28
PIXELS = tuple(f"pixel_{pixel}" for pixel in range(SIDE * SIDE))
VINYALS, LAKE = ("train", "val", "test"), ("background", "evaluation")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Characters:
    """Drawings `ink[character, drawing, row, column]`, and of each character its alphabet and its splits."""

    ink: UInt8[np.ndarray, "characters drawings 28 28"]
    alphabet: tuple[str, ...]
    vinyals: tuple[str, ...]
    lake: tuple[str, ...]

    def members(self, alphabet: str = "", vinyals: str = "", lake: str = "") -> tuple[int, ...]:
        """The characters of an alphabet, a part of a split, or both; an empty word takes all."""
        wanted = (alphabet, vinyals, lake)
        each = zip(self.alphabet, self.vinyals, self.lake, strict=True)
        return tuple(
            number
            for number, found in enumerate(each)
            if all(want in ("", have) for want, have in zip(wanted, found, strict=True))
        )


@DATASETS.register("omniglot")
@dataclass(frozen=True, slots=True)
class Omniglot:
    """Handwritten characters of 50 alphabets (Omniglot, 32,460 drawings of 28 x 28), each alphabet a site.

    The target `character` counts from 1 in each alphabet; the inputs are `pixel_0` to `pixel_783`, 0 to 255.
    Characters of Vinyals' test part are test rows. `characters` gives the arrays for N-way episodes.
    """

    @property
    def synthetic(self) -> bool:
        """These were drawn by people."""
        return False

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """The alphabets in the order of their names.

        Raises:
            MissingDataError: a file is missing.
            DataError: a file is not what it should be.
        """
        every = self.characters(data)
        return {alphabet: _site(every, alphabet) for alphabet in sorted(set(every.alphabet))}

    def characters(self, data: Path | None) -> Characters:
        """All drawings, with both splits; raises as `hospitals`."""
        drawings, classes = (locate(file, data) for file in FILES)
        return read_characters(drawings, classes)

    def files(self, data: Path | None) -> Mapping[str, str]:
        """SHA-256 of both files."""
        paths = [locate(file, data) for file in FILES]
        return {path.name: digest(path) for path in paths}


def read_characters(drawings: Path, classes: Path, characters: int = CHARACTERS) -> Characters:
    """The drawings and what they are of.

    Raises:
        DataError: another number of characters, a missing column, or a part that no split has.
    """
    ink = read_arrays(drawings, {"ink": Wanted("u", ("characters", DRAWINGS, SIDE, SIDE))}, PAGE)["ink"]
    table = read_csv(classes)
    check_count(drawings, "characters", len(ink), characters, PAGE)
    check_count(classes, "characters", len(table), characters, PAGE)
    numbers = tuple(str(number) for number in range(1, characters + 1))
    for place, number in enumerate(numbers):
        _column(table, "class_id", (number,), place)
    return Characters(
        ink.astype(np.uint8, copy=False),
        _column(table, "alphabet"),
        _column(table, "vinyals_split", VINYALS),
        _column(table, "lake_split", LAKE),
    )


def _column(
    table: Records, name: str, allowed: tuple[str, ...] = (), only: int | None = None
) -> tuple[str, ...]:
    if name not in table.cells:
        raise DataError(
            f"the column '{name}' is missing",
            where=table.where,
            expected=nearest(name, table.cells),
            remedy=f"get the table again from {PAGE}",
        )
    cells = tuple(table.cells[name])
    for row, cell in enumerate(cells) if only is None else [(only, cells[only])]:
        if (allowed and cell not in allowed) or not cell:
            raise DataError(
                f"a cell in column '{name}' cannot be used",
                where=f"{table.where}, {table.place(row)}, column '{name}'",
                expected=" or ".join(allowed) or "a name",
                remedy=f"get the table again from {PAGE}",
            )
    return cells


def _site(every: Characters, alphabet: str) -> Hospital:
    members = every.members(alphabet)
    ink = every.ink[list(members)]
    drawings = ink.shape[1]
    number = [str(place) for place in range(1, len(members) + 1) for _ in range(drawings)]
    test = tuple(every.vinyals[member] == "test" for member in members for _ in range(drawings))
    cells = ArrayCells({"character": number}, PIXELS, ink.reshape(len(number), -1))
    return Hospital(Records(f"Omniglot {alphabet} (drawings, counted from 1)", cells, first_line=1), test)
