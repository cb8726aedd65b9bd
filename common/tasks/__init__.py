"""From a hospital's table to few-shot tasks.

`table` reads records into tensors as the study's columns say, `episode` holds support and query set,
`sampler` draws episodes, `batch` pads ragged ones together, `objective` is what a task optimises.
"""
