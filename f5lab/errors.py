"""Errors that a user can act on: what is wrong, what was expected, what to do next."""

from collections.abc import Iterable

SHOWN_OFFENDERS = 5


class LabError(Exception):
    """Anything f5lab refuses to do, in one line.

    Parameters
    ----------
    what : str
        Argument, path or key, and the value or shape that was found.
    expected : str, optional
        What would have been right, with its unit.
    next_step : str, optional
        What the user can do now; kept in ``next_step``.
    offenders : iterable of str, optional
        Every offending item; the first five are shown, all are kept in ``offenders``.

    Examples
    --------
    >>> str(LabError("vocab.txt: 0 lines", expected="one symbol a line", next_step="pass the training vocab"))
    'vocab.txt: 0 lines; expected one symbol a line; pass the training vocab'
    """

    def __init__(
        self, what: str, *, expected: str | None = None, next_step: str | None = None, offenders: Iterable[str] = ()
    ) -> None:
        self.offenders, self.next_step = sorted(offenders), next_step
        shown = ", ".join(self.offenders[:SHOWN_OFFENDERS])
        rest = len(self.offenders) - SHOWN_OFFENDERS
        parts = [what + (f": {shown}" + (f" and {rest} more" if rest > 0 else "") if shown else "")]
        if expected:
            parts.append(f"expected {expected}")
        if next_step:
            parts.append(next_step)
        super().__init__("; ".join(parts))


class CaseError(LabError):
    """A case file is missing, unreadable or says something impossible."""


class CheckpointError(LabError):
    """A checkpoint cannot be read, or is not what an F5-TTS user has."""


class VocabError(LabError):
    """A vocab file cannot be used as one."""


class AudioError(LabError):
    """A recording is missing, unreadable, empty or silent."""


class AsrError(LabError):
    """The speech recogniser or its weights are not at hand."""


class ModelError(LabError):
    """A model cannot be built, loaded or run as asked."""


class SpecimenError(LabError):
    """The bundled specimen is incomplete, changed or cannot be built."""


class FaultError(LabError):
    """A fault is not in the catalogue, or cannot be planted in a case."""


class BundleError(LabError):
    """A bundle cannot be written, or does not speak."""


class RunError(LabError):
    """A workbook run cannot be started or finished."""


class UsageError(RunError):
    """The command line asks for something that does not exist; the command exits with 2."""
