"""The drift wing of the domain: does the traffic still look like what the model has learned, and does it
hurt?

Belongs here: profiles and samples in, findings and what follows from them out. May not: do input or output,
read a clock, or know the judge or the cluster. The ways in are `check.check` and `profile`.
"""
