"""Read the arrays of an `.npz` file, and refuse what is not the data set's: names, kinds, sizes, entries.

No message holds an entry: entries are patients' values. Nothing is unpickled.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from clinimeta.common.errors import DataError, nearest

KINDS = {"u": "whole numbers", "i": "whole numbers", "f": "numbers", "b": "true or false", "U": "text"}
Arrays = dict[str, Shaped[np.ndarray, "..."]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an array must be: its NumPy kinds ("iu": whole numbers), and each size, or a name for one.

    Arrays that name the same size must agree on it.
    """

    kinds: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        """For messages.

        >>> str(Wanted("f", ("rows", 25)))
        'numbers, [rows, 25]'
        """
        return f"{KINDS[self.kinds[0]]}, [{', '.join(map(str, self.shape))}]"


def read_arrays(path: Path, wanted: Mapping[str, Wanted], page: str) -> Arrays:
    """The wanted arrays of a file; others in it are left alone. `page` is where the file comes from.

    Raises:
        DataError: it is no `.npz` file, an array is missing, or is not of its kind and shape.
    """
    arrays: Arrays = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            for name in wanted:
                if name not in file.files:
                    raise _absent(path, name, file.files, page)
                arrays[name] = file[name]
    except (OSError, ValueError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error):
        raise DataError(
            "the file cannot be read as arrays",
            where=str(path),
            found="no .npz file, one that was cut off, or one that holds Python objects",
            expected=f"an .npz file with {', '.join(wanted)}",
            remedy=f"get it again from {page}",
        ) from None
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        _check_shape(path, name, array, wanted[name], sizes, page)
    return arrays


def check_count(where: Path, what: str, found: int, expected: int, page: str) -> None:
    """Refuse a file that does not hold as many as the data set has.

    Raises:
        DataError: another number.
    """
    if found != expected:
        raise DataError(
            f"the file does not hold all {what}, or too many",
            where=str(where),
            found=f"{found} {what}",
            expected=f"{expected} {what}",
            remedy=f"get it again from {page}",
        )


def check_entries(
    where: Path,
    name: str,
    fits: Bool[np.ndarray, "..."],
    expected: str,
    page: str,
    columns: Sequence[str] = (),
) -> None:
    """Refuse the first entry of array `name` that does not fit; `columns` names those of a table.

    Raises:
        DataError: names file, array, row (from 1) and column (from 1 where it has no name).
    """
    if fits.all():
        return
    row, *rest = (int(index) for index in np.argwhere(~fits)[0])
    place = f"{where}, array '{name}', row {row + 1}"
    if rest:
        place += f", column '{columns[rest[0]]}'" if columns else f", column {rest[0] + 1}"
    raise DataError(
        f"an entry of '{name}' cannot be used",
        where=place,
        found=f"{int((~fits).sum())} such entries",
        expected=expected,
        remedy=f"get the file again from {page}",
    )


def check_names(
    where: Path, name: str, found: Shaped[np.ndarray, " names"], expected: Sequence[str], page: str
) -> None:
    """Refuse an array of names that are not the data set's, in their order.

    Raises:
        DataError: names the first that differs by its place.
    """
    check_count(where, f"names in '{name}'", len(found), len(expected), page)
    for number, (one, other) in enumerate(zip(found.tolist(), expected, strict=True), start=1):
        if one != other:
            raise DataError(
                f"the names in '{name}' are not the data set's",
                where=f"{where}, array '{name}', row {number}",
                expected=f"'{other}'",
                remedy=f"get the file again from {page}",
            )


def _check_shape(
    path: Path,
    name: str,
    array: Shaped[np.ndarray, "..."],
    wanted: Wanted,
    sizes: dict[str, int],
    page: str,
) -> None:
    fits = array.dtype.kind in wanted.kinds and array.ndim == len(wanted.shape)
    for found, size in zip(array.shape, wanted.shape, strict=False):
        fits = fits and found == (sizes.setdefault(size, found) if isinstance(size, str) else size)
    if not fits:
        known: dict[str, Any] = {size: sizes.get(str(size), size) for size in map(str, wanted.shape)}
        agreed = ", ".join(f"{size} = {value}" for size, value in known.items() if str(value) != size)
        raise DataError(
            f"the array '{name}' is not what it should be",
            where=f"{path}, array '{name}'",
            found=f"{KINDS.get(array.dtype.kind, 'something else')}, {list(array.shape)}",
            expected=f"{wanted}" + (f" with {agreed}" if agreed else ""),
            remedy=f"get the file again from {page}",
        )


def _absent(path: Path, name: str, there: Sequence[str], page: str) -> DataError:
    return DataError(
        f"the array '{name}' is missing",
        where=str(path),
        expected=nearest(name, there) if there else f"an array '{name}'",
        remedy=f"get the file again from {page}",
    )
