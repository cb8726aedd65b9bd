"""The certificate says first whether it may be relied on; it is one page that fetches and runs nothing."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import COORDINATOR, SITE, Receipts, chain, chained, entry, receipts_for

from clinimeta.client.activity import by_month, by_study, refusals
from clinimeta.client.certificate import SHOWN, Subject, certificate
from clinimeta.client.ledger import Cost, Entry, Record
from clinimeta.client.ledger_check import examine

SUBJECT = Subject("Ulm", "12345 67890", "hub", "ef" * 32)
NOW = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
NOTHING_LEFT = "Nothing has left this hospital"
NO_RECORD = "No patient's record has left this hospital"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """A page's tags, attributes and visible text; raises where a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.words = list[str](), list[tuple[str, str]](), list[str]()
        self._open = list[str]()
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self._open):
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def made(records: list[Record], receipts: Receipts | None = None, subject: Subject = SUBJECT) -> str:
    return certificate(
        subject, records, examine(records, receipts or {}, SITE.public, COORDINATOR.public), NOW
    )


def page(*args: object) -> Page:
    return Page(made(*args))  # type: ignore[arg-type]


def of(*entries: Entry) -> list[Record]:
    return chained(one.canonical() for one in entries)


def first_words(found: Page) -> str:
    """What stands in the box on top, the first thing after the heading and whose ledger it is."""
    return found.text.split("What these messages are")[0].split("12345 67890.")[1].strip()


def test_a_sound_ledger_names_what_is_needed() -> None:
    records = of(
        entry(
            1, kind="Introduction", study="", arm="", plan="", round=None, cost=None, at="2026-10-01T08:00"
        ),
        entry(2),
        entry(3, kind="Refusal", outcome="not_approved", study="stroke", cost=None),
        entry(4, kind="masked", to="hub2 (999)"),
    )
    found = page(records, receipts_for(records, 3))
    top = first_words(found)
    assert top.startswith(NO_RECORD)
    assert "In 4 messages, 3.9 KiB left between 2026-10-01 and 2026-11-23" in top
    assert "to 2 recipients" in top
    assert "Unchanged: all 4 records" in top
    assert "everything up to record 3 is counter-signed by the coordinator. Later ones (1) are" in top
    for needed in (
        "What left Ulm",
        "Made 2026-11-24T09:30+00:00",
        "12345 67890",
        "sepsis",
        "stroke",
        "epsilon 1.5 at delta 1e-06",
        "hub (12345)",
        "hub2 (999)",
        "ef" * 32,
        "2026-10 0 1 0",
        "nobody at the site has approved this plan",
        "under a mask: unreadable alone",
        "greeting: its name",
        "round 4",
        "What this page cannot show",
    ):
        assert needed in found.text, needed


def test_an_empty_ledger_says_that_nothing_left() -> None:
    assert first_words(page([])).startswith(NOTHING_LEFT)


BROKEN = {
    "content": lambda record: replace(record, content=record.content.replace("sepsis", "asthma")),
    "unreadable": lambda record: replace(record, content="{"),
    "signature": lambda record: replace(record, signature=bytes(64)),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_ledger_is_shown_as_such_first(how: str) -> None:
    records = chain()
    records[3] = BROKEN[how](records[3])
    found = page(records, receipts_for(records, 2))
    top = first_words(found)
    assert top.startswith("✗ Changed: record 4 is not as it was written")
    assert "Do not rely on this page" in top
    assert ("1 more cannot be read" in top) == (how == "unreadable")
    assert not any(claim in found.text for claim in (NO_RECORD, NOTHING_LEFT, "✓"))
    assert ("class", "box bad") in found.attributes


def test_an_incomplete_ledger_is_shown_as_such_first() -> None:
    records = chain()
    for left, words in ((records[:3], "2 records that are known"), (records[:4], "1 record that is known")):
        found = page(left, receipts_for(records, *(n for n in (4, 6) if n > len(left))))
        top = first_words(found)
        assert top.startswith(f"✗ Not all there: {words}")
        assert f"number {4 if len(left) == 3 else 6}." in top
        assert not any(claim in found.text for claim in (NO_RECORD, NOTHING_LEFT, "Complete:"))
    emptied = page([], receipts_for(records, 1))
    assert first_words(emptied).startswith("✗ Not all there")
    assert NOTHING_LEFT not in emptied.text


def test_foreign_receipts_are_shown_first() -> None:
    records = chain()
    found = page(records, receipts_for(records, 2, by=SITE))
    assert first_words(found).startswith(
        "✗ Completeness unknown: 1 counter-signature is not the coordinator's"
    )
    assert NO_RECORD not in found.text


NASTY = st.text("<>&\"'/ax={}%", min_size=1, max_size=20) | st.sampled_from(
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "</style><b>", "<!--"]
)


