"""MLflow, the only place that knows it. The driver alone logs.

    Tracker                 the parent run: parameters, tags, final metrics, report
      with trial(n, ...)    a nested run per trial of a sweep
      with arm(a, seed)     a nested run per control arm and seed of a benchmark
      with round(n) as log  a nested run per round; what it logs per round stands on the parent too, with step = n,
                            so that parents compare side by side as curves

Everything goes to explicit run ids through MlflowClient: there is no active run that another library could take for its
own. MLflow is imported when a tracker is made, so that cdiff trains and samples without it.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from cdiff.config import Config
from cdiff.data.run import Run, flat, safe_name
from cdiff.errors import CdiffError, TrackingError, shown_uri
from cdiff.types import content_hash

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

# MLflow's page of an experiment opens on what it takes it for: without this, on traces of chats.
_OPENS_ON_RUNS = {"mlflow.experimentKind": "custom_model_development"}

Status = Literal["FINISHED", "FAILED", "KILLED"]
MAX_NAME, MAX_PARAM, MAX_TAG = 250, 6000, 8000  # characters that MLflow stores
BATCH = 100  # parameters or tags per request
# Of runs in the UI's charts; its own choice gives unlike runs the same red.
COLOURS = (
    "#1f77b4",
    "#d1495b",
    "#2e933c",
    "#8d5fb8",
    "#e08e1b",
    "#00798c",
    "#6b4f3a",
    "#b5179e",
    "#5f6b7a",
    "#7a9e00",
    "#3d3dd8",
)
ROUND_TAG, ARM_TAG, TRIAL_TAG = "cdiff.round", "cdiff.arm", "cdiff.trial"
TABLES_TAG = "mlflow.loggedArtifacts"  # tells the UI which files are tables


class Log:
    """Writes to one MLflow run.

    Args:
        step: step of metrics that name none.
        parent: also gets the metrics and pictures that name no step of their own, with this log's step.
    """

    def __init__(self, client: MlflowClient, run_id: str, step: int = 0, parent: Log | None = None) -> None:
        self._client, self.run_id, self._step, self._parent = client, run_id, step, parent

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, also nested ones: {"per_type": {"metal/pit": {"iou": 0.5}}} is "per_type/metal/pit/iou".

        Text and None are left out: what is undefined has no number, and its reason stands in the report.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        where = self._step if step is None else step
        numbers = {key: value for key, value in flat(values, "/").items() if isinstance(value, _NUMBERS)}
        metrics = [Metric(legal_name(key), float(value), now, where) for key, value in numbers.items()]
        with _explained():
            for first in range(0, len(metrics), BATCH):
                self._client.log_batch(self.run_id, metrics=metrics[first : first + BATCH])
        if self._parent is not None and step is None:
            self._parent.metrics(values, self._step)

    def table(self, name: str, data: pd.DataFrame) -> None:
        """Log a table; logged again under its name it is replaced, not lengthened."""
        file = f"tables/{safe_name(name)}.json"
        rows = data.to_json(orient="split", index=False)
        # Not MLflow's log_table: it appends to what is there, and a round may be done again after a crash.
        with _explained():
            self._client.log_text(self.run_id, rows, file)
            tags = self._client.get_run(self.run_id).data.tags
            logged = json.loads(tags.get(TABLES_TAG, "[]"))
            if all(item["path"] != file for item in logged):
                logged.append({"path": file, "type": "table"})
                self._client.set_tag(self.run_id, TABLES_TAG, json.dumps(logged))

    def picture(self, name: str, pixels: NDArray[np.uint8]) -> None:
        """Log uint8 [H, W, 3] or [H, W] as a PNG; on the parent a round's pictures form a series."""
        with _explained():
            self._client.log_image(self.run_id, pixels, artifact_file=f"pictures/{safe_name(name)}.png")
            if self._parent is not None:
                key = safe_name(name) if name.isascii() else f"picture {content_hash(name)[:6]}"
                self._client.log_image(
                    self._parent.run_id, pixels, key=key, step=self._step, synchronous=True
                )

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file to the run."""
        with _explained():
            self._client.log_artifact(self.run_id, str(path), folder)


class Tracker(Log):
    """The MLflow run of one run folder.

    Args:
        uri: goes before MLFLOW_TRACKING_URI, that before `tracking.uri`, that before a SQLite file under the home.
        resume: MLflow run to go on in.
    Raises:
        CdiffError: MLflow is not installed, or its store does not answer.
    """

    def __init__(self, run: Run, config: Config, uri: str | None = None, resume: str | None = None) -> None:
        self.uri = tracking_uri(run.home, config, uri)
        client = _connect(self.uri)
        with _explained(f"MLflow at {self.uri}"):
            self.experiment_id = _experiment(client, config.tracking.experiment, self.uri, run.home)
            run_id = _resumed(client, resume) if resume else None
            if run_id is None:
                name = config.tracking.name or run.name
                colour = {"mlflow.runColor": COLOURS[int(content_hash(run.name), 16) % len(COLOURS)]}
                run_id = client.create_run(self.experiment_id, tags=colour, run_name=name).info.run_id
        super().__init__(client, run_id)

    def start(self, params: BaseModel | Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Log the configuration (nested keys joined by dots) and what else identifies the run.

        A resumed run keeps the parameters that it has: MLflow's cannot change.
        """
        from mlflow.entities import Param, RunTag

        values = flat(params.model_dump(mode="json") if isinstance(params, BaseModel) else params)
        with _explained():
            known = self._client.get_run(self.run_id).data.params
            new = [
                Param(legal_name(key), _text(value)[:MAX_PARAM])
                for key, value in values.items()
                if legal_name(key) not in known
            ]
            labels = [RunTag(legal_name(key), _text(value)[:MAX_TAG]) for key, value in tags.items()]
            for first in range(0, max(len(new), len(labels)), BATCH):
                after = slice(first, first + BATCH)
                self._client.log_batch(self.run_id, params=new[after], tags=labels[after])

    @contextmanager
    def round(self, number: int) -> Iterator[Log]:
        """The nested run of one round; a round that is done again after a crash goes on in its run."""
        with self._nested(f"round {number}", {ROUND_TAG: str(number)}) as run_id:
            yield Log(self._client, run_id, step=number, parent=self)

    @contextmanager
    def arm(self, arm: str, seed: int) -> Iterator[Log]:
        """The nested run of one control arm and seed, with both as parameters; told again, it is overwritten."""
        from mlflow.entities import Param

        colour = COLOURS[int(content_hash(arm), 16) % len(COLOURS)]  # one for all seeds of an arm
        with self._nested(f"{arm} seed {seed}", {ARM_TAG: f"{arm}:{seed}"}, colour) as run_id:
            with _explained():
                params = [Param("arm", arm), Param("seed", str(seed))]
                self._client.log_batch(run_id, params=params)
            yield Log(self._client, run_id)

    @contextmanager
    def trial(self, name: str, key: str, point: Mapping[str, Any]) -> Iterator[Log]:
        """The nested run of one trial of a sweep, with its point as parameters; told again, it goes on."""
        from mlflow.entities import Param

        colour = COLOURS[int(key, 16) % len(COLOURS)]
        with self._nested(name, {TRIAL_TAG: key}, colour) as run_id:
            with _explained():
                params = [Param(legal_name(name), _text(value)[:MAX_PARAM]) for name, value in point.items()]
                self._client.log_batch(run_id, params=params)
            yield Log(self._client, run_id)

    @contextmanager
    def _nested(self, name: str, tags: dict[str, str], colour: str = "") -> Iterator[str]:
        with _explained():
            run_id = self._child_run(name, tags, colour)
        try:
            yield run_id
        except BaseException as error:
            with suppress(TrackingError):  # what ended it is to be told, Ctrl-C above all
                self._end(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self._end(run_id, "FINISHED")

    def finish(self, status: Status = "FINISHED") -> None:
        """End the parent run."""
        self._end(self.run_id, status)

    def _child_run(self, name: str, tags: dict[str, str], colour: str) -> str:
        own = "".join(f" and tags.`{key}` = '{value}'" for key, value in tags.items())
        wanted = f"tags.mlflow.parentRunId = '{self.run_id}'{own}"
        found = self._client.search_runs([self.experiment_id], wanted, max_results=1)
        if found:
            self._client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id
        drawn = {"mlflow.runColor": colour} if colour else {}
        tags = {"mlflow.parentRunId": self.run_id, **tags, **drawn}
        return self._client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id

    def _end(self, run_id: str, status: Status) -> None:
        with _explained():
            self._client.set_terminated(run_id, status)


@contextmanager
def may_be_away(what: str, remedy: str = "the same command, run again, logs that") -> Iterator[None]:
    """Where MLflow fails within, the run goes on: all that counts is in its folder, and hours must not end for a server.

    Args:
        what: is told to be missing in MLflow.
        remedy: how it gets there all the same.
    """
    try:
        yield
    except TrackingError as error:
        log.warning("not in MLflow yet: %s (%s); %s", what, str(error).partition("\n")[0], remedy)


# MLflow's codes for a run that is not there, or was deleted
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
_NUMBERS = (int, float, np.integer, np.floating, np.bool_)


def legal_name(name: str) -> str:
    """A name that MLflow takes for metrics, parameters and tags; unlike names stay unlike."""
    parts = [safe_name(part) for part in name.split("/")]
    legal = "/".join(parts)
    return legal if len(legal) <= MAX_NAME else safe_name(name)


def tracking_uri(home: Path, config: Config, flag: str | None = None) -> str:
    """Where runs are tracked: the flag, else MLFLOW_TRACKING_URI, else `tracking.uri`, else a SQLite file under the home."""
    default = f"sqlite:///{home / 'mlflow.db'}"
    return flag or os.environ.get("MLFLOW_TRACKING_URI") or config.tracking.uri or default


def demand_store(uri: str, seconds: float = 30.0) -> None:
    """Return once the tracking store of a URI has answered; nothing is written. A SQLite file need not be there yet, only be possible.

    Raises:
        CdiffError: it does not answer within the time, refuses, or lies where nothing can be written.
    """
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).absolute()
        folder = next(place for place in path.parents if place.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise TrackingError(
                f"MLflow's database {path} cannot be written: {folder} is no folder of yours."
            )
        if path.exists():
            _demand_database(path)
        return
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    told: list[Exception] = []

    def ask() -> None:
        try:
            with _explained(f"MLflow at {uri}"):
                _connect(uri).search_experiments(max_results=1)
        except Exception as error:  # noqa: BLE001  # raised below, by whoever waits
            told.append(error)

    # a driver of a database may wait for minutes, and cannot be told not to
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    if asking.is_alive():
        raise TrackingError(f"MLflow at {shown_uri(uri)} gave no answer within {seconds:.0f} s.")
    if told:
        raise (
            told[0]
            if isinstance(told[0], CdiffError)
            else TrackingError(shown_uri(f"MLflow at {uri}: {told[0]}"))
        )


def _demand_database(path: Path) -> None:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            database.execute("select count(*) from sqlite_master")
    except sqlite3.OperationalError:
        return  # locked, or left in mid-write: MLflow waits for it or mends it
    except sqlite3.Error as error:
        raise TrackingError(
            f"MLflow's database {path} cannot be read ({error}). Move it away, or name another (--tracking-uri)."
        ) from None


def _connect(uri: str) -> MlflowClient:
    # Before the import, which starts MLflow's telemetry where nothing forbids it.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    # its 7 wait for minutes on a server that is off
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise CdiffError(
            f"the loop is tracked in MLflow, which cannot be imported ({error}): pip install mlflow"
        ) from None
    # Its migrations would fill the screen at each first start.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _explained(f"MLflow at {uri}"):
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=uri)


