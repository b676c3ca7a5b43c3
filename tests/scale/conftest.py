import pytest


@pytest.fixture(scope="session")
def cluster():
    """A cluster of this machine's own for all tests that need one, with three logical CPUs."""
    from tagsmith.scale.cluster import connected

    with connected("ray", cpus=3):
        yield
