"""Differential privacy's pure core: what a promise costs, and the arithmetic that keeps it.

`promise` says what is promised to whom, `accounting` what it costs, `utility` what it leaves to learn;
`clipping`, `discrete_gaussian` and `noise` are the mechanism. Nothing here knows of models or messages.
"""
