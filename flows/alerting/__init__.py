"""The receiver of Alertmanager: who is to blame for an alert, and the rollback that answers it.

Belongs here: what happens between an alert and the call of the rollback flow. May not: judge evidence, or
know what a person types and reads (`flows.terminal`, `flows.console`). The way in is `receiver`.
"""
