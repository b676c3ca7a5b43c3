import pytest

from tagsmith.deployment.limits import Hosts, Keys, Rates, is_loopback, refuse_open_host
from tagsmith.errors import SettingError

ALICE, BOB = "a" * 20, "b" * 20


def written(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    return path


def test_each_key_of_a_file_has_its_name(tmp_path):
    keys = Keys.of(written(tmp_path, f"# who may ask\nalice:{ALICE}\n\n bob : {BOB}\n"), environment=None)
    assert [keys.owner(key) for key in (ALICE, BOB, "c" * 20, "", None)] == ["alice", "bob", None, None, None]


def test_a_key_of_the_environment_stands_beside_those_of_a_file(tmp_path):
    keys = Keys.of(written(tmp_path, f"alice:{ALICE}"), environment=BOB)
    assert [keys.owner(ALICE), keys.owner(BOB)] == ["alice", "environment"]
    assert not Keys.of(None, environment=None)


@pytest.mark.parametrize(
    "text",
    ["", "# none\n", "alice", f"alice:{'a' * 15}", f"a b:{ALICE}", f"alice:{ALICE}\nalice:{BOB}", f":{ALICE}"],
    ids=["empty", "comments", "no colon", "short", "name", "twice", "no name"],
)
def test_a_file_that_names_no_keys_is_refused_without_repeating_them(text, tmp_path):
    with pytest.raises(SettingError, match="key") as failure:
        Keys.of(written(tmp_path, text), environment=None)
    assert ALICE not in str(failure.value)


def test_a_file_that_cannot_be_read_and_a_short_key_are_refused(tmp_path):
    with pytest.raises(SettingError, match="cannot be read"):
        Keys.of(tmp_path / "none", environment=None)
    with pytest.raises(SettingError, match="TAGSMITH_API_KEY"):
        Keys.of(None, environment="short")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"])
def test_an_address_of_this_machine_needs_no_key(host):
    assert is_loopback(host)
    refuse_open_host(host, Keys({}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_an_address_that_others_reach_needs_a_key(host):
    with pytest.raises(SettingError, match="--api-key-file"):
        refuse_open_host(host, Keys({}))
    refuse_open_host(host, Keys({"alice": ALICE}))


def test_a_rate_is_an_allowance_that_fills_evenly_for_each_key():
    now = [0.0]
    rates = Rates(clock=lambda: now[0])
    assert [rates.take("alice", per_minute=6) for _ in range(4)] == [0, 0, 0, 10]
    assert rates.take("bob", per_minute=6) == 0
    now[0] = 4.0
    assert rates.take("alice", per_minute=6) == pytest.approx(6)
    now[0] = 10.1
    assert rates.take("alice", per_minute=6) == 0
    now[0] = 1e6
    assert [rates.take("alice", per_minute=6) for _ in range(4)] == [0, 0, 0, 10]


def test_on_this_machine_only_its_own_names_are_answered():
    hosts = Hosts("127.0.0.1")
    admitted = ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST")
    assert all(hosts.admits(header) for header in admitted)
    refused = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", None)
    assert not any(hosts.admits(header) for header in refused)
    assert Hosts("127.0.0.1", allowed=["tags.example"]).admits("tags.example:80")


def test_elsewhere_any_name_is_answered_unless_some_are_given():
    assert Hosts("0.0.0.0").admits("tags.example")
    hosts = Hosts("0.0.0.0", allowed=["tags.example"])
    assert hosts.admits("tags.example")
    assert not hosts.admits("evil.example")
