"""Read a hospital's CSV file as text cells, and refuse whatever could be misread.

No message here holds a cell: cells are patients' values. That includes the first line until it is known
to hold names, so columns are named by their number when the header is at fault.
"""

import csv
import difflib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from clinimeta.client.sources import SOURCES
from clinimeta.client.sources.mapping import Columns, Scale, Translation, Values
from clinimeta.common.errors import DataError, nearest
from clinimeta.common.settings import Settings
from clinimeta.common.tasks.table import Records

SUFFIXES = (".csv", ".csv.gz")
LISTED_FILES = 10

Line = tuple[int, list[str]]
"""The number of a line (of its last one, where a quoted cell breaks the line) and its cells."""


@SOURCES.register("csv")
class CsvSource(Settings):
    """A CSV file with a header line, in UTF-8, gzipped where its name ends in `.gz`."""

    kind: Literal["csv"] = "csv"
    path: str
    columns: Columns = Field(default_factory=dict)
    values: Values = Field(default_factory=dict)
    scale: Scale = Field(default_factory=dict)

    @property
    def translation(self) -> Translation:
        """The mapping as written."""
        return Translation(self.columns, self.values, self.scale)

    def read(self, folder: Path) -> Records:
        """All lines of the file; see `read_csv`."""
        return read_csv(folder / self.path)


def read_csv(path: Path) -> Records:
    """Read a CSV file, gzipped where the name ends in `.gz`, with a header line (run by the site).

    UTF-8 with or without a byte order mark. The separator is the comma, or, where that leaves a header of
    a single column, the semicolon or the tab. A line number in a later message about these records counts
    rows, so it is too small below a cell that itself contains a line break.

    Raises:
        DataError: no such file, empty, not UTF-8 text, a header that is missing, incomplete or not
            unique, or a line with more or fewer cells than the header; names the file and the line.
    """
    text = _read_text(path)
    separator = _separator(text)
    lines = _lines(text, separator, path)
    header = _checked_header(next(lines)[1], path)
    rows = list(_rows(lines, len(header), separator, path))
    columns = zip(*rows, strict=True) if rows else iter([()] * len(header))
    return Records(str(path), dict(zip(header, columns, strict=True)))


def is_csv(path: Path) -> bool:
    """Whether a file's name says that it is a CSV file; hidden files (editors' locks) do not count.

    >>> is_csv(Path("Ulm.CSV.gz")), is_csv(Path(".~lock.ulm.csv")), is_csv(Path("notes.txt"))
    (True, False, False)
    """
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise _missing(path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(
            "the file cannot be unpacked",
            where=str(path),
            found="not a gzip file, or one that was cut off",
            expected="a gzip file, as its name ends in '.gz'",
            remedy="copy it again, or rename it if it is not packed",
        ) from None
    except OSError as error:
        raise DataError(
            "the file cannot be read", where=str(path), found=error.strerror or "", remedy="check its rights"
        ) from None
    if not content.strip():
        raise DataError(
            "the file is empty",
            where=str(path),
            found="an empty file",
            expected="a header and one line a row",
            remedy="export the table again",
        )
    return _decoded(content, path)


def _decoded(content: bytes, path: Path) -> str:
    try:
        text = content.decode("utf-8-sig")
        bad = text.find("\0")
        line = text.count("\n", 0, bad) + 1
    except UnicodeDecodeError as error:
        bad, line = error.start, content.count(b"\n", 0, error.start) + 1
    if bad >= 0:
        raise DataError(
            "the file is not UTF-8 text",
            where=f"{path}, line {line}",
            found="a byte that UTF-8 text does not contain",
            expected="comma-separated text in UTF-8",
            remedy="export the table again as 'CSV UTF-8' (a spreadsheet itself is not a CSV file)",
        )
    return text


def _separator(text: str) -> str:
    """The comma unless it leaves a single column that holds another separator; never a guess from cells."""
    first = io.StringIO(text, newline="").readline()
    if len(next(csv.reader([first]))) == 1:
        for separator in (";", "\t"):
            if separator in first:
                return separator
    return ","


def _lines(text: str, separator: str, path: Path) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error:  # its message is not ours to vouch for
        raise DataError(
            "a line cannot be read as CSV",
            where=f"{path}, at or before line {reader.line_num}",
            found='a double quote (") that is not closed, or that ends before the cell does',
            expected='quoted cells as "..." with a quote inside doubled ("")',
            remedy="correct the quotes on that line",
        ) from None


def _checked_header(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    where = f"{path}, line 1"
    remedy = "make the first line name every column, each name once"
    if any(_is_value(name) for name in names):
        raise DataError(
            "the header is missing",
            where=where,
            found="a first line that holds numbers",
            expected="a first line of column names, each with at least one letter",
            remedy=remedy,
        )
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError("a column has no name", where=f"{where}, column {number}", remedy=remedy)
        first = names.index(name) + 1
        if first < number:
            raise DataError(
                "two columns have the same name",
                where=f"{where}, columns {first} and {number}",
                remedy=remedy,
            )
    if not names:
        raise DataError("the header is missing", where=where, found="an empty first line", remedy=remedy)
    return names


def _is_value(name: str) -> bool:
    """Whether a header cell is a number, a date or a mark rather than a name.

    >>> [_is_value(name) for name in ("63", "1,5", "1e5", "2020-01-31", "?", "age", "Na", "T3", "")]
    [True, True, True, True, True, False, False, False, False]
    """
    digits = any(c.isdigit() for c in name)
    try:
        float(name)
    except ValueError:
        return bool(name) and not any(c.isalpha() for c in name)
    return digits  # float() also reads "nan" and "inf", which may be names


def _rows(lines: Iterator[Line], columns: int, separator: str, path: Path) -> Iterator[list[str]]:
    empty_line = 0
    for number, cells in lines:
        if not cells:
            empty_line = empty_line or number
        elif empty_line:  # at the end it means nothing; between rows something was lost
            raise DataError(
                "there is an empty line between rows",
                where=f"{path}, line {empty_line}",
                expected="one line a row",
                remedy='remove the line (a row whose only cell is empty is written "")',
            )
        elif len(cells) != columns:
            raise DataError(
                "a line does not fit the header",
                where=f"{path}, line {number}",
                found=_cells(len(cells)),
                expected=f"{_cells(columns)}, separated by {_SPOKEN[separator]}",
                remedy="put a cell that holds the separator in double quotes, or complete the line",
            )
        else:
            yield cells


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"


_SPOKEN = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


def _missing(path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError(
            "there is no such file",
            where=str(path),
            found="its folder does not exist either",
            remedy="check the path",
        )
    names = [other.name for other in folder.iterdir() if is_csv(other)]
    close = difflib.get_close_matches(path.name, names, n=LISTED_FILES, cutoff=0.0)
    return DataError(
        "there is no such file",
        where=str(path),
        found=f"{len(names)} CSV files in that folder",
        expected=nearest(path.name, close) if close else "",
        remedy="check the path",
    )
