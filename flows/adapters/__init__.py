"""One outside system a file: each translates, none decides.

Belongs here: translation between the domain's words and one system's. May not: decide, or know another
adapter; only `published` stands above some of them, and `stores` below. The way in is `flows.wiring`, which
alone chooses among them.
"""
