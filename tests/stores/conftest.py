"""Both stores on this machine, and an empty folder in each."""

import itertools

import pytest

from svt_jax.stores import as_path
from tests.stores.servers import BUCKET, running

_NUMBERS = itertools.count()


@pytest.fixture(scope="session", params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def server(request, tmp_path_factory):
    with running(request.param, tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture
def place(server):
    """A folder that nothing else uses, as written."""
    server.fault = None
    return f"{server.scheme}://{BUCKET}/test-{next(_NUMBERS)}"


@pytest.fixture
def folder(place):
    return as_path(place)
