"""The Python packages of a model: asked for in its folder, locked once, installed the same everywhere.

`register` resolves them over the server's own pins into `packages.lock`, a file of the sealed bundle with a
version and a digest a line. The image and the local process install exactly that.

Belongs here: reading requirements, the server's own packages, pip, environments on this machine. May not:
decide which release runs. The way in is `Packages`.
"""

from flows.adapters.packages.locking import KINDS, LOCK, Lock, Packages

__all__ = ["KINDS", "LOCK", "Lock", "Packages"]
