"""The whole protocol: the sum is exact under any pattern of drop-outs, and too few is a typed error."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parties import (
    DIM,
    MODEL,
    POLICY,
    TODAY,
    consortium,
    contribution_of,
    identity,
    names_of,
    plain_sum,
    site_of,
    terms_of,
)

from clinimeta.common.errors import AttemptError
from clinimeta.common.secagg.coordinator import Outcome
from clinimeta.common.secagg.messages import (
    PHASES,
    Advert,
    Confirm,
    Masked,
    Shares,
    Unmask,
    to_bytes,
)
from clinimeta.common.secagg.packing import decode
from clinimeta.common.secagg.protocol import Rounds, one_round, play, run, run_pipelined
from clinimeta.common.secagg.ring import Ring
from clinimeta.common.secagg.session import Session, advert_message


def a_round(n: int, silent: dict[str, str] | None = None, **changes: Any) -> tuple[Outcome, np.ndarray]:
    """The outcome, and the survivors' sum without masks."""
    roster, sites = consortium(n)
    terms = terms_of(roster, **changes)
    given = {name: contribution_of(name) for name in sites}
    outcome = run(terms, roster, TODAY, sites, given, MODEL, silent)
    return outcome, plain_sum(terms, sites, given, outcome.survivors)


def expected(n: int, silent: dict[str, str]) -> tuple[str | None, list[str]]:
    """Who survives, and in which phase the round fails: the rules once more, on names alone."""
    left, survivors, t = sorted(names_of(n)), list[str](), 0
    for phase in PHASES:
        left = [name for name in left if silent.get(name) != phase]
        if phase == "advert":
            t = 2 * len(left) // 3 + 1
        if phase == "masked":
            survivors = left
        if len(left) < (3 if phase == "advert" else t if phase in ("confirm", "unmask") else max(t, 3)):
            return phase, []
    return None, survivors


PATTERNS = st.integers(3, 8).flatmap(
    lambda n: st.tuples(
        st.just(n), st.dictionaries(st.sampled_from(names_of(n)), st.sampled_from(PHASES), max_size=n)
    )
)


@given(pattern=PATTERNS)
@settings(max_examples=60)
def test_the_sum_is_exact_under_any_pattern_of_drop_outs_or_there_is_none(
    pattern: tuple[int, dict[str, str]],
) -> None:
    n, silent = pattern
    fails_in, survivors = expected(n, silent)
    if fails_in is not None:
        with pytest.raises(AttemptError) as caught:
            a_round(n, silent)
        assert caught.value.phase == fails_in
        assert caught.value.may_retry is (fails_in != "unmask")
        return
    outcome, plain = a_round(n, silent)
    assert (outcome.words == plain).all()
    assert list(outcome.survivors) == survivors
    assert outcome.dropped == {name: (phase, "silent") for name, phase in silent.items()}


