"""Any order of sends, losses, duplicates, delays and crashes: exact sums or none, and nothing said twice."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mutants import site_without
from parties import DIM, MODEL, TODAY, consortium, contribution_of, plain_sum, site_of, terms_of

from clinimeta.common.errors import AttemptError
from clinimeta.common.secagg.coordinator import Outcome
from clinimeta.common.secagg.journal import MemoryJournal
from clinimeta.common.secagg.messages import Answer, Masked, Refusal, Request, Unmask, phase_of, to_bytes
from clinimeta.common.secagg.protocol import one_round
from clinimeta.common.secagg.site import Site
from clinimeta.common.secagg.terms import RoundKey

N = 5


class Crash(Exception):  # noqa: N818 (nobody's error)
    """The site's process dies."""


class CrashingJournal(MemoryJournal):
    """A journal whose process dies right after it wrote, when told to."""

    dies_after = ""

    def _die(self, moment: str) -> None:
        if self.dies_after == moment:
            self.dies_after = ""
            raise Crash

    def record(self, key: RoundKey, phase: str, digest: bytes) -> bool:
        new = super().record(key, phase, digest)
        self._die("record")
        return new

    def keep(self, key: RoundKey, secrets: bytes) -> None:
        super().keep(key, secrets)
        self._die("keep")

    def erase(self, key: RoundKey) -> None:
        super().erase(key)
        self._die("erase")


