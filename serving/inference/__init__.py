"""From a bundle to an answered row: load, decode, batch, run, encode.

Belongs here: everything between a parsed request and its answer. May not: know HTTP (`serving.http`),
Redis, or who watches. The ways in are `bundle.load` and `model`.
"""
