"""What people look at: the alerts, and the runbooks."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt

from observability.inbox.deadman import Status
from observability.inbox.store import Record

RUNBOOK_NAME = re.compile(r"[A-Za-z0-9]+")
SEVERITIES = ("critical", "warning", "info")  # the worst is first
REFRESH_SECONDS = 10


class Pages:
    """Renders HTML that needs nothing else; what alerts say is escaped. `runbooks` is a folder of Markdown files."""

    def __init__(self, runbooks: Path) -> None:
        self._folder = runbooks
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).with_name("templates")),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(severity=severity, stamp=stamp, span=span, link=link)

    def alerts(self, firing: Sequence[Record], resolved: Sequence[Record], watchdog: Status, now: float) -> str:
        """The page that one leaves open."""
        return self._templates.get_template("alerts.html").render(
            firing=sorted(firing, key=lambda each: (_rank(each), -each.starts_at)),
            resolved=resolved,
            watchdog=watchdog,
            runbooks=set(self.runbooks()),
            now=now,
            refresh=REFRESH_SECONDS,
        )

    def runbooks(self) -> list[str]:
        """The names of those there are."""
        return sorted(each.stem for each in self._folder.glob("*.md") if RUNBOOK_NAME.fullmatch(each.stem))

    def runbook_list(self) -> str:
        """A page of links to them."""
        return self._templates.get_template("runbooks.html").render(runbooks=self.runbooks())

    def runbook(self, name: str) -> str | None:
        """One of them, or None if there is none; also by its file's name, as one links to another."""
        name = name.removesuffix(".md")
        if not RUNBOOK_NAME.fullmatch(name):
            return None
        try:
            source = (self._folder / f"{name}.md").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        body = self._markdown.render(source)
        return self._templates.get_template("runbook.html").render(name=name, body=body)


def _rank(alert: Record) -> int:
    return [*SEVERITIES, "other"].index(severity(alert))


def severity(alert: Record) -> str:
    """One of `SEVERITIES`, or `other`."""
    told = alert.labels.get("severity", "")
    return told if told in SEVERITIES else "other"


def stamp(seconds: float) -> str:
    """Unix time for people."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def link(text: str) -> str:
    """`text` if it may be a link; else nothing, as for a script."""
    return text if re.match(r"https?://", text) else ""
