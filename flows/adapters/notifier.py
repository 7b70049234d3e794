"""Messages to people, through Apprise: mail, chat, pagers, webhooks, a hundred services by URL."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.domain.errors import ModelServeError
from flows.domain.notices import Urgency

SECONDS = 15
"""How long one message may take to be accepted."""


@dataclass(frozen=True)
class Address:
    """One place where somebody reads. `key` and `shown` name it without its URL: any part may be a secret."""

    key: str
    shown: str
    service: Any

    def send(self, title: str, body: str, urgency: Urgency, picture: Path | None) -> str | None:
        """Send one message (Markdown); what went wrong, or None."""
        from apprise import Apprise, NotifyFormat
        from apprise.logger import LogCapture

        sender = Apprise()
        sender.add(self.service)
        capture = LogCapture(level=logging.WARNING, fmt="%(message)s")  # type: ignore[no-untyped-call]
        with capture as said:
            sent = sender.notify(
                body=body,
                title=title,
                notify_type=urgency.value,
                body_format=NotifyFormat.MARKDOWN,
                attach=str(picture) if picture else None,
            )
            words = " ".join(str(said.getvalue()).split()) if not sent else ""
        return None if sent else f"{self.shown}: {words or 'it was not accepted'}"


def addresses(urls: str) -> Sequence[Address]:
    """Of Apprise's URLs, separated by blanks. Raises ModelServeError that names one which is none."""
    from apprise import Apprise

    found = []
    for number, url in enumerate(urls.split(), start=1):
        service = Apprise.instantiate(url)
        if service is None:
            scheme = url.split("://")[0] if "://" in url else "no scheme"
            raise ModelServeError(
                f"MODELSERVE_NOTIFY: address {number} ({scheme}) is none that Apprise knows; "
                "see https://appriseit.com/services/"
            )
        service.socket_connect_timeout = service.socket_read_timeout = SECONDS
        key = hashlib.sha256(url.encode()).hexdigest()[:16]
        found.append(Address(key, f"address {number} ({url.split('://')[0]})", service))
    return found
