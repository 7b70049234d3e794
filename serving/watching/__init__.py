"""What looks on beside a request: samples, shadow copies, the monitor.

Belongs here: bounded queues that drop rather than wait. May not: stand in the way of an answer; nothing
here is awaited by a request. The ways in are `samples`, `shadow` and `monitor`.
"""
