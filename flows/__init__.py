"""The control plane: Prefect flows that build, scan, start, shift, judge and roll back releases.

Belongs here: the flows themselves, one a file, and `wiring`, `settings` and `bootstrap`. May not: import
`serving`; hold in a flow what a step (`flows.steps`) could do. The ways in are `prefect.yaml`, which names
the flows, and `wiring.control_plane`.
"""
