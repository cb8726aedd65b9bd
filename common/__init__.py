"""What every side agrees on: learners, models, tasks, the study, the records on the wire.

Pure values and pure functions. Nothing here opens a socket; only `study` reads a file, and only
`flower_records` knows that the messages travel over Flower.
"""
