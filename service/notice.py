"""Notice that a spot machine is about to be taken away: a file that appears, or a URL that answers."""

import asyncio
import http.client
import logging
import urllib.request
from pathlib import Path

log = logging.getLogger("safelight")

LOOK_SECONDS = 2.0
ANSWER_SECONDS = 1.0
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is the machine's own


async def noticed(where: str) -> None:
    """Return once there is notice. A URL gives it by any answer but an error: clouds say 404 when there is none."""
    while not await asyncio.to_thread(_is_there, where):  # noqa: ASYNC110  # nothing here tells when
        await asyncio.sleep(LOOK_SECONDS)
    log.warning("there is notice at %s: this machine is about to go", where)


def _is_there(where: str) -> bool:
    if "://" not in where:
        return Path(where).exists()
    try:
        OPENER.open(where, timeout=ANSWER_SECONDS).close()
    except (OSError, http.client.HTTPException):
        return False
    return True
