"""Read a Parquet file, or a folder of them, as text cells; needs the extra `parquet` (pyarrow).

Types become text as `cells` says. A 32-bit float is the shortest text of a 32-bit float ("0.1", not what
its 64-bit neighbour is called), and times finer than a microsecond lose the rest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from clinimeta.client.sources import SOURCES
from clinimeta.client.sources.cells import text_cells
from clinimeta.client.sources.mapping import Columns, Scale, Translation, Values
from clinimeta.common.errors import DataError
from clinimeta.common.settings import Settings
from clinimeta.common.tasks.table import Records

SUFFIX = ".parquet"


@SOURCES.register("parquet")
class ParquetSource(Settings):
    """A Parquet file, or a folder whose `*.parquet` files have the same columns."""

    kind: Literal["parquet"] = "parquet"
    path: str
    columns: Columns = Field(default_factory=dict)
    values: Values = Field(default_factory=dict)
    scale: Scale = Field(default_factory=dict)

    @property
    def translation(self) -> Translation:
        """The mapping as written."""
        return Translation(self.columns, self.values, self.scale)

    def read(self, folder: Path) -> Records:
        """All rows, of several files in the order of their names; rows are counted from 1 in each file."""
        path = folder / self.path
        parts = [(file, _read(file)) for file in _files(path)]
        names = list(parts[0][1])
        for file, part in parts:
            if list(part) != names:
                raise DataError(
                    "two files of the folder have other columns",
                    where=f"{parts[0][0]} and {file.name}",
                    found=f"{len(names)} and {len(part)} columns",
                    expected="the same columns in the same order",
                    remedy="keep one table in the folder",
                )
        single = len(parts) == 1 and parts[0][0] == path
        places = [
            f"row {row}" if single else f"{file.name}, row {row}"
            for file, part in parts
            for row in range(1, len(next(iter(part.values()))) + 1)
        ]
        cells = {name: tuple(cell for _, part in parts for cell in part[name]) for name in names}
        return Records(str(path), cells, places=places)


def _files(path: Path) -> Sequence[Path]:
    if not path.exists():
        raise DataError("there is no such file", where=str(path), remedy="check the path")
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise DataError(
            "there is no Parquet file in the folder", where=str(path), expected=f"files named *{SUFFIX}"
        )
    return files


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    """Column -> text cells."""
    arrow, parquet = _pyarrow(path)
    try:
        # Not `read_table`, which would take columns from the names of the folders around the file.
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except (arrow.ArrowException, OSError, ValueError) as error:  # its message is not ours to vouch for
        raise DataError(
            "the file cannot be read as Parquet",
            where=str(path),
            found=f"an error of pyarrow's, {type(error).__name__}",
            expected="a Parquet file that is complete and not encrypted",
            remedy="export the table again, and check the file's rights",
        ) from None
    names = [name.strip() for name in table.column_names]
    for number, name in enumerate(names, start=1):
        if not name or names.index(name) + 1 < number:
            raise DataError(
                "two columns have the same name" if name else "a column has no name",
                where=f"{path}, column {number}",
                remedy="name every column, each name once",
            )
    if not names:
        raise DataError("the file has no columns", where=str(path), remedy="export the table again")
    return {
        name: _column(column, name, path, arrow) for name, column in zip(names, table.columns, strict=True)
    }


def _column(column: Any, name: str, path: Path, arrow: Any) -> tuple[str, ...]:
    kind = column.type
    if arrow.types.is_timestamp(kind):  # as Python's times have no nanoseconds
        column = column.cast(arrow.timestamp("us", kind.tz), safe=False)
    elif arrow.types.is_time(kind):
        column = column.cast(arrow.time64("us"), safe=False)
    values = column.to_pylist()
    if arrow.types.is_float32(kind) or arrow.types.is_float16(kind):
        narrow = np.float32 if arrow.types.is_float32(kind) else np.float16
        values = [None if value is None else float(str(narrow(value))) for value in values]
    return text_cells(values, lambda row: f"{path}, row {row + 1}, column '{name}'")


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            "Parquet files need the package pyarrow, which is not installed",
            where=str(path),
            remedy="pip install 'clinimeta[parquet]', or export the table as CSV",
        ) from None
    return pyarrow, pyarrow.parquet
