"""Print what the attacks reach, with and without protection, as CSV: the numbers of docs/threat-model.md.

PYTHONPATH=tests/attacks:tests/server python tests/attacks/measure.py

`low` and `high`: the mean of the repetitions and twice its standard error; for the area under a curve, over
trials (Hanley & McNeil, Radiology 1982).
"""

import csv
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from poison import POISONS
from records import Kind
from release import gaussian
from test_inversion import attack, controls, shares
from test_membership import advantage, with_canary
from test_robust import RULE_OF, attacked, combined, cosine, honest

from clinimeta.common.safeguards import AggregationSettings

HEADER = ("attack", "what", "protection", "score", "mean", "low", "high", "repetitions")
CASES = (("table", 1), ("table", 2), ("table", 10), ("picture", 1), ("picture", 5), ("picture", 25))
DRAWS, TRIALS = 10, 4000
Row = tuple[str, str, str, str, float, float, float, int]


def main() -> None:
    """Write every row as soon as it is there."""
    torch.set_num_threads(1)
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(HEADER)
    for rows in (inversion(), optimisation(), membership(), poison()):
        for *names, mean, low, high, repetitions in rows:
            out.writerow([*names, f"{mean:.3f}", f"{low:.3f}", f"{high:.3f}", repetitions])
            sys.stdout.flush()


def inversion() -> Iterator[Row]:
    """In closed form, from sums over more and more tasks, and from one task under noise."""
    for kind, query in cast("Sequence[tuple[Kind, int]]", CASES):
        records, score = f"{kind}, {query} query", "share of records found"
        for order in (True, False):
            name = f"closed form, {'FOMAML' if order else 'MAML'}"
            for tasks in (1, 8, 32):
                found = shares(kind, query, first_order=order, tasks=tasks)
                yield row(name, records, f"sum of {tasks} tasks", score, found)
            found = shares(kind, query, first_order=order, z=0.1)
            yield row(name, records, "one task, clipped, z = 0.1", score, found)
        yield row("64 random other records", records, "", score, controls(kind, query))


def optimisation() -> Iterator[Row]:
    """Labels known; two query records a victim."""
    for kind in cast("Sequence[Kind]", ("table", "picture")):
        for z in (None, 0.1):
            reached, others = attack(kind, z=z)
            what = "one task" if z is None else f"one task, clipped, z = {z}"
            yield row("optimisation, FOMAML", kind, what, "correlation", reached.flatten().tolist())
            over = (reached > 0.9).double().flatten().tolist()
            yield row("optimisation, FOMAML", kind, what, "share over 0.9", over)
        yield row("random other record", kind, "", "correlation", others.flatten().tolist())


def membership() -> Iterator[Row]:
    """Of one task among eight."""
    gradients, clip = with_canary()
    for z in (0.1, 1.0, 3.0, 10.0):
        area = advantage(gradients, clip, gaussian(z), TRIALS)
        one, two = area / (2 - area), 2 * area**2 / (1 + area)
        others = (TRIALS - 1) * (one + two - 2 * area**2)
        error = ((area * (1 - area) + others) / TRIALS**2) ** 0.5
        names = ("membership", "one of 8 tasks", f"clipped, z = {z:g}", "area under the curve")
        yield (*names, area, area - 2 * error, min(1.0, area + 2 * error), TRIALS)


def poison() -> Iterator[Row]:
    """Four bad of twenty sites; nobody bad."""
    rules = {"mean, no checks": AggregationSettings(), **RULE_OF}
    for name in POISONS:
        for rule, settings in rules.items():
            draws = [attacked(name, seed) for seed in range(DRAWS)]
            found = [cosine(combined(updates, settings), truth) for truth, updates in draws]
            yield row("poison", name, rule, "cosine with the true direction", found)
    for rule, settings in rules.items():
        draws = [honest(20, seed) for seed in range(DRAWS)]
        found = [cosine(combined(updates, settings), truth) for truth, updates in draws]
        yield row("poison", "nobody bad", rule, "cosine with the true direction", found)


def row(attack: str, what: str, protection: str, score: str, found: Sequence[float]) -> Row:
    """The mean of repetitions, and where it lies but for two standard errors."""
    mean, error = statistics.mean(found), statistics.stdev(found) / len(found) ** 0.5
    return attack, what, protection, score, mean, mean - 2 * error, min(1.0, mean + 2 * error), len(found)


if __name__ == "__main__":
    main()