class Deployment(RuleBasedStateMachine):
    """Five sites, a coordinator, and a network that does what it likes."""

    kind: Any = Site

    def __init__(self) -> None:
        super().__init__()
        self.roster, _ = consortium(N)
        self.sites: dict[str, Site] = {
            m.site: site_of(m.site, self.roster, self.kind, journal=CrashingJournal())
            for m in self.roster.members
        }
        self.round, self.attempt = 1, 0
        self.on_the_way: list[tuple[str, Request]] = []
        self.sent: list[tuple[str, Request]] = []
        self.inbox: list[tuple[str, Answer | Refusal]] = []
        self.said: dict[tuple[str, str, bytes], bytes] = {}
        self.disclosed: dict[tuple[RoundKey, str, str], set[str]] = {}
        self.words: dict[tuple[RoundKey, str], bytes] = {}
        self.opened: set[int] = set()

    @initialize()
    def start(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.terms = terms_of(self.roster, round=self.round, attempt=self.attempt)
        self.flow = one_round(self.terms, self.roster, TODAY, sorted(self.sites), MODEL)
        self.send(next(self.flow))

    def send(self, requests: Mapping[str, Request]) -> None:
        self.current = dict(requests)
        self.on_the_way += requests.items()
        self.sent += requests.items()

    def deliver(self, name: str, request: Request) -> None:
        number = self.round if not hasattr(request, "key") else request.key.round
        try:
            answer = self.sites[name].answer(request, lambda: contribution_of(name, DIM, number), MODEL)
        except Crash:
            return
        self.inbox.append((name, answer))
        if isinstance(answer, Refusal):
            return
        which = request.terms if not hasattr(request, "key") else repr(request.key).encode()
        said = name, phase_of(request), which
        assert said not in self.said, f"{name} has answered {said[1]} twice"
        self.said[said] = to_bytes(answer)
        if isinstance(answer, Masked):
            self.words[answer.key, name] = answer.words
        if isinstance(answer, Unmask):
            for kind in ("self_shares", "key_shares"):
                for owner in getattr(answer, kind):
                    self.disclosed.setdefault((answer.key, name, owner), set()).add(kind)

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data())
    def a_request_arrives(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.on_the_way) - 1))
        self.deliver(*self.on_the_way.pop(at))

    @precondition(lambda self: self.on_the_way)
    @rule()
    def all_requests_arrive(self) -> None:
        arriving, self.on_the_way = self.on_the_way, []
        for name, request in arriving:
            self.deliver(name, request)

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data())
    def a_request_is_lost(self, data: st.DataObject) -> None:
        self.on_the_way.pop(data.draw(st.integers(0, len(self.on_the_way) - 1)))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def an_old_request_arrives_again(self, data: st.DataObject) -> None:
        self.deliver(*self.sent[data.draw(st.integers(0, len(self.sent) - 1))])

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), name=st.sampled_from(["bern", "lund"]))
    def a_request_goes_to_the_wrong_site(self, data: st.DataObject, name: str) -> None:
        """Whatever is meant for another site, a site says nothing that lets two kinds of share meet."""
        _, request = self.sent[data.draw(st.integers(0, len(self.sent) - 1))]
        self.deliver(name, request)

    @rule(name=st.sampled_from(["bern", "graz", "lund"]), moment=st.sampled_from(["record", "keep", "erase"]))
    def a_site_will_crash(self, name: str, moment: str) -> None:
        journal = self.sites[name].journal
        assert isinstance(journal, CrashingJournal)
        journal.dies_after = moment

    @rule(name=st.sampled_from(["bern", "graz", "lund"]))
    def a_site_restarts(self, name: str) -> None:
        old = self.sites[name]
        self.sites[name] = site_of(
            name, self.roster, self.kind, journal=old.journal, random_bytes=old.random_bytes
        )

    @rule(data=st.data(), keep=st.booleans())
    def the_coordinator_goes_on(self, data: st.DataObject, keep: bool) -> None:
        """With what has arrived, in any order; what is kept back comes late, in a later phase."""
        arrived = data.draw(st.permutations(self.inbox))
        late = len(arrived) // 5 if keep else 0
        self.inbox = arrived[:late]
        self.advance(dict(arrived[late:]))

    @rule()
    def a_phase_goes_well(self) -> None:
        arriving, self.on_the_way = self.on_the_way, []
        for name, request in arriving:
            self.deliver(name, request)
        answers, self.inbox = dict(self.inbox), []
        self.advance(answers)

    def advance(self, answers: Mapping[str, Answer | Refusal]) -> None:
        try:
            self.send(self.flow.send(answers))
            return
        except AttemptError as error:
            again = error.may_retry
        except StopIteration as finished:
            self.check(finished.value)
            again = False
        self.round, self.attempt = (self.round, self.attempt + 1) if again else (self.round + 1, 0)
        self.begin()

    def check(self, outcome: Outcome) -> None:
        given = {name: contribution_of(name, DIM, self.round) for name in self.sites}
        assert (outcome.words == plain_sum(self.terms, self.sites, given, outcome.survivors)).all()
        assert len(outcome.survivors) >= 3
        self.opened.add(self.round)

    @invariant()
    def nobody_gives_both_kinds_of_share(self) -> None:
        assert all(len(kinds) == 1 for kinds in self.disclosed.values())

    @invariant()
    def a_site_that_has_opened_a_round_has_opened_one_attempt_of_it(self) -> None:
        opened = {(key.round, key.attempt, name) for key, name, _ in self.disclosed}
        assert len(opened) == len({(number, name) for number, _, name in opened})

    @invariant()
    def no_two_masked_vectors_are_alike(self) -> None:
        assert len(set(self.words.values())) == len(self.words)


TestDeployment = Deployment.TestCase
TestDeployment.settings = settings(max_examples=25, stateful_step_count=50)


def test_the_machine_opens_rounds_when_all_goes_well() -> None:
    machine = Deployment()
    machine.start()
    for _ in range(10):
        machine.a_phase_goes_well()
    assert machine.opened == {1, 2}


@pytest.mark.parametrize(
    "missing", [("out_of_order", "answered_before"), ("round_closed", "answered_before")], ids="-".join
)
def test_the_machine_finds_sites_that_do_not_remember(missing: tuple[str, ...]) -> None:
    class Forgetful(Deployment):
        kind = site_without(*missing)

    with pytest.raises(BaseException, match=r"twice|assert"):
        run_state_machine_as_test(
            Forgetful, settings=settings(max_examples=200, stateful_step_count=50, phases=[Phase.generate])
        )
