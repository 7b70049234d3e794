"""What a person types: the verbs of `modelserve`.

Belongs here: arguments, help and exit codes. May not: decide anything; a verb calls a flow or a step and
shows what came of it by `flows.console`. The way in is `cli.main`.
"""
