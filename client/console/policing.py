"""Policy: the hospital's settings as text, what they would refuse before they are kept, and their history."""

import os
import signal
import tomllib
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from clinimeta.client.approvals import Approvals
from clinimeta.client.config import SiteSettings
from clinimeta.client.console.base import Console, record
from clinimeta.client.guard import Guard
from clinimeta.client.hospital import open_hospital, policy_digest, policy_of
from clinimeta.client.policy import Policy, Verdict, read_policy
from clinimeta.client.sources.base import configured
from clinimeta.common.errors import UserError
from clinimeta.common.files import write_atomically
from clinimeta.common.private_files import make_private_folder
from clinimeta.common.running import running
from clinimeta.common.settings import parse
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Action, Change, Done, Screen

WHERE = "the settings"
Text = Annotated[str, Field(max_length=1 << 17)]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a policy does with a plan that is known here."""

    study: str
    plan: str
    approved: bool
    refused: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class PolicyView:
    """The settings' text, the policy's digest, what it would refuse; `error` where that cannot be said."""

    text: str
    digest: str
    effects: tuple[Effect, ...]
    error: str


class Trying(Change):
    """New settings (the whole text of site.toml), which are not kept."""

    text: Text
    reason: str = ""


class Keeping(Change):
    """New settings (the whole text of site.toml)."""

    text: Text


def policy_screen(console: Console, _who: Who) -> PolicyView:
    """The settings as they are."""
    text = (console.home.path / "site.toml").read_text(encoding="utf-8")
    policy = policy_of(console.home)
    effects, error = _effects(console, policy)
    return PolicyView(text, policy_digest(policy), effects, error)


def try_policy(console: Console, _who: Who, body: Trying) -> Done:
    """What other settings would refuse; nothing is kept."""
    policy = _read(body.text)
    effects, error = _effects(console, policy)
    lines = [
        f"{one.study} ({one.plan[:12]}): "
        + ("would be answered" if not one.refused else "; ".join(v.reason for v in one.refused))
        for one in effects
    ]
    return Done(
        "These settings can be read. Nothing was kept.",
        "\n".join([error, *lines]).strip() or "No study is known here yet.",
    )


def keep_policy(console: Console, who: Who, body: Keeping) -> Done:
    """Keep other settings, the old ones beside them; a daemon that runs reads them at once."""
    home = console.home
    policy = _read(body.text)
    file = home.path / "site.toml"
    make_private_folder(home.policies)
    before = policy_digest(policy_of(home))
    write_atomically(home.policies / f"{before}.toml", file.read_bytes(), 0o600)
    write_atomically(file, body.text.encode())
    record(console, who, body, "changed the settings", policy_digest(policy))
    pid = running(home.lock)
    if pid is None:
        return Done("The settings are kept; they hold from the daemon's next start")
    os.kill(pid, signal.SIGHUP)
    return Done("The settings are kept, and the daemon reads them")


def _read(text: str) -> Policy:
    """The policy in a text of settings.

    Raises:
        UserError: a key is unknown, or a value does not fit.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError("the settings are not valid TOML", where=WHERE, found=str(error)) from None
    settings = parse(SiteSettings, values, WHERE)
    configured(settings.data, f"{WHERE}, [data]")
    return read_policy(settings.policy, f"{WHERE}, [policy]")


def _effects(console: Console, policy: Policy) -> tuple[tuple[Effect, ...], str]:
    approvals = Approvals(console.home.approvals)
    known = [(one, True) for one in approvals.approved()] + [(one, False) for one in approvals.pending()]
    if not known:
        return (), ""
    try:
        hospital = open_hospital(console.home)
    except UserError as error:
        return (), f"{error.what} ({error.where})"
    site = hospital.site
    assert site.guard is not None
    guard = Guard(policy, approvals, site.guard.rows, site.guard.answers_today)
    has = {"identity": site.party is not None, "budget": site.budget is not None}
    found = []
    for dossier, approved in known:
        verdicts = guard.would_refuse(dossier.plan, **has)
        others = tuple(one for one in verdicts if one.code != "not_approved")
        found.append(Effect(dossier.plan.study, dossier.digest, approved, others))
    return tuple(found), ""


SCREENS = (Screen("/policy", May.READ, "Policy", policy_screen, "policy.html", nav=True),)
ACTIONS = (
    Action("/policy/try", May.OPERATE, "Try settings", Trying, try_policy, "/policy"),
    Action("/policy/keep", May.OPERATE, "Keep settings", Keeping, keep_policy, "/policy"),
)
