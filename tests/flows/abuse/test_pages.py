"""What anonymous users send stands in pages that people open: it is text there, and nothing of it runs.

The pages are read as a browser's tokenizer does, and each script that it would run is compared with the
page's policy.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from flows.adapters.evidently import draw
from flows.domain.drift.findings import DriftResult, Outcome
from flows.domain.drift.page import page
from flows.domain.pages import plain, plain_markdown, with_policy

MARKER = "marker()"
VALUES = [
    f"</script><script>{MARKER}</script>",
    f"<img src=x onerror={MARKER}>",
    f"<!--<script>{MARKER}",
    f"&lt;script&gt;{MARKER}",
    "plain & simple",
]


class Browser(HTMLParser):
    """Scripts, handlers and addresses, in the order of the page, and the policy over them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[str] = []
        self.handlers: list[str] = []
        self.loaded: list[str] = []
        self.policies: list[str] = []
        self.before_policy: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.handlers += [value or "" for name, value in attributes if name.startswith("on")]
        if tag == "meta" and (given.get("http-equiv") or "").lower() == "content-security-policy":
            self.policies.append(given["content"] or "")
        elif not self.policies:
            self.before_policy.append(tag)
        self.loaded += [given[name] or "" for name in ("src", "href") if given.get(name)]
        if tag == "script":
            self.scripts.append("")
            self._in_script = True

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data

    def runs(self) -> list[str]:
        """The scripts that the policy lets run."""
        [policy] = self.policies
        allowed = set(re.findall(r"'sha256-([^']+)'", policy))
        hashed = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode(): s for s in self.scripts}
        return [script for digest, script in hashed.items() if digest in allowed]


def check(text: str, scripts: int) -> None:
    browser = Browser(text)
    assert browser.before_policy == ["html", "head"]
    [policy] = browser.policies
    assert policy.startswith("default-src 'none'; script-src ")
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert "unsafe-eval" not in policy
    assert len(browser.scripts) == len(browser.runs()) == scripts, "as many as without the values"
    assert browser.handlers == []
    assert not [address for address in browser.loaded if not address.startswith(("data:", "#"))]


def test_a_value_ends_no_script_of_evidently_s_page() -> None:
    frames = [pd.DataFrame({"kind": kinds * 40}) for kinds in (["a", "b", "a", "b", "b"], VALUES)]
    quiet = draw(frames[0], frames[0], [], ["kind"])
    hostile = draw(frames[0], frames[1], [], ["kind"])
    scripts = len(Browser(quiet.html.decode()).scripts)
    assert scripts >= 3
    check(hostile.html.decode(), scripts)
    for script in Browser(hostile.html.decode()).scripts:
        assert not script.lstrip().startswith(MARKER)
    assert hostile.columns == 1


def test_our_own_page_has_no_script_at_all() -> None:
    result = DriftResult(model="m", release=None, outcome=Outcome.FAILED, sentence=VALUES[0])
    text = page(result, second_opinion=VALUES[1], link='"><script>')
    check(text.replace('href="&quot;&gt;&lt;script&gt;"', 'href="#"'), 0)


def test_texts_stay_different_and_nothing_is_markup() -> None:
    shown = [plain(value) for value in VALUES]
    assert len(set(shown)) == len(VALUES)
    assert not [text for text in shown if "<" in text or ">" in text]
    assert plain_markdown(f"| {VALUES[1]} |") == f"| &lt;img src=x onerror={MARKER}> |"


def test_a_page_without_a_head_gets_no_policy_in_silence() -> None:
    with pytest.raises(ValueError, match="no head"):
        with_policy("<p>text</p>")
