"""Randomness as a function of a name: the same key gives the same draw on every machine.

A coordinator that restarts samples the same hospitals for round r, and a site that is asked twice
draws the same episodes, because nobody carries a generator around.
"""

import hashlib

import torch


def derive_seed(*key: str | int) -> int:
    """A seed in [0, 2^63) from the parts of a key; parts are length-prefixed, so ("ab", "c") != ("a", "bc").

    >>> derive_seed("cohort", 0, 7) == derive_seed("cohort", 0, 7) != derive_seed("cohort", 0, 8)
    True
    """
    digest = hashlib.sha256()
    for part in key:
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def generator(*key: str | int) -> torch.Generator:
    """A fresh CPU generator for the named purpose."""
    return torch.Generator().manual_seed(derive_seed(*key))
