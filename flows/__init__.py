"""The control plane: Prefect flows that build, scan, start, shift, judge and roll back releases."""
