"""Measurements that are too long for a test: each a module that is run by hand, its results kept as CSV.

`tune` chose the default study's hyperparameters; `tables` turns a finished run into a CSV and Markdown.
"""
