"""The Serve config file: Serve takes it, and its arguments are those of the application."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from actors.door import Door
from actors.endpoint import TOKEN, application
from actors.served import Served, run_of_model
from cdiff.errors import ConfigError, RunError
from cdiff.service.studio import standing

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "serve.yaml"


def test_serve_takes_the_config_file_and_the_application_its_arguments() -> None:
    told = ServeDeploySchema.model_validate(yaml.safe_load(DEPLOY.read_text(encoding="utf-8")))
    (app,) = told.applications
    assert app.import_path == f"{application.__module__}:{application.__name__}"
    assert Served.model_validate(app.args).max_queued == 64
    assert told.http_options.host == "127.0.0.1", "nobody reaches it unless somebody says so"


def test_serve_builds_the_application_from_a_mapping(monkeypatch, judged_run, photos) -> None:
    """As `serve deploy` and `serve run` do it: with the file's plain mapping, text for numbers included."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    builder: Any = application
    monkeypatch.setenv(TOKEN, "a-token-of-some-length")
    folder = str(Path(photos.samples[0].image).parent)
    with pytest.raises(RunError, match="nowhere"):
        build(builder, {"run": "nowhere", "data": folder, "home": str(judged_run.path.parent)})
    with pytest.raises(ConfigError, match="replicas"):
        build(builder, {"run": str(judged_run.path), "data": folder, "replicas": "none"})
    with pytest.raises(ConfigError, match="rnu"):
        build(builder, {"rnu": "x", "data": folder})


@pytest.fixture
def wanted(monkeypatch, judged_run, photos) -> dict[str, Any]:
    """Arguments of an application whose photos are there."""
    monkeypatch.setenv(TOKEN, "a-token-of-some-length")
    monkeypatch.setattr("actors.endpoint.photos_of", lambda runs, *_: [photos])
    return {"run": str(judged_run.path), "data": "never read", "max_queued": 7}


@pytest.mark.parametrize("token", ["", "short"])
def test_without_a_secret_as_token_nothing_is_served_unless_it_is_asked_for(
    wanted, token, monkeypatch
) -> None:
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(ConfigError, match="set CDIFF_TOKEN"):
        application(wanted)
    app: Any = application(wanted | {"insecure_loopback": True})
    assert app._bound_deployment.init_args[3].token == ""


def test_the_door_asks_for_the_token_and_what_waits_is_bounded_and_served_to_its_end(wanted) -> None:
    app: Any = application(wanted)
    gateway = app._bound_deployment
    generators = gateway.init_args[0]._bound_deployment
    assert gateway.init_args[3] == Door(token="a-token-of-some-length")
    assert generators.max_queued_requests == 7 and gateway.max_queued_requests == 64
    for deployment in (gateway, generators):
        assert deployment._deployment_config.graceful_shutdown_timeout_s == 60


def test_a_replica_reserves_what_a_generator_of_the_loop_does(
    monkeypatch, judged_run, photos, tmp_path
) -> None:
    run = Path(shutil.copytree(judged_run.path, tmp_path / "home" / "runs" / "shares"))
    told = yaml.safe_load((run / "config.yaml").read_text())
    told["resources"] |= {"device": "cuda", "gpus": 0.25, "generator_gpus": 0.5}
    (run / "config.yaml").write_text(yaml.safe_dump(told))
    monkeypatch.setenv(TOKEN, "a-token-of-some-length")
    monkeypatch.setattr("actors.endpoint.photos_of", lambda runs, *_: [photos])
    wanted = {"run": str(run), "data": "never read", "max_queued": 500, "most_replicas": 9}
    app: Any = application(wanted)
    gateway, generators = app._bound_deployment, app._bound_deployment.init_args[0]._bound_deployment
    options = generators.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (told["resources"]["cpus"], 0.5)
    assert gateway.max_ongoing_requests >= 9 * generators.max_ongoing_requests + 500, "as many as may wait"
    other = Path(shutil.copytree(run, run.with_name("more")))
    cpus = told["resources"]["cpus"]
    told["resources"] |= {"generator_gpus": 1.0, "cpus": cpus / 2}
    (other / "config.yaml").write_text(yaml.safe_dump(told))
    monkeypatch.setattr("actors.endpoint.photos_of", lambda runs, *_: [photos] * len(runs))
    app = application(wanted | {"run": [str(run), str(other)]})
    options = app._bound_deployment.init_args[0]._bound_deployment.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (cpus, 1.0), "it may hold either"
    told["resources"]["device"] = "cpu"
    (other / "config.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(ConfigError, match=r"several devices \(cpu, cuda\): add resources.device=cpu"):
        application(wanted | {"run": [str(run), str(other)]})
    app = application(wanted | {"settings": ["resources.device=cpu"]})
    assert app._bound_deployment.init_args[0]._bound_deployment.ray_actor_options["num_gpus"] == 0


def test_a_generators_checkpoint_names_its_run(judged_run) -> None:
    own = standing(judged_run)[1].generator
    assert run_of_model(f"{judged_run.path}/checkpoints/{own}").path == judged_run.path
    assert run_of_model(str(judged_run.path)).path == judged_run.path
    with pytest.raises(ConfigError, match="is not the generator of its run"):
        run_of_model(f"{judged_run.path}/checkpoints/generator-other")


def test_two_runs_of_one_name_are_not_served_as_one(monkeypatch, judged_run, tmp_path) -> None:
    other = shutil.copytree(judged_run.path, tmp_path / "another_home" / "runs" / judged_run.name)
    monkeypatch.setenv(TOKEN, "a-token-of-some-length")
    with pytest.raises(ConfigError, match=rf"called one: .*{judged_run.path} and {other}"):
        application({"run": [str(judged_run.path), str(other)], "data": "never read"})
