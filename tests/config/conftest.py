"""The folders that are configuration, and Prometheus' and Alertmanager's own checkers."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, folder: Path = ROOT) -> str:
    """What a checker says; it fails the test when it does not agree."""
    done = subprocess.run(
        [str(each) for each in command], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(params=["cpu", "gpu", "demo-gpu"])
def prometheus_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Prometheus' folder as a container of one profile sees it."""
    source = ROOT / "prometheus"
    (tmp_path / "rules").symlink_to(source / "rules")
    (tmp_path / "prometheus.yml").symlink_to(source / "prometheus.yml")
    (tmp_path / "slo.yml").symlink_to(source / "slo" / ("default.yml" if request.param == "gpu" else "demo.yml"))
    (tmp_path / "targets.yml").symlink_to(source / "targets" / f"{request.param}.yml")
    return tmp_path
