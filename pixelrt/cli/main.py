"""The command ``pixelrt``: one file per verb, loaded when the verb is used."""

from __future__ import annotations

import sys
from importlib import import_module

import click

import pixelrt
from pixelrt.errors import PixelrtError

INTERRUPTED = 130
USAGE = 2

VERBS = {
    "export": "Turn a PyTorch checkpoint into a verified bundle.",
    "build": "Build a TensorRT plan from a bundle.",
    "run": "Run images through a bundle.",
    "txt2img": "Make pictures from a prompt.",
    "img2img": "Change a picture as a prompt says.",
    "inpaint": "Make a part of a picture anew.",
    "stylegan": "Make pictures from seeds or latents.",
    "bench": "Measure what a bundle costs on this machine.",
    "verify": "Hold backends against a bundle's reference outputs.",
    "inspect": "Describe a bundle.",
    "doctor": "Show what this machine can run.",
}


class Verbs(click.Group):
    """Imports a verb's module only when that verb is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = import_module(f"pixelrt.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pixelrt.__version__, prog_name="pixelrt")
def cli() -> None:
    """Image-to-image networks from PyTorch to production.

    Exit codes: 0 done; 1 a check failed; 2 wrong usage; 3 the input or bundle is bad;
    4 the backend or device is not there; 5 the result could not be written; 130 interrupted.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; errors become a message on standard error and an exit code."""
    try:
        code = cli.main(args=arguments, prog_name="pixelrt", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as exc:
        exc.show()
        return USAGE
    except PixelrtError as exc:
        click.echo("\n  ".join([f"pixelrt: {exc}", *getattr(exc, "__notes__", ())]), err=True)
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("pixelrt: interrupted; nothing half-written was left", err=True)
        return INTERRUPTED
