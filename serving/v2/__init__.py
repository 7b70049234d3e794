"""The Open Inference Protocol, version 2, over HTTP, with the binary tensor extension.

Belongs here: tensors on the wire and the protocol's routes. May not: run a model; it hands rows to
`serving.service`. The way in is `routes`.
"""
