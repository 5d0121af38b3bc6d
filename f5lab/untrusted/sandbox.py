"""Judging how the process that read an untrusted file ended, and what it said. No torch."""

import json
import signal
from collections.abc import Mapping
from typing import Any

from f5lab.untrusted.manifests import Manifest, decode
from f5lab.untrusted.processes import Ended, Running, start_limited
from f5lab.untrusted.refusals import Refused


def read_manifest(descriptor: int, running: Running | None = None) -> Manifest:
    """Return the manifest of the file on a descriptor, read in a limited process: `running`, or a new one.

    Raises
    ------
    Refused
        The file breaks a rule; that process dying, being killed or taking too long is rule ``child-died``.
    """
    answer = _answer((running or start_limited("file_reader", descriptor)).end())
    if "refused" in answer:
        raise Refused(*answer["refused"])
    return decode(answer["manifest"])


def _answer(ended: Ended) -> Mapping[str, Any]:
    if ended.stopped:
        raise Refused("child-died", f"the process that reads it was killed: {ended.stopped}")
    if ended.status:
        raise Refused("child-died", f"the process that reads it ended with {_status_text(ended.status)}")
    try:
        answer = json.loads(ended.answer)
    except ValueError:
        raise Refused("child-died", "the process that reads it gave no answer") from None
    return answer


def _status_text(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
