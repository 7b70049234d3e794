"""What a person reads in a terminal: tables of the registry's words, and a promotion followed as it goes.

Belongs here: rows and events in, text out. May not: change anything, or know the verbs that call it. The
ways in are `tables` and `following`.
"""
