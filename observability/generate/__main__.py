"""`python -m observability.generate` writes everything that is made from `slo.yaml`; `--check` only compares."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from observability import slo
from observability.generate import dashboards, kubernetes, runbooks
from observability.generate.dashboards import build
from observability.generate.files import ROOT, SOURCE, alerts, prometheus, promtool, rule_files


def written() -> Iterator[tuple[Path, str]]:
    """Every file, with its text."""
    found = slo.load()
    for path, text in (*prometheus(found), *promtool(found)):
        yield ROOT / "prometheus" / path, text
    every = [alert for groups in rule_files(found).values() for alert in alerts(groups)]
    yield ROOT / "docs" / "runbooks" / "README.md", runbooks.index(every)
    kubernetes_base = ROOT / "deploy" / "kubernetes" / "base"
    yield kubernetes_base / "rules.yaml", kubernetes.prometheus_rule(found, rule_files(found), SOURCE)
    yield kubernetes_base / "dashboards.yaml", kubernetes.config_maps(found, SOURCE)
    for each in dashboards.every(found):
        yield ROOT / "grafana" / "dashboards" / f"{each.name}.json", build.to_json(each)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with status 1 if a file is not as it would be.")
def main(check: bool) -> None:
    """Write rules, their tests, dashboards and the list of runbooks from observability/slo.yaml."""
    stale = [(path, text) for path, text in written() if not path.is_file() or path.read_text() != text]
    for path, text in stale:
        click.echo(f"{'differs' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    sys.exit(int(check and bool(stale)))


if __name__ == "__main__":
    main()
