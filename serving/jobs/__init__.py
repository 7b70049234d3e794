"""`/batch-predict`: jobs that nobody waits for with an open connection.

A job's state is a row in PostgreSQL, its input and its results are chunks in the artifact store, and any
replica of the release may run it: the one that does holds a lease, and a fencing number goes with everything
that it writes. It runs in the batcher's background lane, beside online traffic.

Belongs here: the table of jobs, their inputs and chunks, the runner. May not: know HTTP (its routes are
`serving.http.jobs`) or run a model beside the batcher. The ways in are `runner` and `table`.
"""
