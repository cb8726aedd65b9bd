"""A CSV file is read exactly, or refused with a message that helps and shows no patient's value."""

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.client.sources.csv_files import LISTED_FILES, read_csv
from clinimeta.common.errors import DataError

SECRET = "4711"
PACKED = gzip.compress(b"age,sex\n4711,1\n", mtime=0)

NAMES = st.text(st.characters(categories=("Lu", "Ll", "Lo")), min_size=1, max_size=8).filter(
    lambda name: name == name.strip()
)
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    header = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    row = st.lists(CELLS, min_size=len(header), max_size=len(header))
    return header, draw(st.lists(row, max_size=6))


def write(folder: Path, content: str | bytes, name: str = "ulm.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_csv(path)
    assert str(path) in caught.value.where
    assert SECRET not in str(caught.value)
    return caught.value


@given(table=tables(), packed=st.booleans(), mark=st.booleans(), separator=st.sampled_from(",;\t"))
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    table: tuple[list[str], list[list[str]]],
    packed: bool,
    mark: bool,
    separator: str,
) -> None:
    header, rows = table
    path = tmp_path_factory.mktemp("csv") / ("ulm.csv.gz" if packed else "ulm.csv")
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows([header, *rows])
    content = ("\ufeff" * mark + text.getvalue()).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    records = read_csv(path)
    assert list(records.cells) == header
    assert len(records) == len(rows)
    assert [list(row) for row in zip(*records.cells.values(), strict=True)] == rows
    assert (records.where, records.first_line) == (str(path), 2)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_is_read(tmp_path: Path, end: str) -> None:
    path = write(tmp_path, end.join(["age,sex", "63,1", "41,0", ""]))
    assert read_csv(path).cells == {"age": ("63", "41"), "sex": ("1", "0")}


def test_a_header_without_rows_is_a_table_without_rows(tmp_path: Path) -> None:
    records = read_csv(write(tmp_path, "age,sex\n"))
    assert (list(records.cells), len(records)) == (["age", "sex"], 0)


def test_spaces_around_a_column_name_do_not_count(tmp_path: Path) -> None:
    assert list(read_csv(write(tmp_path, " age , sex\n63,1\n")).cells) == ["age", "sex"]


def test_the_comma_wins_where_the_header_holds_one(tmp_path: Path) -> None:
    assert list(read_csv(write(tmp_path, "age; years,sex\n63,1\n")).cells) == ["age; years", "sex"]


def test_empty_lines_at_the_end_mean_nothing(tmp_path: Path) -> None:
    assert len(read_csv(write(tmp_path, "age,sex\n63,1\n\n\n"))) == 1


def test_the_folder_is_searched_for_the_nearest_name(tmp_path: Path) -> None:
    for name in ("ulm.csv", "bonn.csv.gz", ".ulm.csv.swp.csv", "notes.txt"):
        write(tmp_path, "x", name)
    error = refused(tmp_path / "ulmm.csv")
    assert error.expected == "did you mean 'ulm.csv'? there is: bonn.csv.gz, ulm.csv"


def test_a_missing_file_lists_a_few_names_only(tmp_path: Path) -> None:
    for number in range(3 * LISTED_FILES):
        write(tmp_path, "x", f"ward{number:02}.csv")
    error = refused(tmp_path / "ward.csv")
    assert error.expected.count("ward") == LISTED_FILES + 1  # one of them as the nearest
    assert error.found == f"{3 * LISTED_FILES} CSV files in that folder"


def test_a_missing_file_in_an_empty_folder_promises_nothing(tmp_path: Path) -> None:
    assert refused(tmp_path / "ulm.csv").expected == ""


def test_a_missing_folder_is_named_as_such(tmp_path: Path) -> None:
    assert "folder does not exist" in refused(tmp_path / "nowhere" / "ulm.csv").found


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "ulm.csv").mkdir()
    assert "cannot be read" in refused(tmp_path / "ulm.csv").what


@pytest.mark.parametrize("content", ["", "\n", "  \r\n \n"])
def test_an_empty_file_is_called_that(tmp_path: Path, content: str) -> None:
    assert refused(write(tmp_path, content)).found == "an empty file"


@pytest.mark.parametrize(
    "content",
    [b"age,sex\n4711,1\n", PACKED[:-12], PACKED[:11] + b"\xff" * 9],
    ids=["not packed", "cut off", "damaged"],
)
def test_a_broken_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "gzip" in refused(write(tmp_path, content, "ulm.csv.gz")).found


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("age,sex\n4711,1\n".encode("utf-16"), 1),
        ("age,größe\n".encode("latin-1"), 1),
        ("age,name\n4711,a\n4711,ö\n".encode("latin-1"), 3),
        (b"age,sex\n4711,\x00\n", 2),
    ],
)
def test_what_is_not_utf8_text_is_refused_with_its_line(tmp_path: Path, content: bytes, line: int) -> None:
    error = refused(write(tmp_path, content))
    assert "UTF-8" in error.what
    assert error.where.endswith(f"line {line}")


@pytest.mark.parametrize(
    "text", ['age,sex\n"4711,1\n', 'age,sex\n"4711"x,1\n', f"age,sex\n{'4711' * 40_000},1\n"]
)
def test_a_line_that_is_not_csv_is_refused(tmp_path: Path, text: str) -> None:
    error = refused(write(tmp_path, text))
    assert "as CSV" in error.what
    assert "line 2" in error.where


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("age,sex\n63,1\n4711\n", "1 cell", "2 cells, separated by a comma"),
        ("age;sex;cp\n63;1;1\n4711;1;1;1\n", "4 cells", "3 cells, separated by a semicolon"),
        ("age\n63\n4711,5\n", "2 cells", "1 cell, separated by a comma"),
        ("age\tsex\n63\t1\n4711\n", "1 cell", "2 cells, separated by a tab"),
    ],
)
def test_a_line_that_does_not_fit_the_header_is_named(
    tmp_path: Path, text: str, found: str, expected: str
) -> None:
    error = refused(write(tmp_path, text))
    assert (error.found, error.expected) == (found, expected)
    assert error.where.endswith("line 3")


def test_the_line_is_the_files_own_also_below_a_cell_of_two_lines(tmp_path: Path) -> None:
    error = refused(write(tmp_path, 'age,note\n63,"two\nlines"\n4711\n'))
    assert error.where.endswith("line 4")


def test_an_empty_line_between_rows_is_named(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "age,sex\n63,1\n\n\n4711,1\n"))
    assert error.where.endswith("line 3")


@pytest.mark.parametrize(
    "first", ["4711,1", "4711.5;male", "4711", "?,age", "2020-01-31,x", "1e5,x", "47,11;x"]
)
def test_a_first_line_of_values_is_not_a_header(tmp_path: Path, first: str) -> None:
    error = refused(write(tmp_path, f"{first}\n{first}\n"))
    assert error.what == "the header is missing"


def test_an_empty_first_line_is_not_a_header(tmp_path: Path) -> None:
    assert refused(write(tmp_path, "\nage,sex\n4711,1\n")).found == "an empty first line"


@pytest.mark.parametrize(
    ("header", "where"),
    [("age,,sex", "column 2"), (",age,sex", "column 1"), ("age,sex, age", "columns 1 and 3")],
)
def test_a_header_names_every_column_once(tmp_path: Path, header: str, where: str) -> None:
    assert refused(write(tmp_path, f"{header}\n4711,1,1\n")).where.endswith(f"line 1, {where}")
