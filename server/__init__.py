"""The coordinator's side: whom to ask, what to accept, the outer step, and what is kept on disk.

`flow` is a round as a conversation without I/O, `cohort` and `aggregation` are its parts, `link` holds
the conversation over Flower's Grid, `training` is the state that a round changes, `store` is the run
directory, `app` is the ServerApp that puts them together.
"""
