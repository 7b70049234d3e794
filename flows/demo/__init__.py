"""The demonstration and the traffic that it replays.

Belongs here: what shows the product to somebody who has never seen it. May not: be imported by anything but
the command line. The ways in are `demo.run_demo` and `python -m flows.demo.traffic`.
"""
