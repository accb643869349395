"""The Serve config file: Serve takes it, and its arguments are those of the application."""

from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from actors.endpoint import Served, application

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "serve.yaml"


def test_serve_takes_the_config_file_and_the_application_its_arguments() -> None:
    told = ServeDeploySchema.model_validate(yaml.safe_load(DEPLOY.read_text(encoding="utf-8")))
    (app,) = told.applications
    assert app.import_path == f"{application.__module__}:{application.__name__}"
    assert Served.model_validate(app.args).max_queued == 64
    assert told.http_options.host == "127.0.0.1", "nobody reaches it unless somebody says so"
