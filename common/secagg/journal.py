"""What a site must not forget, whatever happens to its process: what it answered, and its round's secrets."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from clinimeta.common.secagg.terms import RoundKey


@runtime_checkable
class Journal(Protocol):
    """The site's memory. `record` and `keep` return only when the disk has it.

    A site records a phase *before* it answers it. If its process dies in between, the phase counts as
    answered: the site drops out of the attempt, and nothing is ever said twice.
    """

    def record(self, key: RoundKey, phase: str, digest: bytes) -> bool:
        """Note that this phase is being answered, to a request with this digest; False if it was before."""
        ...

    def answered(self, run: str, round_number: int) -> frozenset[tuple[int, str]]:
        """(attempt, phase) of everything recorded for a round; outlives its secrets."""
        ...

    def keep(self, key: RoundKey, secrets: bytes) -> None:
        """Keep an attempt's secrets, in place of what was kept of it before."""
        ...

    def load(self, key: RoundKey) -> bytes | None:
        """What `keep` was given last, unless it has been erased."""
        ...

    def erase(self, key: RoundKey) -> None:
        """Forget an attempt's secrets; what was answered stays on record."""
        ...


@dataclass(slots=True)
class MemoryJournal:
    """A journal that forgets when the process ends: for simulations and tests."""

    entries: dict[tuple[RoundKey, str], bytes] = field(default_factory=dict)
    secrets: dict[RoundKey, bytes] = field(default_factory=dict, repr=False)

    def record(self, key: RoundKey, phase: str, digest: bytes) -> bool:
        """See `Journal`."""
        if (key, phase) in self.entries:
            return False
        self.entries[key, phase] = digest
        return True

    def answered(self, run: str, round_number: int) -> frozenset[tuple[int, str]]:
        """See `Journal`."""
        return frozenset(
            (key.attempt, phase) for key, phase in self.entries if (key.run, key.round) == (run, round_number)
        )

    def keep(self, key: RoundKey, secrets: bytes) -> None:
        """See `Journal`."""
        self.secrets[key] = secrets

    def load(self, key: RoundKey) -> bytes | None:
        """See `Journal`."""
        return self.secrets.get(key)

    def erase(self, key: RoundKey) -> None:
        """See `Journal`."""
        self.secrets.pop(key, None)
