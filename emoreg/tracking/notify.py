"""A word when a run of a study has ended, however it did: a POST of JSON to a URL that may be a secret."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit

from emoreg.config import shown_url, without_secrets
from emoreg.errors import UserError
from emoreg.formatting import by_status, configuration, counted, metric_text
from emoreg.results.status import read_status

_ANSWER_SECONDS = 10.0


@contextmanager
def notifying(url: str, study: str, place: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Run a study within; at the end send how it stands in ``place``, its folder or URI.

    ``tell`` is told if the word was not taken, which changes nothing else.
    """
    try:
        yield
    except Exception as error:
        _send(url, _failed(study, error), tell)
        raise
    _send(url, _ended(study, place), tell)


def _ended(study: str, place: str) -> dict[str, Any]:
    try:
        status = read_status(place)
    except (UserError, OSError) as error:  # the storage does not answer any more
        return _failed(study, error)
    trials, best = status.trials, status.best
    counts = {"finished": trials.finished, "pruned": trials.pruned, "failed": trials.failed}
    text = f"study {status.name!r}: {status.ending}, {trials.ended} of {counted(trials.planned, 'trial')} have ended, "
    text += by_status(counts)
    if status.stop_reason is not None:
        text += f"; it stopped {status.stop_reason}"
    if best is not None:
        text += f"; best {metric_text(best.metric, best.value)}: {configuration(best.backbone, best.params)}"
    return {
        "text": text,
        "study": status.name,
        "place": without_secrets(status.place),
        "ending": status.ending,
        "reason": status.stop_reason,
        "trials": asdict(trials),
        "best": None if best is None else asdict(best),
    }


def _failed(study: str, error: Exception) -> dict[str, Any]:
    reason = without_secrets(str(error))
    return {"text": f"study {study!r} could not go on: {reason}", "study": study, "ending": "error", "reason": reason}


def _send(url: str, content: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    headers = {"Content-Type": "application/json", "User-Agent": "emoreg"}
    if at:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    try:
        request = urllib.request.Request(parts._replace(netloc=host).geturl(), json.dumps(content).encode(), headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_ANSWER_SECONDS):
            pass
    except (OSError, HTTPException, ValueError) as error:
        why = getattr(error, "reason", None) or type(error).__name__  # an error's text may hold the URL
        tell(f"Check --notify: {shown_url(url)} must take a POST of JSON, but it did not ({why})")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere, with what may be a password."""

    def redirect_request(self, *request: Any) -> None:
        """Follow nobody."""