@given(name=NASTY)
@settings(max_examples=40)
def test_names_are_text_wherever_they_stand(name: str) -> None:
    subject = Subject(name, name, name, name)
    fields = dict.fromkeys(("to", "kind", "study", "arm", "outcome", "run", "plan", "policy"), name)
    before, after = (
        page(of(entry(1, **words)), None, who) for words, who in (({}, SUBJECT), (fields, subject))
    )
    assert set(after.tags) <= {*before.tags, "h2"}
    assert set(after.attributes) <= {*before.attributes, ("class", "n"), ("class", "day")}
    assert "49" not in after.text.replace(name, "")
    assert " ".join(name.split()) in after.text


def test_the_page_runs_and_fetches_nothing() -> None:
    text = made(chain(), receipts_for(chain(), 6))
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    assert {name for name, _ in found.attributes} <= {
        *("lang", "charset", "name", "content", "http-equiv", "class", "scope", "colspan"),
    }
    assert not re.search(r"https?:|//|url\(|@import|javascript:", text)
    assert "default-src 'none'" in text
    assert '<meta charset="utf-8">' in text


def test_the_last_records_are_listed_and_the_others_counted() -> None:
    records = of(*(entry(number % 60, run=f"run-{number}") for number in range(1, SHOWN + 12)))
    found = page(records)
    assert f"The last {SHOWN} of {SHOWN + 11}; all of them:" in found.text
    assert found.tags.count("tr") == SHOWN + 1 + 2 + 2
    assert f"{SHOWN + 11} 2026-11-23T10:00" in found.text


def test_numbers_are_those_of_the_records_where_some_are_gone() -> None:
    records = chain()
    del records[1]
    assert re.search(r"\b1 2026-11-23T10:00 .* 3 2026-11-23T10:00", page(records).text)


def test_whoever_could_read_a_sum_is_said() -> None:
    words = "Some sums of this hospital could be read by the coordinator alone"
    for kind, readable in (
        ("MetaGradient", True),
        ("Quantised", True),
        ("masked", False),
        ("Masking", False),
    ):
        assert (words in page(of(entry(1, kind=kind))).text) == readable, kind
    assert words not in page(of(entry(1, kind="MetaGradient", outcome="not_approved"))).text


def test_what_studies_cost_adds_up_over_their_plans_and_is_void_without_a_promise() -> None:
    plans = [
        entry(1, plan="a", cost=Cost(1.0, 1e-6, 4.0)),
        entry(2, plan="b", cost=Cost(0.5, 2e-6, 3.0)),
        entry(3, plan="a", cost=Cost(2.0, 1e-6, 4.0)),
        entry(4, plan="b", kind="Refusal", outcome="budget_spent", cost=None),
    ]
    [line] = by_study(plans)
    assert line.cost is not None
    assert (line.cost.epsilon, line.cost.noise_multiplier) == (2.5, 3.0)
    assert line.cost.delta == pytest.approx(3e-6)
    assert (line.answers, line.others, line.refused, line.bytes) == (3, 0, 1, 4010)
    [line] = by_study([*plans, entry(5, plan="c", cost=None)])
    assert line.cost is None, "one answer without a promise, and there is none for the study"
    assert "no mathematical promise" in page(of(entry(1, cost=None))).text
    greeting = entry(1, kind="Introduction", study="", cost=None)
    assert "nothing from the table" in page(of(greeting)).text
    assert "no mathematical promise" not in page(of(greeting)).text


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", ""]), st.sampled_from(["sent", "internal"])), max_size=9)
)
def test_nothing_is_counted_twice_or_left_out(what: list[tuple[str, str]]) -> None:
    entries = [entry(n, study=study, outcome=outcome) for n, (study, outcome) in enumerate(what)]
    for lines in (by_study(entries), by_month(entries)):
        assert sum(line.answers + line.others + line.refused for line in lines) == len(entries)
        assert sum(line.bytes for line in lines) == sum(one.bytes for one in entries)
    assert sum(refusals(entries).values()) == sum(outcome != "sent" for _, outcome in what)
