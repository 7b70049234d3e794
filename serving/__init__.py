"""The data plane: one FastAPI server that answers for one release of one model."""
