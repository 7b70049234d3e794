"""One outside system a file: each translates, none decides."""
