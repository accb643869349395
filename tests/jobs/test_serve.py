"""Where the service may listen without a token."""

import pytest

from cdiff.errors import ConfigError, RunError
from jobs.serve import serving


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
