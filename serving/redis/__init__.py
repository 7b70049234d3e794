"""The one way to Redis: a pipelined connection that never holds an answer up.

Belongs here: the wire and the link. May not: know what is stored. The way in is `link`.
"""
