"""What the benchmarks share: candidates that take turns, one check that all did the same work, one machine.

Candidates take turns, so that a busy machine slows all of them alike, and the median turn counts. CPU
time is that of the process with all its threads.
"""

import csv
import importlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from clinimeta.common.errors import ClinimetaError
from clinimeta.common.params import map_params, norm
from clinimeta.common.typing import Params

RESULTS = Path(__file__).parent / "results"
PEERS = ("learn2learn", "torchopt", "higher", "pfl", "flwr", "ray")
TURN_S = 0.1
"""Seconds of one candidate's turn, where a call is shorter."""
TOLERANCE = 1e-4
"""Largest relative difference between candidates that are to do the same work."""


class UnequalWorkError(ClinimetaError):
    """Candidates that should compute the same do not, so their times must not be compared."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call."""

    cpu_s: float
    wall_s: float


def timed(call: Callable[[], object]) -> Timing:
    """One call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall)


def median(timings: Sequence[Timing]) -> Timing:
    """Of each kind of second on its own."""
    return Timing(statistics.median(t.cpu_s for t in timings), statistics.median(t.wall_s for t in timings))


def take_turns(candidates: Mapping[str, Callable[[], object]], turns: int) -> dict[str, Timing]:
    """The median of each candidate's `turns`; nobody has two turns in a row.

    A turn is one call, or as many as fit into `TURN_S`: of one short call alone, most would be the
    caches that the candidate before it has emptied.
    """
    found: dict[str, list[Timing]] = {name: [] for name in candidates}
    for _ in range(turns):
        for name, call in candidates.items():
            found[name].append(_turn(call))
    return {name: median(timings) for name, timings in found.items()}


def _turn(call: Callable[[], object]) -> Timing:
    calls, taken = 0, Timing(0.0, 0.0)
    while calls == 0 or taken.wall_s < TURN_S:
        more = timed(call)
        calls, taken = calls + 1, Timing(taken.cpu_s + more.cpu_s, taken.wall_s + more.wall_s)
    return Timing(taken.cpu_s / calls, taken.wall_s / calls)


def relative_error(found: Params, expected: Params) -> float:
    """|found - expected| / |expected|, Euclidean over all entries."""
    return norm(map_params(lambda a, b: a - b, found, expected)) / norm(expected)


def check_equal(what: str, errors: Mapping[str, float]) -> None:
    """Whether candidates did the same work, from their `relative_error`s.

    Raises:
        UnequalWorkError: one is over `TOLERANCE`, or not a number.
    """
    for name, error in errors.items():
        if not error <= TOLERANCE:
            raise UnequalWorkError(
                f"{what}: '{name}' computes something else (relative difference {error:.1g})"
            )


def peer(name: str) -> ModuleType | None:
    """A library to be measured beside ours, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def machine() -> dict[str, Any]:
    """Where and with what this process measures; `load` is the mean number of waiting threads before."""
    installed = {name: _version(name) for name in ("clinimeta", "torch", "numpy", *PEERS)}
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: found for name, found in installed.items() if found},
    }


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def write_csv(path: Path, command: str, record: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """The rows, under a first line that says how and where they were measured."""
    rows = list(rows)
    versions = ", ".join(f"{name} {found}" for name, found in record["versions"].items())
    where = f"{record['cpu']}, {record['cores']} cores, load {record['load']}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {command}; {where}; python {record['python']}, {versions}\n")
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)


def _text(value: object) -> object:
    """Four significant digits of a number; nothing for None."""
    return f"{value:.4g}" if isinstance(value, float) else value


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return str(getattr(peer(name), "__version__", ""))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
