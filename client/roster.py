"""The hospital's copy of the signed roster: believed for the consortium's signature alone."""

import os

from clinimeta.client.config import Home
from clinimeta.client.enrol import fetch_roster
from clinimeta.common.errors import RecordError, UserError
from clinimeta.common.files import write_atomically
from clinimeta.common.roster_file import SignedRoster
from clinimeta.common.secagg.identity import Roster


def roster_of(home: Home) -> Roster | None:
    """The roster as it was fetched last; None where no consortium is named, or none was fetched yet.

    Raises:
        UserError: the consortium's key is no key, or the file is not signed by it.
    """
    key = consortium_key(home)
    if key is None or not home.roster.exists():
        return None
    try:
        return SignedRoster.from_bytes(home.roster.read_bytes()).verified(key)
    except RecordError as error:
        raise UserError(
            "the roster cannot be believed",
            where=str(home.roster),
            found=str(error),
            expected="a roster that the consortium in site.toml has signed",
            remedy="compare the consortium's key with the others; remove the file to fetch it again",
        ) from None


def consortium_key(home: Home) -> bytes | None:
    """The consortium's public key, as people have given it.

    Raises:
        UserError: it is no key.
    """
    text = home.settings().consortium.key
    if not text:
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise UserError(
            "this is no public key",
            where=f"{home.path / 'site.toml'}, [consortium], key 'key'",
            expected="64 hexadecimal digits, as `clinimeta consortium init` printed them",
        )
    return key


def refresh(home: Home) -> bool:
    """Fetch the roster; True where a newer one was kept.

    Raises:
        UserError: the coordinator cannot be reached, or hands out one that the consortium has not signed.
    """
    key = consortium_key(home)
    if key is None or (data := fetch_roster(home)) is None:
        return False
    before = roster_of(home)
    try:
        found = SignedRoster.from_bytes(data)
        roster = found.verified(key, at_least=before.version if before else 0)
    except RecordError as error:
        raise UserError(
            "the coordinator hands out a roster that cannot be believed",
            found=str(error),
            remedy="tell the consortium: somebody may be lying about who the hospitals are",
        ) from None
    if before is not None and roster.version == before.version:
        return False
    write_atomically(home.roster, found.to_bytes())
    os.chmod(home.roster, 0o600)
    return True
