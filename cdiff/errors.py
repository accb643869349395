"""The errors that a user can meet. Each message names the offender and the remedy."""

import re


class CdiffError(Exception):
    """Base of every error that cdiff raises on purpose."""


class ConfigError(CdiffError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(CdiffError, ValueError):
    """The images, masks or groups cannot be used as they are."""


class RequestError(DataError):
    """A request to the service holds what cannot be used; its message is told to whoever sent it."""


class LeakError(DataError):
    """The same photo, or photos of one source object, stand on two sides of a split."""


class ResourceError(CdiffError, RuntimeError):
    """The cluster cannot ever give what the run asks for."""


class ActorError(CdiffError, RuntimeError):
    """An actor failed more often than is retried; carries the first cause."""


class LoopStalled(CdiffError, RuntimeError):
    """Work remains and nothing moves."""


class RunError(CdiffError, RuntimeError):
    """A run folder is missing, incomplete, or belongs to another configuration."""


class StorageError(RunError):
    """A file cannot be written or read where it must be: disk full, no rights, a bucket out of reach."""


class TrackingError(CdiffError, RuntimeError):
    """MLflow's store cannot be reached, opened or written."""


def offenders(items: list[str], total: int, what: str, remedy: str, shown: int = 5) -> str:
    """One message for many offenders: how many of how many, the first few, and the remedy."""
    listed = "".join(f"\n  {item}" for item in items[:shown])
    more = f"\n  ... and {len(items) - shown} more" if len(items) > shown else ""
    return f"{len(items)} of {total} {what}:{listed}{more}\n{remedy}"


def shown_uri(text: str) -> str:
    """A URI, or a message that quotes one, without user and password."""
    return re.sub(
        r"(?i)([?&](?:password|passwd|pwd|token)=)[^&#\s]*", r"\1***", re.sub(r"//[^/\s]*@", "//***@", text)
    )
