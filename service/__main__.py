"""The command line: `safelight serve` and what else there is to run."""

import sys
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

import click

from service.errors import StartupError
from service.settings import PREFIX, Settings, load

EXIT_CANNOT_START = 2


@click.group(context_settings={"max_content_width": 110})
def main() -> None:
    """Safelight serves diffusion image models and lets you watch each picture develop."""


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for every setting; what is not given comes from the environment or the default."""
    for name, field in reversed(Settings.model_fields.items()):
        default = "" if field.default is None else f"; default {field.default}"
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            metavar=_metavar(field.annotation),
            help=f"{field.description} [{PREFIX}{name.upper()}{default}]",
        )(command)
    return command


def _metavar(annotation: Any) -> str:
    """`A|B` for a choice, else the name of the type."""
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        annotation = next(each for each in typing.get_args(annotation) if each is not type(None))
    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    if issubclass(annotation, Enum):
        return "|".join(annotation)
    return {"str": "TEXT", "int": "N", "float": "X", "bool": "true|false", "Path": "FOLDER"}[annotation.__name__]


@main.command()
@setting_options
def serve(**options: str | None) -> None:
    """Serve the generation API.

    Every option can also be given as the environment variable in brackets; the option wins.
    """
    try:
        settings = load(**{name: value for name, value in options.items() if value is not None})
        from service.server import serve as serve_until_stopped  # late: the engine process imports this module too

        serve_until_stopped(settings)
    except StartupError as error:
        click.echo(f"safelight: {error.detail}", err=True)
        sys.exit(EXIT_CANNOT_START)


if __name__ == "__main__":
    main()
