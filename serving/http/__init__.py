"""How a request comes in and how its answer goes out.

Belongs here: bytes on the connection, the edge in front of all routes, the routes of jobs. May not: know how
a model computes; it hands a request (`serving.exchange`) to `serving.service`. The ways in are `protocol`
(the connection) and `edge` (the outermost application).
"""
