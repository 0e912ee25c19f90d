"""What scripts share: an option, and how they end: with words and pixelrt's exit codes instead
of a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pixelrt.cache import cache_folder
from pixelrt.cli.main import INTERRUPTED
from pixelrt.errors import PixelrtError

work_option = click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=lambda: cache_folder() / "benchmarks",
    help="Folder for exported bundles.",
)


def run_script(command: click.Command) -> None:
    """Run ``command`` and exit the process."""
    sys.exit(run_command(command, None))


def run_command(command: click.Command, arguments: list[str] | None) -> int:
    """Run ``command``; gives the exit code."""
    try:
        code = command.main(args=arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except PixelrtError as exc:
        click.echo(str(exc), err=True)
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; what was finished has been written", err=True)
        return INTERRUPTED
