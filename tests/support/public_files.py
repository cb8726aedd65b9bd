"""Tiny invented files of public data sets' formats, and how their loaders refuse what is wrong."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clinimeta.common.errors import DataError

SECRET = "7734"
"""Tests write it where a loader should complain; no complaint may hold it."""


def npz(path: Path, arrays: Mapping[str, Any]) -> Path:
    """A file of arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def table(path: Path, columns: Mapping[str, Sequence[str]]) -> Path:
    """A gzipped CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(row) for row in rows)]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return path


def refused(call: Callable[[], object]) -> DataError:
    """The complaint of a loader: it says where, what was expected or found, and what to do, and no value."""
    with pytest.raises(DataError) as caught:
        call()
    error = caught.value
    assert error.where
    assert error.remedy
    assert error.found or error.expected
    assert SECRET not in str(error)
    return error


def present(data_dir: Path, folder: str) -> Path:
    """The data folder, if that data set is in it; otherwise the test is skipped."""
    if not (data_dir / folder).is_dir():
        pytest.skip(f"the data set '{folder}' is not in {data_dir}")
    return data_dir
