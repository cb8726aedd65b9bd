"""The promise that a study makes to each patient, and the sensitivity that follows from it."""

import math
from dataclasses import dataclass
from typing import Literal

from clinimeta.common.privacy import accounting


@dataclass(frozen=True, slots=True)
class Promise:
    """Whatever is published of a whole training is (epsilon, delta)-private for one `unit`.

    "patient": neighbouring worlds differ by one patient, who is there or is not, with all rows at one
    hospital. The sampler (`tasks.sampler`, `tasks_a_patient = m`) sees to it that at most m tasks a round
    know of the patient, and that all other tasks stay as they are to the bit. A task that knows of the
    patient goes on without: from one vector of norm at most C to another, so up to 2 C away. The sum
    over tasks therefore moves by at most 2 m C.

    "task": neighbouring worlds differ by one whole task, which counts or is zero; C. That is the usual
    promise of task-level privacy (Zhou, Bassily; NeurIPS 2022), and says less to a patient who shares a task.

    A patient at several hospitals has the promise at each; together they cost as rounds do.

    Raises:
        ValueError: epsilon is not positive, delta is not between 0 and 1, or no task may know of a patient.
    """

    epsilon: float
    delta: float
    unit: Literal["patient", "task"] = "patient"
    tasks_a_patient: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon is {self.epsilon}, expected over 0")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta is {self.delta}, expected between 0 and 1")
        if self.tasks_a_patient < 1:
            raise ValueError(f"tasks_a_patient is {self.tasks_a_patient}, expected 1 or more")

    def sensitivity(self, bound: float) -> float:
        """How far (L2) one unit can move the sum of tasks clipped to norm `bound`, before rounding.

        >>> Promise(4.0, 1e-6, tasks_a_patient=2).sensitivity(0.5)
        2.0
        >>> Promise(4.0, 1e-6, "task").sensitivity(0.5)
        0.5
        """
        return 2 * self.tasks_a_patient * bound if self.unit == "patient" else bound

    def noise_multiplier(self, rounds: int) -> float:
        """The z with which `rounds` rounds, each of them counted in full, keep the promise; exact.

        Raises:
            ValueError: there is no round.
        """
        return accounting.noise_multiplier(self.epsilon, self.delta, rounds)
