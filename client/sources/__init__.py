"""Where a hospital's own rows come from; each source gives `Records`, text cells by column name.

A kind of source is one file with one settings class, found by its name: `SOURCES`. It checks the shape of
what it reads. `mapping` gives the records the study's names, codes and units, for all kinds alike; what the
cells mean is the study's table's business (`common.tasks.table.encode`). `checking` says all that is wrong
at once, before any training. No message of any of them holds a cell.
"""

from clinimeta.client.sources.base import Source
from clinimeta.common.registry import Registry

SOURCES: Registry[Source] = Registry("kind of data source", __name__)
