"""Where a hospital's own rows come from; each source gives `Records`, text cells by column name.

`csv_files` reads a CSV file. A source checks the shape of what it reads (a header, equal lines); what the
cells mean is the study's table's business (`common.tasks.table.encode`).
"""
