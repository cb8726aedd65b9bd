"""Secure aggregation: the coordinator learns the sum of the sites' vectors and nothing else.

The protocol of Bonawitz et al. (CCS 2017) with signed adverts, masks bound to the model, and a trip in
which the sites confirm to each other whom they add up. `protocol` plays it from end to end and is the
place to start reading; `site` and `coordinator` are its two sides. Everything here is pure: no files,
no network, no learner; time, randomness and the site's memory are arguments.
"""
