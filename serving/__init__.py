"""The data plane: one FastAPI server that answers for one release of one model.

Belongs here: everything between a connection and a model. May not: import `flows`; it meets the control
plane over HTTP, environment variables, metric names and `model.yaml`. The way in is `python -m serving`.
"""
