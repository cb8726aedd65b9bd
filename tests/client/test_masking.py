"""The journal on disk: what was answered stays answered, through SIGKILL; secrets go when they should."""

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from parties import MODEL, TODAY, consortium, contribution_of, plain_sum, site_of, terms_of

from clinimeta.client.masking import FILE, SqliteJournal
from clinimeta.common.errors import UserError
from clinimeta.common.secagg import protocol
from clinimeta.common.secagg.journal import Journal, MemoryJournal
from clinimeta.common.secagg.messages import (
    PHASES,
    AdvertRequest,
    Refusal,
    Request,
    from_bytes,
    phase_of,
    to_bytes,
)
from clinimeta.common.secagg.packing import decode
from clinimeta.common.secagg.session import Session
from clinimeta.common.secagg.terms import RoundKey

KEY = RoundKey("run", 7, 0)
SUPPORT = Path(__file__).resolve().parents[1] / "support"

CHILD = """
import os, signal, sys
from pathlib import Path
from clinimeta.client.masking import SqliteJournal
from clinimeta.common.secagg.messages import from_bytes, to_bytes
from parties import MODEL, consortium, contribution_of, roster_of, names_of, site_of
import secrets

journal = SqliteJournal(Path(sys.argv[1]))
moment = sys.argv[2]

class Dying:
    def record(self, *arguments):
        new = journal.record(*arguments)
        if moment == "after record":
            os.kill(os.getpid(), signal.SIGKILL)
        return new
    def keep(self, *arguments):
        journal.keep(*arguments)
        if moment == "after keep":
            os.kill(os.getpid(), signal.SIGKILL)
    def erase(self, *arguments):
        journal.erase(*arguments)
        if moment == "after erase":
            os.kill(os.getpid(), signal.SIGKILL)
    answered, load = journal.answered, journal.load

site = site_of("bern", roster_of(names_of(5)), journal=Dying(), random_bytes=secrets.token_bytes)
answer = site.answer(from_bytes(sys.stdin.buffer.read()), lambda: contribution_of("bern"), MODEL)
sys.stdout.buffer.write(to_bytes(answer))
sys.stdout.buffer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def ask_a_process(folder: Path, request: Request, moment: str = "after the answer") -> Any:
    """A site's answer from a process of its own, which is killed by SIGKILL at `moment`."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), moment],
        input=to_bytes(request),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    return from_bytes(done.stdout) if done.stdout else None


def play(folder: Path, dies: dict[str, str]) -> tuple[Any, list[Any]]:
    """A round of five in which bern's process dies after each answer, or in a phase at the moment given.

    A dead process's request is sent again to a new one. Returns the outcome and what bern said the second
    time.
    """
    roster, sites = consortium(5)
    said: list[Any] = []

    class Bern:
        def answer(self, request: Request, train: Any = None, model_digest: bytes = b"") -> Any:
            moment = dies.get(phase_of(request))
            if moment is None:
                return ask_a_process(folder, request)
            assert ask_a_process(folder, request, moment) is None
            said.append(ask_a_process(folder, request))
            return said[-1]

    sites["bern"] = Bern()
    given = {name: contribution_of(name) for name in sites}
    outcome = protocol.run(terms_of(roster), roster, TODAY, sites, given, MODEL)
    honest = {**sites, "bern": site_of("bern", roster)}
    expected = plain_sum(terms_of(roster), honest, given, outcome.survivors)
    assert (outcome.words == expected).all()
    return outcome, said


def test_a_site_that_is_killed_after_each_answer_goes_on_where_it_was(tmp_path: Path) -> None:
    outcome, _ = play(tmp_path / "state", {})
    assert "bern" in outcome.survivors
    assert outcome.dropped == {}


@pytest.mark.parametrize("phase", PHASES)
def test_a_site_that_is_killed_between_record_and_answer_refuses_to_answer_again(
    phase: str, tmp_path: Path
) -> None:
    outcome, said = play(tmp_path / "state", {phase: "after record"})
    assert isinstance(said[0], Refusal)
    assert said[0].code == "answered_before"
    assert outcome.dropped == {"bern": (phase, "refused: answered_before")}


@pytest.mark.parametrize(("phase", "code"), [("masked", "out_of_order"), ("unmask", "unknown_round")])
def test_a_site_that_is_killed_with_its_answer_in_hand_refuses_to_give_it_again(
    phase: str, code: str, tmp_path: Path
) -> None:
    moment = "after erase" if phase == "unmask" else "after keep"
    outcome, said = play(tmp_path / "state", {phase: moment})
    assert said[0].code == code
    assert outcome.dropped["bern"] == (phase, f"refused: {code}")


