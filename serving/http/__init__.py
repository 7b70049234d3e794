"""How a request comes in and how its answer goes out.

Belongs here: bytes on the connection, routes, limits, keys, documents. May not: know how a model computes;
it hands a body to `serving.service`. The ways in are `edge` (the outermost application) and `protocol` (the
connection).
"""
