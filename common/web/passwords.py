"""Passwords, kept as Argon2id hashes (RFC 9106) with their parameters beside them."""

import os
from typing import Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from clinimeta.common.errors import UserError

LEAST = 12
PASSES, LANES, KIB = 2, 1, 19 * 1024
"""OWASP's first choice for Argon2id: 19 MiB, two passes, one lane."""


def require_good(password: str, name: str) -> None:
    """Do nothing, if nobody would guess it at once.

    Raises:
        UserError: it is short, too long, or the account's name.
    """
    if not LEAST <= len(password) <= 1024:
        raise UserError("the password is too short or too long", expected=f"{LEAST} to 1024 characters")
    if name.casefold() in password.casefold() or len(set(password)) < 5:
        raise UserError("the password is too easily guessed", expected="not the name, and five signs or more")


def hashed(password: str) -> str:
    """What to keep of a password."""
    kdf = Argon2id(salt=os.urandom(16), length=32, iterations=PASSES, lanes=LANES, memory_cost=KIB)
    return kdf.derive_phc_encoded(password.encode(errors="replace"))


def fits(password: str, kept: str) -> bool:
    """Whether it is the password of which `kept` is kept; compare with `NOBODYS` where nothing is."""
    try:
        Argon2id.verify_phc_encoded(password.encode(errors="replace"), kept)
    except InvalidKey:
        return False
    return True


NOBODYS: Final = hashed(os.urandom(16).hex())
"""For names that do not exist, so that they take as long as others."""
