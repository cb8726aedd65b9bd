"""The tables of the chronicle: what a console in another process can show, live and after the fact.

Times are ISO 8601 in UTC, so that they sort as text. `change` is the number of the write that touched a row
last; numbers only grow, so "what is new since N" is one look into an index.
"""

import sqlalchemy as sa

from clinimeta.server.database import metadata

changes = sa.Table(
    "changes",
    metadata,
    sa.Column("one", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)
"""One row: the number of the newest write of a round loop."""

rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("experiment", sa.String(40), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("training", sa.String(200), nullable=False),
    sa.Column("started", sa.String(40), nullable=False),
    sa.Column("ended", sa.String(40)),
    sa.Column("cohort", sa.Integer, nullable=False),
    sa.Column("accepted", sa.Integer, nullable=False, default=0),
    sa.Column("metrics", sa.Text, nullable=False, default="{}"),  # JSON: name -> mean over hospitals
    sa.Column("spread", sa.Text, nullable=False, default="{}"),  # JSON: name -> least, quartiles, most, sites
    sa.Column("gradient_norm", sa.Float),
    sa.Column("bytes_down", sa.Integer, nullable=False, default=0),
    sa.Column("bytes_up", sa.Integer, nullable=False, default=0),
    sa.Column("seconds", sa.Float),
    sa.Column("rollbacks", sa.Integer, nullable=False, default=0),
    sa.Column("epsilon", sa.Float),  # so far; where the plan promises one
    sa.Column("why", sa.Text, nullable=False, default=""),  # it failed, where it did
    sa.Column("change", sa.Integer, nullable=False),
    sa.Index("rounds_by_change", "experiment", "change"),
)
"""One row a round, from its beginning on; a round that is done again replaces its row."""

answers = sa.Table(
    "answers",
    metadata,
    sa.Column("experiment", sa.String(40), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("site", sa.String(200), primary_key=True),
    sa.Column("phase", sa.String(20), nullable=False),
    sa.Column("asked", sa.String(40), nullable=False),
    sa.Column("at", sa.String(40), nullable=False),  # when `phase` was reached
    sa.Column("seconds", sa.Float),  # from the question to the answer
    sa.Column("bytes_down", sa.Integer, nullable=False, default=0),
    sa.Column("bytes_up", sa.Integer, nullable=False, default=0),
    sa.Column("code", sa.String(60), nullable=False, default=""),
    sa.Column("sentence", sa.String(300), nullable=False, default=""),
    sa.Column("metrics", sa.Text, nullable=False, default=""),  # JSON, where answers come in clear
    sa.Column("change", sa.Integer, nullable=False),
    sa.Index("answers_by_site", "site", "asked"),
)
"""One row for each time a hospital was asked in a round. `phase`: asked; adapted or masked (its answer is
here, and not judged yet); received (it counts); dropped (of secure aggregation), refused, or silent.
"""

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("experiment", sa.String(40), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),  # of the conversation; hospitals keep it by this
    sa.Column("begun", sa.String(40), nullable=False),
    sa.Column("ended", sa.String(40)),
    sa.Column("asked", sa.Integer, nullable=False),
    sa.Column("threshold", sa.Integer),  # known once hospitals have said that they take part
    sa.Column("survivors", sa.Integer),
    sa.Column("aborted", sa.Text, nullable=False, default=""),
    sa.Column("lost", sa.Text, nullable=False, default="{}"),  # JSON: phase -> hospital -> why
    sa.Column("phases", sa.Text, nullable=False, default="{}"),  # JSON: phase -> [begun, ended]
    sa.Column("change", sa.Integer, nullable=False),
)
"""One row an attempt of secure aggregation: who it lost in which phase, and what came of it."""

openings = sa.Table(
    "openings",
    metadata,
    sa.Column("experiment", sa.String(40), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("at", sa.String(40), nullable=False),
)
"""Noisy sums that the coordinator has seen, which are what a promise is spent on. Kept when a round is done
again: under another name the noise is another, and both sums were seen.
"""

sightings = sa.Table(
    "sightings",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("site", sa.String(200), nullable=False),
    sa.Column("since", sa.String(40), nullable=False),
    sa.Column("until", sa.String(40), nullable=False),
    sa.Column("standing", sa.String(20), nullable=False),  # waiting, approved, revoked
    sa.Column("software", sa.String(200)),
    sa.Column("rows_from", sa.Integer),
    sa.Column("rows_to", sa.Integer),
    sa.Column("policy", sa.String(64)),  # digest, where the hospital tells it
    sa.Column("budget_left", sa.Float),  # epsilon, where the hospital tells it
    sa.Index("sightings_by_site", "site", "until"),
)
"""One row an interval through which a hospital was there and said the same of itself."""

proposals = sa.Table(
    "proposals",
    metadata,
    sa.Column("plan", sa.String(64), primary_key=True),  # its digest
    sa.Column("study", sa.String(200), nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("made_at", sa.String(40), nullable=False),
    sa.Index("proposals_by_time", "made_at"),
)
"""One row a plan that hospitals are asked about before a run."""

verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("plan", sa.String(64), primary_key=True),
    sa.Column("site", sa.String(200), primary_key=True),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("codes", sa.Text, nullable=False),  # JSON list of refusals; empty: it would answer
)
"""One row for what a hospital last said of a plan."""

failures = sa.Table(
    "failures",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("process", sa.String(60), nullable=False),  # daemon, link, round-loop-N
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("where", sa.Text, nullable=False, default=""),
    sa.Column("remedy", sa.Text, nullable=False, default=""),
    sa.Index("failures_by_process", "process", "number"),
)
"""What went wrong with the coordinator's own processes; only the last ones are kept."""
