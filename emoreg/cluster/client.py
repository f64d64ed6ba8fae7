"""Ray's client of a cluster's jobs, behind the HTTP address of its dashboard: each call ends, and says what is amiss."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from emoreg.config import without_secrets
from emoreg.errors import ConfigError
from emoreg.storage.retry import Patience
from emoreg.tuning.private_ray import environment

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_TIMEOUT = (5.0, 60.0)  # seconds to connect, and to answer
_OUTAGE_SECONDS = 300.0
_POLL_SECONDS = (1.0, 15.0)
_POLL_SHARE = 10  # a log that takes long to fetch is asked for at most a tenth of the time


class NoAnswer(ConfigError):
    """A dashboard that does not answer, or not as one."""


def connect(address: str) -> JobSubmissionClient:
    """The client of the cluster whose dashboard is at ``http://HOST:PORT``.

    Raises:
        ConfigError: for an address that is no dashboard's, a dashboard that does not answer (``NoAnswer``), a token that is
            missing or wrong, or a machine that lacks what Ray needs to submit. The client's calls raise it too.
    """
    _check_address(address)
    if importlib.util.find_spec("aiohttp") is None:
        raise ConfigError('Run pip install "emoreg[cluster]": Ray\'s client, which submits to a cluster, lacks aiohttp here')
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    if mode not in ("token", "disabled"):  # Ray would take it for the latter
        raise ConfigError(f"Unset RAY_AUTH_MODE for 'token': it must be 'token' or 'disabled', but it is {mode!r}")
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard").propagate = False  # warnings are still shown

    class Client(JobSubmissionClient):
        """Ray's, which by itself waits for an answer without end."""

        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            try:
                response = super()._do_request(*arguments, timeout=_TIMEOUT, **options)
            except requests.RequestException as error:
                raise _no_answer(address, error) from error
            except AuthenticationError as error:
                raise _token_refused(address, error) from error
            if response.status_code >= 500:
                raise _no_answer(address, response.text)
            return response

    try:
        with environment({"RAY_API_SERVER_ADDRESS": address}):  # Ray prefers what it reads there
            return Client(address)
    except (requests.RequestException, RuntimeError, KeyError) as error:
        raise _no_answer(address, error) from error
    except AuthenticationError as error:  # there is no token here
        raise _token_refused(address, error) from error


def follow(client: JobSubmissionClient, job_id: str, *, seen: int = 0, notify: Callable[[str], None]) -> Iterator[str]:
    """A job's log from character ``seen`` on, as it comes, until the job has ended; an outage is told to ``notify``.

    Raises:
        NoAnswer: for an outage of five minutes.
    """
    patience = Patience(_OUTAGE_SECONDS, notify=notify)

    def ask() -> tuple[bool, str]:  # the job first: the log of one that has ended is whole
        return client.get_job_status(job_id).is_terminal(), client.get_job_logs(job_id)

    shortest, longest = _POLL_SECONDS
    while True:
        began = time.monotonic()
        has_ended, text = patience.retry(
            ask, when=lambda error: isinstance(error, NoAnswer), reason="the dashboard does not answer"
        )
        if len(text) > seen:
            yield text[seen:]
            seen = len(text)
        if has_ended:
            return
        time.sleep(min(max(shortest, _POLL_SHARE * (time.monotonic() - began)), longest))


def _check_address(address: str) -> None:
    """Refuse what is not the URL of a dashboard."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        host = parts.hostname or (address.partition(":")[0] if ":" in address else "HEAD")
        raise ConfigError(
            f"Give http://HOST:PORT, which is http://{host}:8265 unless the cluster was told otherwise (6379 and 10001 are "
            f"other services of Ray): --address must be the URL of a Ray dashboard, but it is {without_secrets(address)!r}"
        )


def _token_refused(address: str, error: object) -> ConfigError:
    return ConfigError(
        "Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or write ~/.ray/auth_token, and leave RAY_AUTH_MODE unset ('disabled' is "
        f"for a cluster without a token): {address} wants its own token, but {_first_line(error)}. `ray get-auth-token "
        "--generate` makes one for a cluster that is then started with it"
    )


def _no_answer(address: str, error: object) -> NoAnswer:
    return NoAnswer(
        "See that the cluster runs, and that its port is forwarded to this machine, e.g. ssh -L 8265:127.0.0.1:8265 HEAD: "
        f"{address} does not answer as the dashboard of a Ray cluster ({_first_line(error)})"
    )


def _first_line(error: object) -> str:
    return without_secrets(str(error)).strip().partition("\n")[0].rstrip(".")[:300]
