"""Answers that are known already: the last second of this process, and Redis for all replicas.

Belongs here: keys, lookups, their cost. May not: know HTTP, or hold an answer up when Redis is slow. The
way in is `cache`.
"""
