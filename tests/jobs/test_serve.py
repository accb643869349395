"""Where the service may listen without a token."""

import pytest
import ray

from actors.endpoint import checked
from actors.resources import connect
from cdiff.errors import ConfigError, ResourceError, RunError
from jobs.serve import _demand_room, serving


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_without_a_token_it_listens_on_loopback_by_address_or_name(host, tmp_path) -> None:
    wanted = {"run": "nowhere", "data": "x", "home": str(tmp_path), "insecure_loopback": True}
    with pytest.raises(RunError, match="nowhere"), serving(wanted, host, 8000):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "cdiff.example.org", ""])
def test_without_a_token_any_other_host_is_refused_with_the_remedy(host) -> None:
    wanted = {"run": "nowhere", "data": "x", "insecure_loopback": True}
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1.*set CDIFF_TOKEN"), serving(wanted, host, 8000):
        pass


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"replicas": 0}, "replicas: .*greater than or equal to 1"),
        ({"max_queued": 0}, "max_queued: "),
        ({"replicas": 4, "most_replicas": 2}, "most_replicas=2 is under replicas=4"),
        ({"settings": ["wasm.pairs=3"]}, r"wasm\.pairs=3: a run is served as it was made"),
    ],
)
def test_arguments_that_cannot_be_are_told_before_anything_starts(wrong, told) -> None:
    wanted = {"run": "nowhere", "data": "x", "insecure_loopback": True}
    with pytest.raises(ConfigError, match=told), serving(wanted | wrong, "127.0.0.1", 8000):
        pass


@pytest.mark.parametrize(
    ("more", "error", "told"),
    [
        ({"replicas": 5000}, ResourceError, "(?s)5000 generator.*the service takes --replicas"),
        (
            {"settings": ["resources.device=cuda"]},
            ConfigError,
            "(?s)reserves no GPU for generator.*resources.gpus=0",
        ),
    ],
)
def test_replicas_without_room_are_told_and_not_waited_for(served_run, more, error, told) -> None:
    served = checked({"run": str(served_run.path), "data": "x", "insecure_loopback": True} | more)
    cluster = connect()
    try:
        with pytest.raises(error, match=told):
            _demand_room(served, cluster)
        _demand_room(checked({"run": str(served_run.path), "data": "x"}), cluster)  # one replica has room
    finally:
        ray.shutdown()
