"""A window and a choice make one cell of many dated events; what is not certain is not used."""

from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.client.sources.timelines import (
    Age,
    Choice,
    Died,
    Event,
    Gender,
    Person,
    Timeline,
    Window,
    age_years,
    birth_day,
    chosen,
    moment_of,
    number_cell,
)

INDEX = date(2020, 6, 15)
DAYS = ("2020-05-01", "2020-06-15", "2020-06-16", "2020-07-30")


def events(*days: str) -> list[Event]:
    return [Event(str(number), moment_of(day)) for number, day in enumerate(days)]


@pytest.mark.parametrize(
    ("when", "days", "cells"),
    [
        (None, None, "01"),
        ("before", None, "01"),
        ("after", None, "23"),
        ("ever", None, "01234"),
        ("before", 0, "1"),
        ("before", 45, "01"),
        ("before", 44, "1"),
        ("after", 1, "2"),
    ],
)
def test_a_window_is_up_to_the_day_of_the_index_or_after_it(when: str, days: int | None, cells: str) -> None:
    window = Window.model_validate({"choose": "any", "when": when, "days": days})
    counted = [event.cell for event in events(*DAYS, "") if window.cell([event], INDEX) == "1"]
    assert "".join(counted) == cells


def test_without_an_index_all_events_count() -> None:
    assert Window(choose="max").cell(events(*DAYS, ""), None) == "4"


@given(st.permutations(range(5)), st.sampled_from(["first", "last", "min", "max"]))
def test_the_order_of_reading_does_not_matter(order: list[int], choose: Choice) -> None:
    found = [Event(str(-n), moment_of(f"2020-05-0{n + 1}T08:00:00Z")) for n in order]
    assert chosen(found, choose) == {"first": "0", "last": "-4", "min": "-4", "max": "0"}[choose]


def test_events_are_ordered_by_their_instants_not_by_their_clocks() -> None:
    found = [
        Event("summer time", moment_of("2020-10-25T02:30:00+02:00")),
        Event("winter time", moment_of("2020-10-25T02:10:00+01:00")),
    ]
    assert chosen(found, "last") == "winter time"


def test_of_two_at_the_same_instant_the_reading_decides() -> None:
    found = [Event("a", moment_of("2020-05-01")), Event("b", moment_of("2020-05-01"))]
    assert (chosen(found, "first"), chosen(found, "last")) == ("a", "b")


def test_what_has_no_time_is_neither_first_nor_last_but_counts_in_a_mean() -> None:
    found = [Event("1", moment_of("2020-05-01")), Event("8", None)]
    assert [chosen(found, choice) for choice in ("first", "last", "mean", "min")] == ["1", "1", "4.5", "1"]
    assert chosen([Event("8", None)], "last") == ""


@given(st.lists(st.decimals(-1000, 1000, places=3), min_size=1))
def test_numbers_are_chosen_by_their_size_and_kept_as_written(numbers: list[object]) -> None:
    found = [Event(str(number), None) for number in numbers]
    assert float(chosen(found, "min")) == float(min(numbers))  # type: ignore[type-var, arg-type]
    assert chosen(found, "max") in {event.cell for event in found}
    assert float(chosen(found, "mean")) == pytest.approx(sum(map(float, numbers)) / len(numbers))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "day"),
    [
        ("2020", date(2020, 12, 31)),
        ("2019-02", date(2019, 2, 28)),
        ("2020-02-29", date(2020, 2, 29)),
        ("2020-02-29T23:59:59.123456+14:00", date(2020, 2, 29)),
        ("2020-02-29 23:59:59", date(2020, 2, 29)),
        (date(2020, 2, 29), date(2020, 2, 29)),
        (datetime(2020, 2, 29, 1, tzinfo=timezone(timedelta(hours=2))), date(2020, 2, 29)),
    ],
)
def test_a_moment_keeps_the_day_as_written_and_its_last_possible_one(written: object, day: date) -> None:
    moment = moment_of(written)
    assert moment is not None
    assert moment.day == day


@pytest.mark.parametrize(
    "written",
    [
        "2020-13",
        "2021-02-29",
        "20200101",
        "2020-01-01T",
        "hunter2",
        "2020-W01-1",
        "٢٠٢٠",
        2020,
        1.5,
        True,
        "0001-01-01T00:00:00+14:00",
        b"2020",
        "2020-00",
        "2020-01-00",
    ],
)
def test_what_is_no_date_is_refused_without_being_shown(written: object) -> None:
    with pytest.raises(ValueError, match=r"^no date or time$") as caught:
        moment_of(written)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("written", ["1950-00", "1950-01-00", "1950-02-30", "50", 1950])
def test_a_birth_date_that_is_none_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"^no date$"):
        birth_day(written)


def test_nobody_has_an_age_before_birth() -> None:
    assert age_years(date(2020, 6, 16), INDEX) == ""
    assert age_years(None, INDEX) == ""
    assert age_years(date(2020, 6, 15), INDEX) == "0"
    assert age_years(date(2004, 2, 29), date(2021, 2, 28)) == "16"


@pytest.mark.parametrize("value", ["1", None, True, float("nan"), float("inf"), 10**400, [1]])
def test_what_is_no_finite_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^no "):
        number_cell(value, 1.0)


def test_the_index_may_be_each_patients_own() -> None:
    take = {
        "fever": Window(choose="first"),
        "later": Window(choose="any", when="after", days=10),
        "age": Age(),
    }
    people = [
        Person("a", "line 1", date(1950, 6, 1), "male"),
        Person("b", "line 2", date(1950, 6, 1), "male"),
        Person("c", "line 3", None, ""),
    ]
    fever = {"a": events("2020-05-01", "2020-05-20"), "c": events("2020-06-02")}
    found = Timeline(index_at="fever").rows(
        "x",
        people,
        {"fever": fever, "later": {"a": events("2020-05-09"), "c": events("2020-06-30")}},
        take,
        "id",
    )
    assert found.cells == {"id": ("a", "c"), "fever": ("0", "0"), "later": ("1", "0"), "age": ("69", "")}
    assert found.place(1) == "line 3"


@pytest.mark.parametrize(
    ("settings", "take", "message"),
    [
        ({}, {}, "at least one"),
        ({}, {"id": Gender()}, "another name"),
        ({"index": INDEX, "index_at": "x"}, {"x": Window()}, "either"),
        ({"index_at": "y"}, {"x": Window()}, "for 'index_at'"),
        ({"index_at": "x"}, {"x": Gender()}, "for 'index_at'"),
        ({"index_at": "x"}, {"x": Window(choose="max")}, "for 'index_at'"),
        ({"index_at": "x"}, {"x": Window(when="after")}, "for 'index_at'"),
        ({}, {"x": Age()}, "'x' needs"),
        ({}, {"x": Died(when="after")}, "'x' needs"),
        ({}, {"x": Window(days=3)}, "'x' needs"),
        ({"index": INDEX}, {"x": Window(when="ever", days=3)}, "no 'days'"),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(settings: dict, take: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Timeline.model_validate(settings).check_take(take, "id")


def test_nothing_of_a_patient_is_in_a_repr() -> None:
    text = repr([Event("hunter2", moment_of("1987-01-01")), Person("hunter2", "line 3", INDEX, "hunter2")])
    assert text == "[Event(...), Person('line 3')]"
