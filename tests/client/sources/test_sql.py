"""A query's answer is read exactly; nothing can be written; no error shows a password or a cell."""

import sqlite3
from pathlib import Path

import pytest
from hospital_data import database, records, refused, secret

from clinimeta.client.sources.sql import require_reading
from clinimeta.common.errors import DataError

TABLE = "CREATE TABLE cohort (who INTEGER, age REAL, sex TEXT, note BLOB);"
ROWS = [(1, 63.0, "f", None), (2, 41.5, "m", None), (3, None, "f", None)]
SECTION = {
    "kind": "sql",
    "url_file": "database.url",
    "query": "SELECT who, age, sex FROM cohort ORDER BY who",
}


def test_the_answer_of_a_query_is_text_cells(tmp_path: Path) -> None:
    database(tmp_path, TABLE, {"cohort": ROWS})
    found = records(SECTION, tmp_path)
    assert found.cells == {"who": ("1", "2", "3"), "age": ("63.0", "41.5", ""), "sex": ("f", "m", "f")}
    assert found.place(2) == "row 3"


def test_the_query_may_stand_in_a_file(tmp_path: Path) -> None:
    database(tmp_path, TABLE, {"cohort": ROWS})
    (tmp_path / "cohort.sql").write_text(
        "-- all\nWITH c AS (SELECT who FROM cohort) SELECT who AS id FROM c;\n"
    )
    section = {"kind": "sql", "url_file": "database.url", "query_file": "cohort.sql"}
    assert records(section, tmp_path).cells == {"id": ("1", "2", "3")}


def test_percent_signs_and_colons_are_left_alone(tmp_path: Path) -> None:
    database(tmp_path, TABLE, {"cohort": ROWS})
    query = "SELECT ' :x %s 100%' AS odd FROM cohort WHERE sex LIKE '%f%'"
    assert records(SECTION | {"query": query}, tmp_path).cells["odd"] == (" :x %s 100%",) * 2


def test_an_answer_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    database(tmp_path, TABLE)
    found = records(SECTION, tmp_path)
    assert (len(found), list(found.cells)) == (0, ["who", "age", "sex"])


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM cohort",
        "SELECT 1; DROP TABLE cohort",
        "SELECT 1;;",
        "WITH gone AS (DELETE FROM cohort RETURNING *) SELECT * FROM gone",
        "SELECT * INTO copy FROM cohort",
        "SELECT * FROM cohort FOR UPDATE",
        "-- SELECT\nDROP TABLE cohort",
        "/* SELECT */ PRAGMA user_version = 7",
        "ATTACH 'x.db' AS x",
        "SELECT /*! 1 INTO OUTFILE 'x' */ 1",
        "SELECT 'it''s",
        "SELECT 'a\\' FROM x",
        "SELECT 1 /* open",
        "",
        ";",
    ],
)
def test_only_one_statement_that_reads_is_a_query(query: str) -> None:
    with pytest.raises(DataError, match="only reads") as caught:
        require_reading(query, "cohort.sql")
    assert caught.value.where == "cohort.sql"


@pytest.mark.parametrize(
    "query",
    [
        "select 1",
        '  /* the DELETE flag */ SELECT deleted, "update", [into] FROM t -- INSERT\n;\n',
        "WITH a AS (SELECT 'DROP; it''s' AS x) SELECT * FROM a",
        "SELECT $$ insert; $$, $t$ ' $t$, `merge`",
        "SELECT replace(a, ';', '--') FROM t",
        'SELECT a[1], b::int, "a""b" FROM t',
    ],
)
def test_a_query_may_name_and_quote_what_it_likes(query: str) -> None:
    require_reading(query, "cohort.sql")


def test_a_database_is_opened_for_reading_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = database(tmp_path, TABLE, {"cohort": ROWS})
    before = path.read_bytes()
    monkeypatch.setattr("clinimeta.client.sources.sql.require_reading", lambda *_: None)
    error = refused(SECTION | {"query": "DELETE FROM cohort RETURNING who"}, tmp_path)
    assert "OperationalError" in error.found
    assert path.read_bytes() == before