def journals(folder: Path) -> list[Journal]:
    return [MemoryJournal(), SqliteJournal(folder / "state")]


def test_both_journals_keep_the_same_promises(tmp_path: Path) -> None:
    for journal in journals(tmp_path):
        assert journal.record(KEY, "advert", b"1")
        assert not journal.record(KEY, "advert", b"1")
        assert not journal.record(KEY, "advert", b"2")
        assert journal.record(KEY, "shares", b"1")
        assert journal.record(RoundKey("run", 7, 1), "advert", b"1")
        assert journal.record(RoundKey("run", 8, 0), "advert", b"1")
        assert journal.record(RoundKey("other", 7, 0), "advert", b"1")
        assert journal.answered("run", 7) == {(0, "advert"), (0, "shares"), (1, "advert")}
        assert journal.answered("run", 9) == frozenset()
        assert journal.load(KEY) is None
        journal.keep(KEY, b"one")
        journal.keep(KEY, b"two")
        journal.keep(RoundKey("run", 8, 0), b"three")
        assert journal.load(KEY) == b"two"
        journal.erase(KEY)
        journal.erase(KEY)
        assert journal.load(KEY) is None
        assert journal.load(RoundKey("run", 8, 0)) == b"three"
        assert not journal.record(KEY, "shares", b"1")


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def test_after_the_last_phase_no_secret_is_left_in_any_file(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    roster, sites = consortium(5)
    journal = SqliteJournal(folder)
    sites["bern"] = site_of("bern", roster, journal=journal, random_bytes=secrets.token_bytes)
    seen: set[bytes] = set()
    keep = journal.keep

    def watch(key: RoundKey, data: bytes) -> None:
        session = decode(Session, data)
        seen.update({session.channel_secret, session.mask_secret, session.self_seed, *session.held.values()})
        keep(key, data)

    journal.keep = watch  # type: ignore[method-assign]
    flow = protocol.one_round(terms_of(roster), roster, TODAY, sorted(sites), MODEL)
    requests = next(flow)
    for _ in PHASES[:-1]:
        replies = {
            name: sites[name].answer(r, lambda name=name: contribution_of(name), MODEL)
            for name, r in requests.items()
        }
        requests = flow.send(replies)
    seen.discard(b"")
    assert len(seen) == 3 + 5
    assert any(secret in everything_in(folder) for secret in seen)
    sites["bern"].answer(requests["bern"])
    assert not any(secret in everything_in(folder) for secret in seen)


def test_secrets_of_a_round_that_nobody_finished_go_after_a_while(tmp_path: Path) -> None:
    time = [1000.0]
    journal = SqliteJournal(tmp_path / "state", clock=lambda: time[0])
    journal.record(KEY, "advert", b"")
    journal.keep(KEY, b"old secret" * 10)
    time[0] += 3600
    journal.keep(RoundKey("run", 8, 0), b"new secret" * 10)
    assert journal.erase_older_than(3600 * 2) == 0
    assert journal.erase_older_than(3599) == 1
    assert journal.load(KEY) is None
    assert journal.load(RoundKey("run", 8, 0)) is not None
    assert b"old secret" not in everything_in(tmp_path / "state")
    assert not journal.record(KEY, "advert", b"")


def test_folder_and_files_are_the_owners_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        journal = SqliteJournal(tmp_path / "state")
        journal.keep(KEY, b"secret")
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()}
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert set(modes.values()) == {0o600}
    assert FILE in modes


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o770])
def test_a_folder_that_others_can_enter_is_refused(mode: int, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    with pytest.raises(UserError, match="chmod 700"):
        SqliteJournal(tmp_path / "state")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o700])
def test_a_file_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    SqliteJournal(tmp_path / "state").close()
    (tmp_path / "state" / FILE).chmod(mode)
    with pytest.raises(UserError, match="chmod 600"):
        SqliteJournal(tmp_path / "state")


def test_a_link_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "elsewhere").touch(mode=0o600)
    (tmp_path / "state" / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError):
        SqliteJournal(tmp_path / "state")


def test_the_write_ahead_is_on_disk_when_record_returns(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "state")
    assert journal._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    roster, _ = consortium(3)
    site = site_of("bern", roster, journal=journal)
    site.answer(AdvertRequest(terms_of(roster).to_bytes()))
    assert SqliteJournal(tmp_path / "state").answered("run", 7) == {(0, "advert")}
