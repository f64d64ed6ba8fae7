"""Passwords and keys in URLs: found, and hidden in what is written down or shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

SECRETS = (
    re.compile(r"://[^:/@\s]*:(\S+)@"),
    re.compile(r"[?&]\w*(?:password|secret|token)\w*=([^&\s'\"]+)"),
    re.compile(r"--notify[ =]['\"]?\w+://([^\s'\"]+)"),  # a webhook's secret is its path
)
"""Find the passwords and keys in URLs: their first group."""


def without_secrets(text: str) -> str:
    """The text with ``***`` in place of the passwords and keys of its URLs."""
    for pattern in SECRETS:
        text = pattern.sub(lambda match: match[0].replace(match[1], "***"), text)
    return text


def shown_url(url: str) -> str:
    """A URL whose path is a secret, as it may be shown: "https://hooks.slack.com/***"."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}/***"