def test_a_missing_database_is_not_made(tmp_path: Path) -> None:
    secret(tmp_path, "sqlite:///nowhere.db")
    assert "no such database file" in refused(SECTION, tmp_path).what
    assert not (tmp_path / "nowhere.db").exists()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///hospital.db?mode=rwc&uri=true", "sqlite+pysqlcipher://:pw@/hospital.db"]
)
def test_sqlite_in_any_other_form_is_refused(tmp_path: Path, url: str) -> None:
    database(tmp_path, TABLE)
    secret(tmp_path, url)
    assert "reading only" in refused(SECTION, tmp_path).what


def test_a_url_that_others_may_read_is_refused(tmp_path: Path) -> None:
    database(tmp_path, TABLE)
    secret(tmp_path, "sqlite:///hospital.db", mode=0o640)
    error = refused(SECTION, tmp_path)
    assert "chmod 600" in error.remedy
    assert "0640" in error.found


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("hunter2", "no database URL"),
        ("postgresql+psycopg://ada:hunter2@host:hunter2/db", "no database URL"),
        ("hunter2://ada:hunter2@host/db", "not known"),
        ("oracle+cx_oracle://ada:hunter2@host/db", "driver"),
    ],
)
def test_no_error_about_a_url_shows_its_password(tmp_path: Path, url: str, what: str) -> None:
    secret(tmp_path, url)
    error = refused(SECTION, tmp_path)
    assert what in error.what
    assert "hunter2" not in str(error)
    assert str(tmp_path / "database.url") in error.where


def test_a_misspelt_column_of_the_query_is_named(tmp_path: Path) -> None:
    database(tmp_path, TABLE)
    assert refused(SECTION | {"query": "SELECT agee FROM cohort"}, tmp_path).found == "no such column: agee"


def test_what_a_driver_says_is_not_repeated(tmp_path: Path) -> None:
    database(tmp_path, TABLE, {"cohort": [(1, 1.0, "[1, hunter2", None)]})
    error = refused(SECTION | {"query": "SELECT json_extract(sex, '$') AS x FROM cohort"}, tmp_path)
    assert error.what == "the database did not answer as it should"
    assert "hunter2" not in str(error)
    assert error.__cause__ is None


@pytest.mark.parametrize("cell", [b"hunter2", b"\xff hunter2"])
def test_a_cell_that_is_no_text_is_named_by_row_and_column(tmp_path: Path, cell: bytes) -> None:
    rows = [*ROWS, (4, 1.0, "f", cell)]
    database(tmp_path, TABLE, {"cohort": rows})
    error = refused(SECTION | {"query": "SELECT age, note FROM cohort"}, tmp_path)
    assert "row 4, column 'note'" in error.where
    assert "hunter2" not in str(error)


def test_a_database_that_cannot_be_opened_is_told_from_a_query_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("no password hunter2")

    database(tmp_path, TABLE).write_bytes(b"hunter2" * 1000)
    error = refused(SECTION, tmp_path)
    assert (error.what, "hunter2" in str(error)) == ("the database did not answer as it should", False)
    monkeypatch.setattr(sqlite3, "connect", down)
    error = refused(SECTION, tmp_path)
    assert (error.what, "hunter2" in str(error)) == ("the database cannot be opened", False)


def test_text_in_another_encoding_is_named_by_row_and_column(tmp_path: Path) -> None:
    database(tmp_path, TABLE, {"cohort": ROWS})
    query = "SELECT age, CAST(x'ff4142' AS TEXT) AS odd FROM cohort"
    assert "row 1, column 'odd'" in refused(SECTION | {"query": query}, tmp_path).where


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    database(tmp_path, TABLE)
    assert "column 2" in refused(SECTION | {"query": "SELECT age, sex AS age FROM cohort"}, tmp_path).where


@pytest.mark.parametrize("more", [{}, {"query": "SELECT 1", "query_file": "x.sql"}])
def test_one_query_is_needed(tmp_path: Path, more: dict[str, str]) -> None:
    error = refused({"kind": "sql", "url_file": "database.url"} | more, tmp_path)
    assert "either 'query' or 'query_file'" in error.expected


def test_a_query_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    section = {"kind": "sql", "url_file": "database.url", "query_file": "cohort.sql"}
    assert str(tmp_path / "cohort.sql") in refused(section, tmp_path).where
