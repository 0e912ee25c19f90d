"""Every error that pixelrt raises on purpose.

::

    PixelrtError
    ├── UsageError                  exit 2   options that do not fit together
    ├── InputError                  exit 3   what was given cannot be used
    │   ├── ImageError                       an image file or array
    │   ├── VideoError                       a video file
    │   ├── CheckpointError                  a checkpoint file or folder
    │   │   ├── UnsafeCheckpointError        a pickle that asks to run code
    │   │   └── UnknownNetworkError          no family recognises the weights
    │   └── BundleError                      a bundle that is malformed or was altered
    ├── CheckError                  exit 1   a check failed
    │   ├── ExportError                      the graph does not reproduce PyTorch
    │   └── FidelityError                    a backend does not reproduce the reference
    ├── BackendError                exit 4   a backend or device is not there, or broke
    │   └── OutOfMemoryError                 not enough memory for the smallest plan
    └── OutputError                 exit 5   the result could not be written

A message says what happened; ``found``, ``expected`` and ``hint`` say what was there,
what was wanted and what to do about it.
"""

from __future__ import annotations


class PixelrtError(Exception):
    """Base of all errors of this library.

    ``message`` is one sentence. ``found``, ``expected`` and ``hint`` are optional
    further lines; ``str(error)`` holds all of them.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, found: str = "", expected: str = "", hint: str = ""
    ) -> None:
        self.message = message
        self.found = found
        self.expected = expected
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        lines = [self.message]
        for label, text in (
            ("found", self.found),
            ("expected", self.expected),
            ("to do", self.hint),
        ):
            if text:
                lines.append(f"  {label}: {text}")
        return "\n".join(lines)


class UsageError(PixelrtError):
    """Options or arguments that do not fit together."""

    exit_code = 2


class InputError(PixelrtError):
    """Something that was given cannot be used."""

    exit_code = 3


class ImageError(InputError):
    """An image file or array that cannot be read or has an unsupported form."""


class VideoError(InputError):
    """A video file that cannot be read or has an unsupported form."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that asks for something to be run while it is loaded."""


class UnknownNetworkError(CheckpointError):
    """Weights that no family recognises."""


class BundleError(InputError):
    """A bundle that is malformed, incomplete or was altered."""


class CheckError(PixelrtError):
    """A check that was carried out and failed."""


class ExportError(CheckError):
    """The exported graph does not reproduce the PyTorch network."""


class FidelityError(CheckError):
    """A backend does not reproduce the reference outputs of a bundle."""


class BackendError(PixelrtError):
    """A backend or device that is not there or that failed."""

    exit_code = 4


class OutOfMemoryError(BackendError):
    """Even the smallest plan does not fit into the memory given."""


class OutputError(PixelrtError):
    """The result could not be written."""

    exit_code = 5
