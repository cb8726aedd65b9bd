"""Who adds how much noise to a sum, and how much is in it when some sites are gone.

All noise is for integers: the vector times `scale`, rounded. `central`: whoever adds up adds it once.
`local`: each site adds all of it, so that its own message is private. `distributed`: each site adds a
share, and only the sum, which is all that secure aggregation shows, is private.

The accountant's formula is that of continuous noise. Of discrete noise it is proven that the Renyi
divergences are no larger (Canonne, Kamath, Steinke; NeurIPS 2020, theorem 4); for its delta the formula is
right up to steps of 1 in noise of size z Delta scale, which a quantiser makes a million or so.
"""

import hashlib
import math
import secrets
from dataclasses import dataclass
from typing import Literal

SMALLEST_SHARE = 4.0
"""Of a share's standard deviation in integers. From here on a sum of discrete Gaussians is one discrete
Gaussian but for 10 n exp(-2 pi^2 8) < n 1e-67 (Kairouz, Liu, Steinke; ICML 2021, theorem 1)."""


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of a sum over sites.

    `multiplier` is the z that the accountant charges and `sensitivity` what one patient can change in the
    sum, rounding included (`clipping.with_rounding`), in units of the vector. `survivors` is the number of
    sites whose messages are certainly in the sum (secure aggregation's *confirm* guarantees it) and
    `colluders` the number among them whose noise an attacker is assumed to know; both only matter to
    `distributed` noise.

    Raises:
        ValueError: a number is out of range, nobody honest survives, or a share is so small that its
            discreteness shows; a larger `scale` helps.
    """

    multiplier: float
    sensitivity: float
    scale: float
    where: Literal["central", "local", "distributed"] = "distributed"
    survivors: int = 1
    colluders: int = 0

    def __post_init__(self) -> None:
        for name in ("multiplier", "sensitivity", "scale"):
            if not (0 < getattr(self, name) < math.inf):
                raise ValueError(f"{name} is {getattr(self, name)}, expected over 0")
        if not 0 <= self.colluders < self.survivors:
            raise ValueError(
                f"{self.survivors} survivors and {self.colluders} colluders: somebody honest must survive"
            )
        if self.where != "distributed" and (self.survivors, self.colluders) != (1, 0):
            raise ValueError(f"{self.where} noise is not shared: leave survivors and colluders out")
        if self.sigma < SMALLEST_SHARE:
            raise ValueError(
                f"the noise of one site is {self.sigma:.2g} in integers, expected {SMALLEST_SHARE:g} or more"
            )

    @property
    def sigma(self) -> float:
        """Standard deviation of the discrete Gaussian that one party adds, in integers.

        Its square is (z sensitivity scale)^2 / (survivors - colluders), so that the worst set of survivors
        that can happen still has z.

        >>> Noise(1.0, 2.0, 1e6, survivors=4).sigma
        1000000.0
        """
        total = self.multiplier * self.sensitivity * self.scale
        return total / math.sqrt(self.survivors - self.colluders)

    def actual(self, answered: int) -> float:
        """The noise multiplier that a sum over `answered` sites has against the assumed colluders.

        Raises:
            ValueError: fewer answered than were guaranteed; such a sum must not be opened.

        >>> round(Noise(1.0, 1.0, 1e6, survivors=7, colluders=2).actual(10), 3)
        1.265
        """
        if answered < self.survivors:
            raise ValueError(f"{answered} sites answered, {self.survivors} were guaranteed")
        if self.where == "central":
            return self.multiplier
        return self.multiplier * math.sqrt((answered - self.colluders) / (self.survivors - self.colluders))

    def inflation(self, answered: int) -> float:
        """How many times as large as necessary the noise of a sum over `answered` sites is.

        Raises:
            ValueError: fewer answered than were guaranteed.

        >>> round(Noise(1.0, 1.0, 1e6, survivors=7, colluders=2).inflation(10), 2)
        1.41
        """
        if answered < self.survivors:
            raise ValueError(f"{answered} sites answered, {self.survivors} were guaranteed")
        if self.where == "central":
            return 1.0
        return math.sqrt(answered / (self.survivors - self.colluders))


def noise_key(seed: bytes | None, *names: str | int) -> bytes:
    """The key of one draw of noise (32 bytes): a fresh secret.

    With a seed, for a simulation that can be repeated, a function of it and of the names of the draw.
    """
    if seed is None:
        return secrets.token_bytes(32)
    return hashlib.sha256(b"\0".join([seed, *(str(name).encode() for name in names)])).digest()
