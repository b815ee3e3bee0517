"""Settings and the command line: complete, and clear about what is wrong."""

import re

import pytest
from click.testing import CliRunner

from service.__main__ import main
from service.errors import StartupError
from service.settings import Settings, load


def test_help_names_every_setting_as_option_and_variable() -> None:
    """`safelight serve --help` is complete."""
    shown = CliRunner().invoke(main, ["serve", "--help"]).output
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert f"SAFELIGHT_{name.upper()}" in re.sub(r"\s+", "", shown)
        assert field.description, f"{name} is explained"


def test_an_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the environment over the default."""
    monkeypatch.setenv("SAFELIGHT_MAX_BATCH", "3")
    assert load().max_batch == 3
    assert load(max_batch="5").max_batch == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_batch", "0"), ("port", "99999"), ("device", "tpu"), ("retention_seconds", "-1"), ("queue_limit", "many")],
)
def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """In one line, with what was given."""
    monkeypatch.setenv(f"SAFELIGHT_{name.upper()}", value)
    with pytest.raises(StartupError, match=f"^SAFELIGHT_{name.upper()} .*'{value}'$") as error:
        load()
    assert "\n" not in error.value.detail


def test_settings_cannot_be_changed() -> None:
    """They are read once."""
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1


def test_all_that_is_kept_lies_in_the_data_folder() -> None:
    """Database and pictures, unless they are placed elsewhere."""
    settings = load(data_dir="/some/where")
    assert settings.resolved_database_url == "sqlite:////some/where/safelight.db"
    assert settings.resolved_storage_url == "/some/where/images"
    assert load(storage_url="s3://bucket/x").resolved_storage_url == "s3://bucket/x"


def test_slots_and_sizes_are_read_from_short_lists() -> None:
    """As `512x512=8,64x128=2` and `512x512,64x128`."""
    settings = load(slots="512x512=8,64x128=2", profile_sizes="512x512,64x128")
    assert settings.slots_by_size == {(512, 512): 8, (64, 128): 2}
    assert settings.sizes_to_profile == [(512, 512), (64, 128)]
    assert load().slots_by_size == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slots", "8"),
        ("slots", "64x64=0"),
        ("slots", "64x64=2,"),
        ("profile_sizes", "64"),
        ("profile_sizes", "0x64"),
        ("faults", "oom_above=x"),
        ("faults", "oom_abov=2"),
        ("faults", "on"),
    ],
)
def test_a_list_that_cannot_be_read_names_its_variable(name: str, value: str) -> None:
    """With an example of what would do."""
    with pytest.raises(StartupError, match=f"SAFELIGHT_{name.upper()}.*such as"):
        load(**{name: value})
