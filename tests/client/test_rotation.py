"""New keys for a hospital: complete or not at all, wherever it ends; nothing that was signed is lost."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from asked_hub import Hub
from ledgers import entry

from clinimeta.client import enrol as enrolling_module
from clinimeta.client import rotation
from clinimeta.client.config import Home
from clinimeta.client.enrol import Enrolment, enrol, standing
from clinimeta.client.folder import make_home
from clinimeta.client.hospital import budget_of
from clinimeta.client.keys import identity
from clinimeta.client.ledger import Ledger
from clinimeta.client.ledger_check import verify
from clinimeta.client.policy import Policy
from clinimeta.client.rotation import rotate, settle
from clinimeta.common.errors import BudgetFileError, UserError
from clinimeta.common.running import only_one
from clinimeta.common.secagg.identity import fingerprint
from clinimeta.server import enrolment


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub(tmp_path / "hub", monkeypatch)
    yield made
    made.database.engine.dispose()


@pytest.fixture
def home(tmp_path: Path, hub: Hub) -> Home:
    made = make_home(tmp_path / "ulm", address="hub.test:9443", data="p.csv", port=1, health_port=2)
    enrol(made, hub.token("enrol"))
    budget_of(made, Policy())
    ledger = Ledger(made.ledger, identity(made, "ulm"))
    for number in range(3):
        ledger.append(entry(number))
    return made


def intact(home: Home) -> int:
    """How many records a folder's ledger has, all of them sound."""
    found = verify(home.ledger, identity(home, "").public, bytes.fromhex(Enrolment.of(home).coordinator_key))
    assert found.intact
    return found.records


def test_new_keys_take_the_place_of_the_old_which_are_kept_with_their_ledger(home: Home, hub: Hub) -> None:
    old, node = identity(home, "ulm").public, home.node_key.read_bytes()
    found, state = rotate(home, hub.token("rotate"))
    assert (found.site, state) == ("ulm", "approved")
    assert enrolment.find(hub.database, "ulm").keys.identity == identity(home, "ulm").public != old
    assert standing(home).state == "waiting", "Flower has to learn the node's key first"
    former = Home(home.former / fingerprint(old).replace(" ", "-"))
    assert (identity(former, "").public, former.node_key.read_bytes()) == (old, node)
    assert intact(former) == 3
    assert not home.ledger.exists()
    assert not (home.path / "next").exists()
    assert former.settings() == home.settings()
    assert budget_of(home, Policy()).spent() == 0.0
    for path in (former.identity_key, former.node_key, home.identity_key, home.node_key):
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_old_keys_hold_where_the_token_is_not_valid(home: Home, hub: Hub) -> None:
    before = identity(home, "").public
    used = hub.token("rotate")
    rotate(home, used)
    after = identity(home, "").public
    with pytest.raises(UserError, match="the coordinator refuses"):
        rotate(home, used)
    assert identity(home, "").public == after != before
    assert standing(home).state == "waiting"


def test_a_lost_answer_is_asked_for_again_with_the_same_token(home: Home, hub: Hub) -> None:
    token, hub.lose = hub.token("rotate"), 1
    with pytest.raises(UserError, match="cannot be reached"):
        rotate(home, token)
    assert enrolment.find(hub.database, "ulm").keys.identity != identity(home, "").public
    rotate(home, token)
    assert enrolment.find(hub.database, "ulm").keys.identity == identity(home, "").public


def test_not_while_the_daemon_runs_and_not_before_enrolment(home: Home, hub: Hub, tmp_path: Path) -> None:
    with only_one(home.lock), pytest.raises(UserError, match="running already"):
        rotate(home, hub.token("rotate"))
    other = make_home(tmp_path / "bern", address="hub.test:9443", data="p.csv", port=1, health_port=2)
    with pytest.raises(UserError, match="not enrolled"):
        rotate(other, hub.token("rotate"))


def test_a_lost_key_is_replaced_too(home: Home, hub: Hub) -> None:
    home.identity_key.unlink()
    rotate(home, hub.token("rotate"))
    assert enrolment.find(hub.database, "ulm").keys.identity == identity(home, "").public
    (former,) = home.former.iterdir()
    assert former.name.startswith("lost-")
    assert Home(former).ledger.exists()


class _Killed(BaseException):
    """The process ends here."""


def _dies_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """End before the change of the file system with this number."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise _Killed
            return real(*args, **options)

        return call

    for name in ("write_atomically", "make_private_folder", "make_keys"):
        monkeypatch.setattr(rotation, name, counted(getattr(rotation, name)))
    monkeypatch.setattr(enrolling_module, "write_atomically", counted(enrolling_module.write_atomically))
    for module, name in ((os, "rename"), (os, "replace"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))


@pytest.mark.parametrize("number", range(1, 22))
def test_whatever_ends_it_doing_it_again_completes_it(
    home: Home, hub: Hub, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    old, token = identity(home, "").public, hub.token("rotate")
    with monkeypatch.context() as dying, suppress(_Killed):
        _dies_at(dying, number)
        rotate(home, token)
    settle(home)  # as the daemon does when it starts
    known = enrolment.find(hub.database, "ulm").keys.identity
    if known != identity(home, "").public:
        rotate(home, token)
        known = enrolment.find(hub.database, "ulm").keys.identity
    assert known == identity(home, "").public
    if known != old:
        assert intact(Home(home.former / fingerprint(old).replace(" ", "-"))) == 3
        assert not home.ledger.exists()
    else:
        assert intact(home) == 3


def test_a_budget_that_is_gone_is_no_full_one(home: Home) -> None:
    home.budget.unlink()
    with pytest.raises(BudgetFileError, match="no privacy budget here") as refused:
        budget_of(home, Policy())
    assert "forget what was spent" in refused.value.remedy
    assert not home.budget.exists()
    home.ledger.unlink()
    budget_of(home, Policy())
