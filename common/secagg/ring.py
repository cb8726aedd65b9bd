"""Real vectors as whole numbers modulo 2^32 and back, so that sums are exact and never wrap.

Two's complement. With n the most sites and B the bound of one site's coordinate, the scale is
s = M / B with M = floor((2^31 - 1) / n) - 1: a site's whole number is at most M + 1, and n of them at most
2^31 - 1. A coordinate of the sum is off by less than n / s, and by sqrt(n) / (2 s) in the mean square.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinimeta.common.errors import BoundError
from clinimeta.common.secagg.masks import keystream_into
from clinimeta.common.secagg.suite import SUITES
from clinimeta.common.secagg.terms import Column, Terms

_BLOCK = 32_768  # coordinates at a time: four buffers that fit into a core's cache


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one site adds, or what all added: a vector `[dim]` of floats, and the columns by name.

    `noise` `[dim]`, in whole numbers, is added after rounding; the ring's bound must leave room for it.
    """

    vector: NDArray[Any]
    columns: Mapping[str, float]
    noise: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Ring:
    """The quantiser of one round. With or without masks it is the same, so results are equal to the bit."""

    dim: int
    bound: float
    columns: tuple[Column, ...]
    n_max: int

    @staticmethod
    def of(terms: Terms) -> "Ring":
        """The quantiser that these terms ask for."""
        return Ring(terms.dim, terms.bound, terms.columns, terms.n_max)

    @property
    def size(self) -> int:
        """Numbers that travel: coordinates and columns."""
        return self.dim + len(self.columns)

    def scale(self, bound: float) -> float:
        """s: whole numbers in a unit, for a coordinate with this bound."""
        return ((2**31 - 1) // self.n_max - 1) / bound

    def quantise(self, contribution: Contribution, key: bytes) -> NDArray[np.uint32]:
        """Whole numbers `[size]` from a site's vector (float32 or float64) and columns.

        Rounds up or down by chance, with 16 bits a coordinate from AES-256-CTR under `key` (32 bytes), so
        that the expected value is the real one. The same key gives the same whole numbers.

        Raises:
            BoundError: another shape or other columns, NaN, infinity, or a value over its bound.
        """
        vector = contribution.vector
        if vector.shape != (self.dim,) or vector.dtype not in (np.float32, np.float64):
            raise BoundError(
                f"a vector of shape {vector.shape} and type {vector.dtype}; [{self.dim}] expected"
            )
        if set(contribution.columns) != {column.name for column in self.columns}:
            raise BoundError("other columns than those of the terms")
        out = np.empty(self.size, np.uint32)
        bits = keystream_into(key)
        _round(vector, self.bound, self.scale(self.bound), bits, out[: self.dim])
        for i, column in enumerate(self.columns, start=self.dim):
            value = np.array([contribution.columns[column.name]], np.float64)
            _round(value, column.bound, self.scale(column.bound), bits, out[i : i + 1])
        if contribution.noise is not None:
            out[: self.dim] += contribution.noise.astype(np.uint32)  # modulo 2^32, as all sums here
        return out

    def dequantise(self, total: NDArray[np.uint32]) -> Contribution:
        """The sum of up to `n_max` sites' whole numbers `[size]` as floats (float64)."""
        assert total.shape == (self.size,)
        signed = total.view(np.int32)
        columns = {
            column.name: float(signed[i]) / self.scale(column.bound)
            for i, column in enumerate(self.columns, start=self.dim)
        }
        return Contribution(signed[: self.dim] / self.scale(self.bound), columns)


def rounding_key(seed: bytes, run: str, round_number: int, site: str) -> bytes:
    """The key of a site's rounding in a round (32 bytes), for `Ring.quantise`.

    A function of names: a later attempt of the same round, and the run without masks, round alike.
    """
    return SUITES[1].derive(seed, b"", "rounding", run, str(round_number), site)


def _round(
    values: NDArray[Any],
    bound: float,
    scale: float,
    bits: Callable[[memoryview], None],
    out: NDArray[np.uint32],
) -> None:
    """Stochastic rounding of `values * scale`; the sum of a value and its random part is exact enough.

    |values * scale| <= M (1 + 2^-52), and the random part is at most 1 - 2^-16, so the floor is at most M.
    """
    size = min(len(values), _BLOCK)
    scaled, shift = np.empty(size), np.empty(size)
    drawn = bytearray(2 * size)
    chance = np.frombuffer(drawn, "<u2")
    signed = out.view(np.int32)
    for at in range(0, len(values), _BLOCK):
        block = values[at : at + _BLOCK]
        n = len(block)
        if not (float(block.max()) <= bound and float(block.min()) >= -bound):  # NaN fails, too
            raise BoundError("a value is not finite, or over the bound that was agreed")
        bits(memoryview(drawn)[: 2 * n])
        np.multiply(block, scale, out=scaled[:n], dtype=np.float64)
        np.multiply(chance[:n], 2.0**-16, out=shift[:n])
        np.add(scaled[:n], shift[:n], out=scaled[:n])
        np.floor(scaled[:n], out=scaled[:n])
        signed[at : at + n] = scaled[:n]
