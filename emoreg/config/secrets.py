"""Passwords and keys in URLs: found, and hidden in what is written down or shown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, unquote_plus, urlsplit

SECRETS = (
    re.compile(r"://[^:/\s]*:(\S+)@"),  # up to the last @: a password may hold some
    re.compile(
        r"[?&](?:[\w-]*(?:pass|pwd|secret|token|key|signature|credential)[\w-]*|sig)=([^&\s]+?)(?=['\"]*(?:[&\s]|$))",
        re.IGNORECASE,
    ),
    re.compile(r"--notify[ =]['\"]?\w+://([^\s'\"]+)"),  # a webhook's secret is its path
)
"""Find the passwords and keys in URLs: their first group."""


def without_secrets(text: str, url: str = "") -> str:
    """The text with ``***`` in place of the passwords and keys of its URLs.

    Args:
        text: to be shown.
        url: whose passwords and keys are hidden wherever they stand in the text, percent-encoded or not.
    """
    for pattern in SECRETS:
        text = pattern.sub(_masked, text)
    for secret in (match[1] for pattern in SECRETS for match in pattern.finditer(url)):
        for form in {secret, unquote(secret), unquote_plus(secret), quote(unquote(secret), safe="")}:
            text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "***", text)
    return text


def shown_url(url: str) -> str:
    """A URL whose path is a secret, as it may be shown: "https://hooks.slack.com/***"."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}/***"


def is_percent_encoded(uri: str) -> bool:
    """Whether the password in a URL has no @, / or blank: else it would be cut elsewhere than it is meant, and a part shown."""
    userinfo = uri.partition("://")[2].rpartition("@")[0]
    return not re.match(r"[^:/]*:.*[@/\s]", userinfo)


def hide_secrets(part: Any) -> Any:
    """A configuration, or a value in it, with the passwords and keys in its texts hidden."""
    if isinstance(part, str):
        hidden = without_secrets(part)
        return part if hidden == part else hidden  # a name that was read from disk stays one
    if isinstance(part, tuple):
        return tuple(map(hide_secrets, part))
    if isinstance(part, Mapping):
        return {key: hide_secrets(value) for key, value in part.items()}
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        values = {item.name: hide_secrets(getattr(part, item.name)) for item in dataclasses.fields(part)}
        return dataclasses.replace(part, **values)
    return part


def _masked(match: re.Match[str]) -> str:
    start, end = match.start(1) - match.start(), match.end(1) - match.start()
    return f"{match[0][:start]}***{match[0][end:]}"
