"""One folder a model: everything that a team says about it."""
