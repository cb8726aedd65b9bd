"""Turn a finished run's `results.json` into a small CSV to keep, and Markdown tables to read.

    clinimeta simulate --study eicu --data DATA --out runs/eicu
    python -m clinimeta.simulations.benchmarks.tables runs/eicu

writes `simulations/benchmarks/results/eicu.csv` and prints the tables of docs/results.md.
"""

import argparse
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clinimeta.common.study import Evaluation, Study, read_study

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("evaluation", "arm", "shots", "score", "site", "value", "low", "high", "sites")


def rows(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a score; NaN (null in the JSON) is empty."""
    for score in results["scores"]:
        estimate = {key: _round(value) for key, value in score["estimate"].items()}
        yield {
            **{key: score[key] for key in ("evaluation", "arm", "shots", "score", "site", "sites")},
            **estimate,
        }


def write_csv(path: Path, results: dict[str, Any], command: str = "", *, keep: bool = False) -> None:
    """The scores, under a first line that says how they were made; `keep` what it has of other arms."""
    found = list(rows(results))
    if keep:
        found = _among_others(path, found)
    made_by = command or f"clinimeta simulate --study {results['study']}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        seeds = " ".join(map(str, results["seeds"]))
        file.write(f"# {made_by}; seeds {seeds}; {versions}\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def _among_others(path: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The file's rows, those that were found again replaced."""
    key = ("evaluation", "arm", "shots", "score", "site")
    again = {tuple(str(row[k]) for k in key): row for row in found}
    with path.open(newline="", encoding="utf-8") as file:
        next(file)
        return [again.get(tuple(row[k] for k in key), row) for row in csv.DictReader(file)]


def markdown(study: Study, results: dict[str, Any]) -> Iterator[str]:
    """A table for each evaluation and score: arms and references down, support sizes across."""
    for evaluation in study.evaluations:
        for score in evaluation.scores:
            yield f"**{evaluation.title or evaluation.name}: {score}**"
            yield ""
            yield from _table(study, evaluation, score, results)
            yield ""
    for answer in results["answers"]:
        d = answer["difference"]
        yield (
            f"{answer['arm']} minus {answer['against']}, k = {answer['shots']}, {answer['score']}: "
            f"{d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        )


def _table(study: Study, evaluation: Evaluation, score: str, results: dict[str, Any]) -> Iterator[str]:
    shots = [str(s) for s in evaluation.shots]
    sites = sorted({s["site"] for s in results["scores"] if s["evaluation"] == evaluation.name} - {""})
    across = [(s, "") for s in shots] + [(s, site) for s in shots for site in sites if len(shots) == 1]
    found = {
        (s["arm"], s["shots"], s["site"]): s["estimate"]
        for s in results["scores"]
        if s["evaluation"] == evaluation.name and s["score"] == score
    }
    yield "| | " + " | ".join(site or f"k = {s}" for s, site in across) + " |"
    yield "| --- |" + " --- |" * len(across)
    for arm in [*(a.name for a in study.arms), *evaluation.references]:
        cells = [_cell(found.get((arm, *key))) for key in across]
        yield f"| {results['arms'][arm]} | " + " | ".join(cells) + " |"
    for row in study.published:
        if row.evaluation == evaluation.name:
            values = [row.values.get(site or "mean") for _, site in across]
            text = " | ".join("" if value is None else f"{value:.3f}" for value in values)
            yield f"| *published:* {row.method} ({row.source.split(',')[0]}) | {text} |"


def _cell(estimate: dict[str, Any] | None) -> str:
    if not estimate or estimate["value"] is None:
        return ""
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _round(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def main() -> None:
    """Write the CSV and print the tables of each run directory given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, nargs="+")
    for run_dir in parser.parse_args().run_dir:
        study = read_study((run_dir / "study.toml").read_text(encoding="utf-8"), str(run_dir))
        results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
        write_csv(RESULTS / f"{study.name}.csv", results)
        print("\n".join(markdown(study, results)))


if __name__ == "__main__":
    main()