def _experiment(client: MlflowClient, name: str, uri: str, home: Path) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # A server knows where artefacts go; a bare database would put them into the working directory.
        remote = uri.startswith(("http:", "https:", "databricks"))
        place = None if remote else (home / "mlartifacts" / safe_name(name)).as_uri()
        try:
            return client.create_experiment(name, place, tags=_OPENS_ON_RUNS)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:  # otherwise another run made it just now
                raise
    if found.lifecycle_stage == "deleted":
        raise CdiffError(
            f"the MLflow experiment {name!r} was deleted: restore it, or set tracking.experiment=NAME."
        )
    return found.experiment_id


def _resumed(client: MlflowClient, run_id: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if (
            error.error_code not in _GONE
        ):  # a store that is away, or refuses: another run would part the history
            raise
        log.warning("MLflow run %s cannot be gone on with (%s): a new one is started", run_id, error.message)
        return None
    return run_id


@contextmanager
def _explained(what: str = "MLflow") -> Iterator[None]:
    """What MLflow, its database or its artefact store raises as a TrackingError: each store has kinds of its own, botocore's among them."""
    try:
        yield
    except (CdiffError, TypeError, AttributeError, NameError, LookupError, AssertionError):
        # told already, or a fault in code
        raise
    except Exception as error:  # noqa: BLE001  # told in words
        # From None, as the cause's text may hold the password.
        raise TrackingError(
            f"{shown_uri(f'{what}: {error}')}\nThe run folder has all that is done: mend the tracking store or name another "
            "(--tracking-uri), and start the same command again."
        ) from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
