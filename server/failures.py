"""What went wrong with the coordinator's own processes, for the console's doctor: the last few, in words."""

from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from clinimeta.common.errors import ClinimetaError, UserError
from clinimeta.server import enrolment
from clinimeta.server.audit import LAST
from clinimeta.server.chronicle_tables import failures
from clinimeta.server.database import Database

log = structlog.get_logger()

KEPT = 1000
LONGEST = 2000
SEE_LOG = "see its log"


@dataclass(frozen=True, slots=True)
class Failure:
    """What failed in which process, when (UTC), and what to do about it."""

    number: int
    at: str
    process: str
    what: str
    where: str
    remedy: str


def failed(database: Database, process: str, what: str, where: str = "", remedy: str = SEE_LOG) -> None:
    """Write a failure down, and forget those before the last thousand; where that fails, it is logged."""
    row = {"process": process, "what": what[:LONGEST], "where": where[:LONGEST], "remedy": remedy[:LONGEST]}
    try:
        with database.change() as connection:
            done = connection.execute(failures.insert().values(**row, at=enrolment.now().isoformat()))
            newest = done.inserted_primary_key[0]  # type: ignore[index]  # it is an insert
            connection.execute(failures.delete().where(failures.c.number <= newest - KEPT))
    except SQLAlchemyError as error:
        log.warning("a failure could not be written down", process=process, error=type(error).__name__)


def told(database: Database, process: str, error: BaseException, where: str = "") -> None:
    """Write an error down: in its own words where it is one of ours, and by its kind where it is not."""
    if isinstance(error, UserError):
        what = f"{error.what}: {error.found}" if error.found else error.what
        failed(database, process, what, error.where or where, error.remedy or SEE_LOG)
    elif isinstance(error, ClinimetaError):
        failed(database, process, str(error), where)
    else:
        failed(database, process, f"it ended with {type(error).__name__}", where)


def last_failures(
    connection: sa.Connection, *, process: str = "", before: int = LAST, limit: int = 20
) -> tuple[Failure, ...]:
    """The newest first; those of one process, where it is named."""
    query = sa.select(failures).where(failures.c.number < before)
    query = query.order_by(failures.c.number.desc()).limit(limit)
    if process:
        query = query.where(failures.c.process == process)
    return tuple(Failure(**row) for row in connection.execute(query).mappings())


def last_failure(connection: sa.Connection, process: str = "") -> Failure | None:
    """The newest; None where nothing has failed yet."""
    return next(iter(last_failures(connection, process=process, limit=1)), None)
