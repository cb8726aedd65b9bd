"""The published interface, tried with what nobody expects: it may refuse, and never fails."""

from datetime import timedelta
from pathlib import Path

import pytest
import schemathesis
from consoles import Watched, watched
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from clinimeta.common.web.roles import Role
from clinimeta.common.web.shell import API
from clinimeta.server.console.app import ACTIONS, SCREENS, console_app

OPERATIONS = [("GET", one.path) for one in SCREENS] + [("POST", one.path) for one in ACTIONS]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[schemathesis.BaseSchema, str]:
    """The interface of a console with something in it, and a token of an operator's."""
    found = watched(tmp_path_factory.mktemp("interface"), hospitals=3, rounds=4)
    accounts = found.console.accounts
    accounts.use(accounts.link(Role.OPERATOR), "ada", "correct horse battery")
    schema = schemathesis.openapi.from_asgi(f"{API}/openapi.json", console_app(found.console))
    return schema, accounts.new_token("ada", "test", timedelta(days=1))


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda one: str(one))
def test_nothing_that_is_asked_makes_it_fail(
    tried: tuple[schemathesis.BaseSchema, str], method: str, path: str
) -> None:
    schema, token = tried
    operation = schema[API + path][method]

    @given(case=operation.as_strategy())
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def tries(case: schemathesis.Case) -> None:
        answer = case.call(headers={"authorization": f"Bearer {token}"})
        assert answer.status_code != 401, "it is asked by somebody who may"
        case.validate_response(answer, checks=(not_a_server_error,))

    tries()


def test_the_interface_is_not_for_everybody(tmp_path: Path) -> None:
    found: Watched = watched(tmp_path)
    assert found.browser(None).get(f"{API}/runs").status_code == 401
