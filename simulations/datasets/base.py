"""The interface of a data set: hospitals by name, each with the records it would have at home."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from clinimeta.common.tasks.table import Records


@dataclass(frozen=True, slots=True)
class Hospital:
    """One hospital's records; `test` marks the rows that the data set's protocol keeps for evaluation."""

    records: Records
    test: Sequence[bool] | None = None


@runtime_checkable
class Dataset(Protocol):
    """A public or synthetic data set, naturally split by hospital."""

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """All hospitals; `data` is the folder given by `--data`, if any (see `locate`).

        Raises:
            MissingDataError: a file is neither there nor downloadable; names it and both remedies.
            DataError: a file is not what it should be.
        """
        ...

    @property
    def synthetic(self) -> bool:
        """Whether nobody real is in it, so that rows may be copied into a run directory as an example."""
        ...

    def files(self, data: Path | None) -> Mapping[str, str]:
        """File name -> SHA-256 of what the hospitals are read from, for the run's manifest."""
        ...
