"""The pure core: no I/O, no clock, no environment, no Prefect.

Belongs here: what all wings share (releases, routes, promotions, specs, errors), and the wings `judge`,
`drift` and `cluster`. May not: do input or output, read a clock or the environment; the wings do not know
each other. The way in is the module that has the name of the question.
"""
