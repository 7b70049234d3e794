"""The OpenAPI document of one server, from its model's own signature.

Belongs here: what every route takes and answers, as data. May not: answer a request, or be needed for one.
The way in is `document.describe`.
"""
