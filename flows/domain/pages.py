"""What every page and report that is stored has in common: nothing in it runs but what we have put there.

What users send stands in these pages: the values of a category, a reason that somebody gave. Text is escaped
where it enters, and each page carries a policy by which a browser runs its own scripts only, by their hash,
and loads nothing from anywhere. The pages are opened from a bucket, so the policy is in the page.
"""

from __future__ import annotations

import base64
import hashlib
import re

_SCRIPT = re.compile(r"<script\b[^>]*>(.*?)</script", re.DOTALL | re.IGNORECASE)
_HEAD = re.compile(r"<head\b[^>]*>", re.IGNORECASE)


def plain(text: str) -> str:
    """Text that is no markup in HTML, in a script's string, or in Markdown. Equal texts stay equal, others
    different."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plain_markdown(text: str) -> str:
    """Markdown of our own without HTML in it, which we never write."""
    return text.replace("<", "&lt;")


def with_policy(page: str) -> str:
    """The page with its Content-Security-Policy: the scripts that are in it now run, no others.

    Raises ValueError when it has no head.
    """
    head = _HEAD.search(page)
    if head is None:
        raise ValueError("the page has no head to put a policy into")
    scripts = " ".join(f"'sha256-{_hashed(script)}'" for script in _SCRIPT.findall(page)) or "'none'"
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
        "font-src data:; worker-src blob:; base-uri 'none'; form-action 'none'"
    )
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return page[: head.end()] + meta + page[head.end() :]


def _hashed(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
