"""The table of predictions that a hospital gets: one line a new patient, in the order given."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from clinimeta.common.errors import UserError
from clinimeta.common.files import write_atomically
from clinimeta.common.tasks.table import Records


def write_predictions(
    out: Path,
    new: Records,
    classes: Sequence[str],
    predicted: Sequence[Sequence[float]],
    keep: str = "",
    spread: Sequence[float] | None = None,
) -> None:
    """Write `line` (in the file of new patients), the column `keep`, and the prediction.

    `predicted` has a row a patient: one probability a class, or the number where there are no classes, and
    then `spread` may be the numbers' standard deviations.

    Raises:
        UserError: the file cannot be written.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    probabilities = [f"probability_{name}" for name in classes]
    deviation = [] if spread is None else ["standard_deviation"]
    writer.writerow(["line", *([keep] if keep else []), "predicted", *probabilities, *deviation])
    for row, values in enumerate(predicted):
        first = [new.first_line + row, *([new.cells[keep][row]] if keep else [])]
        likeliest = [classes[max(range(len(values)), key=values.__getitem__)]] if classes else []
        numbers = [*values, *([] if spread is None else [spread[row]])]
        writer.writerow([*first, *likeliest, *(f"{number:.6f}" for number in numbers)])
    try:
        write_atomically(out, buffer.getvalue().encode())
    except OSError as error:
        raise UserError(
            "the predictions cannot be written",
            where=str(out),
            found=error.strerror or "",
            remedy="choose another file",
        ) from None
