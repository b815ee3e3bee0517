"""`safelight jobs`: what an operator asks a running service about its jobs, and does with them, over its API."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import click

TIMEOUT_SECONDS = 30.0
PAGE = 200
COLUMNS = "{:<32}  {:<10}  {:>8}  {:>5}  {:<16}  {}"
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

JobJson = dict[str, Any]


class Refused(click.ClickException):
    """The service cannot be asked, or says no."""


class Api:
    """The service at `url`. Every method raises `Refused`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def list(self, states: Sequence[str], reasons: Sequence[str], limit: int | None) -> Iterator[JobJson]:
        """Jobs of these states and reasons, newest first: `limit` at most, if it is given."""
        query: list[tuple[str, Any]] = [("limit", PAGE), *(("status", each) for each in states)]
        query += [("reason", each) for each in reasons]
        left = limit
        more: list[tuple[str, Any]] = []
        while left is None or left > 0:
            page = self._ask("GET", f"/jobs?{urllib.parse.urlencode([*query, *more])}")
            found = page["jobs"][:left]
            yield from found
            left = None if left is None else left - len(found)
            if page["next"] is None:
                return
            more = [("cursor", page["next"])]

    def get(self, job_id: str) -> JobJson:
        """One job."""
        return self._ask("GET", f"/jobs/{urllib.parse.quote(job_id, safe='')}")

    def cancel(self, job_id: str) -> JobJson:
        """End it."""
        return self._ask("DELETE", f"/jobs/{urllib.parse.quote(job_id, safe='')}")

    def again(self, job: JobJson) -> JobJson:
        """A new job with the parameters of an ended one; the same one, however often this is asked."""
        body = {
            **job["parameters"],
            "priority": job["priority"],
            "timeout_s": round(job["expires_at"] - job["created_at"], 3),
        }
        return self._ask("POST", "/generate", body, {"Idempotency-Key": f"again-{job['job_id']}"})

    def _ask(
        self, method: str, path: str, body: JobJson | None = None, headers: dict[str, str] | None = None
    ) -> JobJson:
        data = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        try:
            request = urllib.request.Request(self._url + path, data, sent, method=method)
            with OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
                found: JobJson = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            raise Refused(_problem(error)) from error
        except (OSError, ValueError) as error:
            raise Refused(f"{self._url} cannot be asked: {getattr(error, 'reason', error)}") from error


def _problem(error: urllib.error.HTTPError) -> str:
    try:
        problem = json.load(error)
        fields = "; ".join(f"{each['field']}: {each['detail']}" for each in problem.get("errors", ()))
        return f"{error.code}: {fields or problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{error.code}: {error.reason}"


def show(jobs: Iterator[JobJson], as_json: bool) -> int:
    """Print a line for each; return how many there were."""
    count = 0
    for job in jobs:
        if as_json:
            click.echo(json.dumps(job))
        else:
            if not count:
                click.echo(COLUMNS.format("job", "status", "age", "done", "reason", "prompt"))
            click.echo(_line(job))
        count += 1
    return count


def _line(job: JobJson) -> str:
    reason = "" if job["error"] is None else job["error"]["reason"]
    prompt = " ".join(job["parameters"]["prompt"].split())
    short = prompt if len(prompt) <= 40 else prompt[:39] + "…"
    return COLUMNS.format(
        job["job_id"], job["status"], _age(time.time() - job["created_at"]), f"{job['progress']:.0%}", reason, short
    )


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def retry(api: Api, jobs: Sequence[JobJson]) -> int:
    """Ask again for each job that ended without pictures; return an exit status."""
    status = 0
    for job in jobs:
        if job["status"] not in {"failed", "expired", "cancelled"}:
            click.echo(f"{job['job_id']} is {job['status']}: not asked for again", err=True)
            status = 1
            continue
        try:
            click.echo(f"{job['job_id']} -> {api.again(job)['job_id']}")
        except Refused as error:
            click.echo(f"{job['job_id']}: {error.message}", err=True)
            status = 1
    if not jobs:
        click.echo("there is no such job", err=True)
    return status


def cancel(api: Api, job_ids: Sequence[str]) -> int:
    """End each; return an exit status."""
    status = 0
    for job_id in job_ids:
        try:
            click.echo(f"{job_id} is {api.cancel(job_id)['status']}")
        except Refused as error:
            click.echo(f"{job_id}: {error.message}", err=True)
            status = 1
    return status


def main(action: str, url: str, **options: Any) -> int:
    """Do `action`; return the exit status."""
    api = Api(url)
    if action == "list":
        show(api.list(options["status"], options["reason"], options["limit"]), options["as_json"])
        return 0
    if action == "show":
        click.echo(json.dumps(api.get(options["job_id"]), indent=2))
        return 0
    if action == "cancel":
        return cancel(api, options["job_ids"])
    found = [api.get(each) for each in options["job_ids"]]
    if options["dead_letters"]:
        found += api.list(["failed"], ["dead_letter"], None)
    if not found and not options["dead_letters"]:
        click.echo("safelight: name jobs, or --dead-letters", err=True)
        return 2
    return retry(api, found)
