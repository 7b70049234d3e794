"""What flows are made of: each module is one thing that a flow does, over the ports of the control plane.

Belongs here: restore, watch, report, approval, registration and their like. May not: know the flows above
them (`flows.promote` and its siblings), the terminal, the demonstration or the receiver of alerts. The ways
in are the modules' functions, which take the control plane as their first argument.
"""