@pytest.mark.parametrize("n", [3, 4, 5, 6, 10])
def test_as_many_may_drop_out_as_the_threshold_leaves_and_not_one_more(n: int) -> None:
    spare = n - (2 * n // 3 + 1)
    for phase in PHASES[1:]:
        outcome, plain = a_round(n, dict.fromkeys(names_of(n)[:spare], phase))
        assert (outcome.words == plain).all()
        assert len(outcome.survivors) == (n if phase in ("confirm", "unmask") else n - spare)
        with pytest.raises(AttemptError) as caught:
            a_round(n, dict.fromkeys(names_of(n)[: spare + 1], phase))
        assert caught.value.phase == phase


def test_the_floats_are_the_sum_to_the_promised_error() -> None:
    outcome, _ = a_round(10)
    given = [contribution_of(name) for name in names_of(10)]
    step = 1 / Ring(DIM, 2.0, (), 10).scale(2.0)
    real = sum(c.vector.astype(np.float64) for c in given)
    assert np.abs(outcome.total.vector - real).max() < 10 * step
    assert round(outcome.total.columns["tasks"]) == 40
    assert outcome.total.columns["query_loss"] == pytest.approx(
        sum(c.columns["query_loss"] for c in given), abs=1e-3
    )


def test_the_error_says_who_dropped_out_when_and_what_to_do() -> None:
    with pytest.raises(AttemptError) as caught:
        a_round(5, {"bern": "shares", "köln": "masked"})
    error = caught.value
    assert (error.phase, error.present, error.needed) == ("masked", 3, 4)
    assert error.dropped == {"bern": ("shares", "silent"), "köln": ("masked", "silent")}
    assert "bern: shares, silent" in str(error)
    assert "a new attempt" in str(error)
    with pytest.raises(AttemptError, match="a new round"):
        a_round(4, dict.fromkeys(names_of(4)[:2], "unmask"))


def test_a_new_attempt_of_the_same_round_succeeds_with_new_keys() -> None:
    roster, sites = consortium(4)
    given = {name: contribution_of(name) for name in sites}
    with pytest.raises(AttemptError):
        run(terms_of(roster), roster, TODAY, sites, given, MODEL, dict.fromkeys(("bern", "graz"), "masked"))
    keys = [decode(Session, kept).advert for site in sites.values() for kept in site.journal.secrets.values()]
    terms = terms_of(roster, attempt=1)
    outcome = run(terms, roster, TODAY, sites, given, MODEL)
    assert (outcome.words == plain_sum(terms, sites, given, sorted(sites))).all()
    again = {
        decode(Session, kept).advert for site in sites.values() for kept in site.journal.secrets.values()
    }
    assert not again & set(keys)  # a new attempt erases the old one's secrets, and its own are used up


def test_after_a_round_no_survivor_keeps_a_secret() -> None:
    roster, sites = consortium(5)
    given = {name: contribution_of(name) for name in sites}
    run(terms_of(roster), roster, TODAY, sites, given, MODEL, {"bern": "masked"})
    assert [name for name, site in sites.items() if site.journal.secrets] == ["bern"]


def test_a_masked_vector_keeps_neither_self_mask_nor_mask_key_at_its_site() -> None:
    roster, sites = consortium(5)
    given = {name: contribution_of(name) for name in sites}
    with pytest.raises(AttemptError):
        run(terms_of(roster), roster, TODAY, sites, given, MODEL, dict.fromkeys(sites, "confirm"))
    for site in sites.values():
        (kept,) = site.journal.secrets.values()
        session = decode(Session, kept)
        assert (session.channel_secret, session.mask_secret, session.self_seed) == (b"", b"", b"")


@given(
    n=st.integers(8, 16), half=st.integers(2, 5), gone=st.sets(st.integers(0, 15), max_size=2), data=st.data()
)
@settings(max_examples=8)
def test_a_sparse_graph_gives_the_same_sum(n: int, half: int, gone: set[int], data: st.DataObject) -> None:
    silent = {names_of(n)[i]: data.draw(st.sampled_from(PHASES[1:])) for i in gone if i < n}
    try:
        outcome, plain = a_round(n, silent, degree=2 * half)
    except AttemptError:  # two of few neighbours can be too many
        assert 2 * half < 6
        return
    assert (outcome.words == plain).all()


def test_one_site_with_its_own_terms_or_roster_drops_out_with_its_refusal() -> None:
    roster, sites = consortium(5)
    sites["lund"] = site_of("lund", roster, policy=replace(POLICY, min_cohort=4))
    given = {name: contribution_of(name) for name in sites}
    outcome = run(terms_of(roster), roster, TODAY, sites, given, MODEL)
    assert outcome.dropped == {"lund": ("advert", "refused: cohort_too_small")}
    assert "lund" not in outcome.survivors


# What a faulty or malicious site can do to the others: cost them a site, not the round.


def among(n: int, mischief: dict[str, Callable[[Any], Any]], **changes: Any) -> tuple[Outcome, np.ndarray]:
    """A round in which each answer of the sites in `mischief` goes through their function."""
    roster, sites = consortium(n)
    terms = terms_of(roster, **changes)
    given = {name: contribution_of(name) for name in sites}

    def ask(requests: Any) -> Any:
        return {
            name: mischief.get(name, lambda answer: answer)(
                sites[name].answer(request, lambda name=name: given[name], MODEL)
            )
            for name, request in requests.items()
        }

    outcome = play(one_round(terms, roster, TODAY, sorted(sites), MODEL), ask)
    return outcome, plain_sum(terms, sites, given, outcome.survivors)


def instead(kind: type, **changes: Any) -> Callable[[Any], Any]:
    return lambda answer: replace(answer, **changes) if isinstance(answer, kind) else answer


OTHER_KEY = replace(terms_of(consortium(3)[0]), round=6).key


@pytest.mark.parametrize(
    ("phase", "mischief"),
    [
        ("advert", instead(Advert, mask_key=bytes(32))),
        ("advert", instead(Advert, site="graz")),
        ("shares", instead(Shares, sealed={})),
        ("shares", instead(Shares, key=OTHER_KEY)),
        ("shares", instead(Shares, site="graz")),
        ("masked", instead(Masked, words=bytes(4))),
        ("masked", instead(Masked, key=OTHER_KEY)),
        ("confirm", instead(Confirm, signature=bytes(64))),
        ("confirm", instead(Confirm, key=OTHER_KEY)),
        ("unmask", instead(Unmask, key=OTHER_KEY)),
        ("unmask", instead(Unmask, site="graz")),
    ],
)
def test_an_unusable_answer_counts_as_a_drop_out(phase: str, mischief: Callable[[Any], Any]) -> None:
    outcome, plain = among(5, {"lund": mischief})
    assert (outcome.words == plain).all()
    assert outcome.dropped == {"lund": (phase, "unusable answer")}


@pytest.mark.parametrize("key", ["channel_key", "mask_key"])
@pytest.mark.parametrize("value", [bytes(32), bytes(31), (2**255 - 19).to_bytes(32, "little")])
def test_a_signed_advert_with_an_unusable_key_costs_only_its_site(key: str, value: bytes) -> None:
    def sign_it(answer: Any) -> Any:
        if not isinstance(answer, Advert):
            return answer
        bad = replace(answer, **{key: value})
        terms = terms_of(consortium(5)[0])
        signed = advert_message(terms, "lund", bad.channel_key, bad.mask_key, bad.nonce)
        return replace(bad, signature=identity("lund").sign(signed))

    outcome, plain = among(5, {"lund": sign_it})
    assert (outcome.words == plain).all()
    assert outcome.dropped == {"lund": ("advert", "unusable answer")}


def bad_shares(answer: Any) -> Any:
    if not isinstance(answer, Unmask):
        return answer
    wrong = dict.fromkeys(answer.self_shares, bytes(33))
    return replace(answer, self_shares=wrong, key_shares=dict.fromkeys(answer.key_shares, b"\xff" * 33))


@pytest.mark.parametrize("bad", [("bern",), ("bern", "zürich"), ("bern", "graz", "köln")])
def test_wrong_shares_are_tried_around(bad: tuple[str, ...]) -> None:
    outcome, plain = among(10, dict.fromkeys(bad, bad_shares))
    assert (outcome.words == plain).all()


def test_more_wrong_shares_than_spare_ones_open_nothing() -> None:
    with pytest.raises(AttemptError, match="a new round"):
        among(5, dict.fromkeys(("bern", "graz"), bad_shares))


def test_a_wrong_commitment_stops_the_round_and_never_gives_a_wrong_sum() -> None:
    with pytest.raises(AttemptError):
        among(5, {"lund": instead(Shares, commitment=bytes(32))})


def test_what_a_site_sends_beside_its_words_stays_small() -> None:
    roster, sites = consortium(20)
    sizes: list[int] = []

    def ask(requests: Any) -> Any:
        answers = {n: sites[n].answer(r, lambda n=n: contribution_of(n), MODEL) for n, r in requests.items()}
        sizes.append(len(to_bytes(answers["site-0003"])))
        return answers

    play(one_round(terms_of(roster), roster, TODAY, sorted(sites), MODEL), ask)
    assert sum(sizes) - 4 * (DIM + 2) < 160 * 20 + 600


# Rounds in a row


def rounds_of(roster: Any, numbers: tuple[int, ...], finished: dict[int, Outcome], **changes: Any) -> Rounds:
    return Rounds(
        numbers,
        lambda number, attempt: terms_of(roster, round=number, attempt=attempt),
        lambda _: MODEL,
        finished.__setitem__,
        **changes,
    )


def test_three_trips_a_round_give_the_sums_of_five_trips_a_round() -> None:
    roster, sites = consortium(5)
    done: dict[int, Outcome] = {}
    trips = run_pipelined(
        rounds_of(roster, (1, 2, 3, 4), done),
        roster,
        lambda: TODAY,
        sites,
        lambda number, name: contribution_of(name, DIM, number),
    )
    assert trips == 2 + 3 * 4
    for number in (1, 2, 3, 4):
        roster, fresh = consortium(5)
        given = {name: contribution_of(name, DIM, number) for name in fresh}
        plain = run(terms_of(roster, round=number), roster, TODAY, fresh, given, MODEL)
        assert (done[number].words == plain.words).all()
        assert done[number].survivors == plain.survivors


LOSSES = st.sets(
    st.tuples(st.integers(1, 4), st.sampled_from(names_of(5)), st.sampled_from(PHASES)), max_size=5
)


@given(losses=LOSSES)
@settings(max_examples=12)
def test_rounds_in_a_row_are_exact_whoever_falls_silent_and_no_key_is_used_twice(
    losses: set[tuple[int, str, str]],
) -> None:
    roster, sites = consortium(5)
    done: dict[int, Outcome] = {}
    seen: list[bytes] = []

    class Watched:
        def __init__(self, name: str) -> None:
            self.name = name

        def answer(self, request: Any, train: Any = None, model_digest: bytes = b"") -> Any:
            answer = sites[self.name].answer(request, train, model_digest)
            if isinstance(answer, Advert):
                seen.extend((answer.channel_key, answer.mask_key, answer.nonce))
            return answer

    lost, failed = set(losses), None

    def is_silent(number: int, name: str, phase: str) -> bool:
        """Each loss happens once, or a round would fail for ever."""
        if (number, name, phase) in lost:
            lost.discard((number, name, phase))
            return True
        return False

    try:
        run_pipelined(
            rounds_of(roster, (1, 2, 3, 4), done, attempts=6),
            roster,
            lambda: TODAY,
            {name: Watched(name) for name in sites},
            lambda number, name: contribution_of(name, DIM, number),
            is_silent,
        )
    except AttemptError as error:
        failed = error
    assert sorted(done) == [1, 2, 3, 4] or (failed is not None and not failed.may_retry)
    assert len(set(seen)) == len(seen)
    for number, outcome in done.items():
        given = {name: contribution_of(name, DIM, number) for name in sites}
        terms = terms_of(roster, round=number)
        assert (outcome.words == plain_sum(terms, sites, given, outcome.survivors)).all()


@pytest.mark.parametrize("phase", ["confirm", "unmask"])
def test_a_site_that_missed_the_end_of_a_round_sits_out_one_and_comes_back(phase: str) -> None:
    roster, sites = consortium(5)
    done: dict[int, Outcome] = {}
    trips = run_pipelined(
        rounds_of(roster, (1, 2, 3), done),
        roster,
        lambda: TODAY,
        sites,
        lambda number, name: contribution_of(name, DIM, number),
        lambda number, name, missed: (number, name, missed) == (1, "lund", phase),
    )
    assert trips == 2 + 3 * 3
    assert [("lund" in done[number].survivors) for number in (1, 2, 3)] == [True, False, True]


def test_a_round_that_fails_before_its_end_is_tried_again_from_its_adverts() -> None:
    roster, sites = consortium(5)
    done: dict[int, Outcome] = {}
    lost = {(2, "bern", "masked"), (2, "graz", "masked")}

    def is_silent(number: int, name: str, phase: str) -> bool:
        if (number, name, phase) not in lost:
            return False
        lost.discard((number, name, phase))
        return True

    trips = run_pipelined(
        rounds_of(roster, (1, 2, 3), done),
        roster,
        lambda: TODAY,
        sites,
        lambda number, name: contribution_of(name, DIM, number),
        is_silent,
    )
    assert trips == 5 + 1 + 5 + 3
    assert all(len(done[number].survivors) == 5 for number in (1, 2, 3))


def test_a_round_that_fails_too_often_is_an_error() -> None:
    roster, sites = consortium(5)
    done: dict[int, Outcome] = {}
    with pytest.raises(AttemptError) as caught:
        run_pipelined(
            rounds_of(roster, (1, 2), done, attempts=2),
            roster,
            lambda: TODAY,
            sites,
            lambda number, name: contribution_of(name, DIM, number),
            lambda _, name, phase: phase == "masked" and name in ("bern", "graz"),
        )
    assert caught.value.phase == "masked"
    assert done == {}


@pytest.mark.parametrize("missed", ["confirm", "unmask"])
def test_where_the_next_round_cannot_be_prepared_on_the_way_it_begins_afresh(missed: str) -> None:
    """Round 2 needs all six; one missed its advert, or its share, which came with the end of round 1."""
    roster, sites = consortium(6)
    done: dict[int, Outcome] = {}
    rounds = replace(
        rounds_of(roster, (1, 2), done, attempts=1),
        terms=lambda r, attempt: terms_of(roster, round=r, attempt=attempt, min_cohort=3 * r),
    )
    trips = run_pipelined(
        rounds,
        roster,
        lambda: TODAY,
        sites,
        lambda number, name: contribution_of(name, DIM, number),
        lambda number, name, phase: (number, name, phase) == (1, "bern", missed),
    )
    assert trips == 5 + 5
    assert rounds.attempts == 1  # a preparation that was lost is no failed attempt
    assert [len(done[number].survivors) for number in (1, 2)] == [6, 6]
