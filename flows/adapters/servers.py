"""A release's own servers, reached past the traffic split: golden requests."""

from __future__ import annotations

import httpx

from flows.domain.errors import VerificationFailed
from flows.domain.verification import Sample, mismatch


def ask(url: str, sample: Sample, timeout: float) -> tuple[int, object]:
    """Send a golden request to the server at base `url`; (HTTP status, decoded body).

    Raises httpx.HTTPError when there is no answer within `timeout` seconds.
    """
    answer = httpx.post(f"{url}/predict", json={"instances": sample.instances}, timeout=timeout)
    try:
        return answer.status_code, answer.json()
    except ValueError:
        return answer.status_code, answer.text


def verify(url: str, name: str, samples: list[Sample], timeout: float = 30.0) -> int:
    """Ask every golden request; the number of them. Raises VerificationFailed at the first wrong answer."""
    for sample in samples:
        try:
            status, body = ask(url, sample, timeout)
        except httpx.HTTPError as error:
            raise VerificationFailed(
                f"{name} did not answer line {sample.line} of samples.jsonl: {type(error).__name__}: {error}"
            ) from error
        wrong = mismatch(sample, status, body)
        if wrong is not None:
            raise VerificationFailed(f"{name} failed sample {sample.line} of samples.jsonl: {wrong}")
    return len(samples)
