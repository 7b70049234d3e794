"""The cluster wing of the domain: what a release looks like as Kubernetes and Istio objects.

Belongs here: specs and routes in, manifests out. May not: do input or output, or know the judge or drift.
The ways in are `manifests` (a release's own objects) and `mesh` (who gets the traffic).
"""
