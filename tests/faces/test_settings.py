"""Settings: which of several values counts, and where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from duly.core.errors import InvalidInput
from duly.core.instants import MILLISECOND, SECOND
from duly.settings import Loaded, Settings, load


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No duly.toml but one's own."""
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "duly.toml") -> None:
    Path(name).write_text(text)


def shown(loaded: Loaded) -> dict[str, tuple[object, str]]:
    return {one.name: (one.value, one.origin) for one in loaded}


def test_defaults() -> None:
    """Without anything, a server on loopback that trusts nobody else."""
    settings = load(environ={}).settings
    assert settings == Settings()
    assert (settings.host, settings.port, settings.functions) == ("127.0.0.1", 7350, "registered")


def test_a_flag_beats_the_environment_beats_the_file() -> None:
    """Each setting remembers who decided."""
    write('port = 1\nhost = "::1"\nlead = "1s"\n')
    loaded = load({"port": 3, "slots": None}, environ={"DULY_PORT": "2", "DULY_HOST": "0.0.0.0"})
    assert (loaded.settings.port, loaded.settings.host, loaded.settings.lead) == (3, "0.0.0.0", SECOND)
    everything = shown(loaded)
    assert everything["port"] == (3, "flag")
    assert everything["host"] == ("0.0.0.0", "DULY_HOST")
    assert everything["lead"] == ("1s", "duly.toml")
    assert everything["slots"] == (0, "default")


def test_values_in_the_environment_are_text() -> None:
    """Numbers, yes and no, durations, lists, mappings; an empty one is none."""
    environ = {
        "DULY_SLOTS": "3",
        "DULY_ALLOW_PRIVATE_ADDRESSES": "true",
        "DULY_GRACE": "250ms",
        "DULY_APP": "a:b, c:d",
        "DULY_LABELS": "zone=eu,disk=ssd",
        "DULY_HOST": "",
    }
    settings = load(environ=environ).settings
    assert (settings.slots, settings.allow_private_addresses, settings.grace) == (3, True, 250 * MILLISECOND)
    assert (settings.app, settings.labels) == (["a:b", "c:d"], {"zone": "eu", "disk": "ssd"})
    assert settings.host == "127.0.0.1"


def test_secrets_can_lie_in_files(tmp_path: Path) -> None:
    """DULY_TOKEN_FILE names one; `show` never tells it."""
    (tmp_path / "token").write_text("duly_secret\n")
    loaded = load(environ={"DULY_TOKEN_FILE": str(tmp_path / "token")})
    assert loaded.settings.token == "duly_secret"
    assert shown(loaded)["token"] == ("********", "DULY_TOKEN_FILE")
    with pytest.raises(InvalidInput, match="DULY_TOKEN_FILE"):
        load(environ={"DULY_TOKEN_FILE": str(tmp_path / "nothing")})


def test_another_file_can_be_named() -> None:
    """By flag or DULY_CONFIG; one that is named must be there."""
    write("port = 9", "other.toml")
    assert load(environ={"DULY_CONFIG": "other.toml"}).settings.port == 9
    assert load(environ={}, path="other.toml").settings.port == 9
    with pytest.raises(InvalidInput, match=r"none\.toml"):
        load(environ={}, path="none.toml")


@pytest.mark.parametrize(
    ("text", "environ", "wrong"),
    [
        ("prot = 1", {}, r"duly\.toml has a setting 'prot'"),
        ("port = 99999", {}, r"65535.*from duly\.toml"),
        ("port = [", {}, "is not TOML"),
        ("lead = 5", {}, "does not say its unit"),
        ("", {"DULY_LEAD": "5"}, "lacks a unit.*from DULY_LEAD"),
        ("", {"DULY_PORT": "many"}, "int.*from DULY_PORT"),
        ("", {"DULY_FUNCTIONS": "all"}, "from DULY_FUNCTIONS"),
        ("", {"DULY_LEASE": "1ms"}, "from DULY_LEASE"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, environ: dict[str, str], wrong: str) -> None:
    """The setting, what would be right, and the file or variable."""
    write(text)
    with pytest.raises(InvalidInput, match=wrong):
        load(environ=environ)


def test_every_setting_is_described() -> None:
    """`duly config show` has a sentence for each."""
    assert all(one.description for one in load(environ={}))


def test_addresses_are_parted_by_white_space_and_masked() -> None:
    """An address may have commas and equal signs of its own, and a password that is not shown."""
    both = "postgresql://u:secret@a:1,b:2/db?target_session_attrs=primary"
    environ = {"DULY_STORES": f"s0={both}\ns1=postgresql://c/db", "DULY_NATS": "nats://t0ken@a:4222 nats://b:4222"}
    loaded = load(environ=environ)
    assert loaded.settings.stores == {"s0": both, "s1": "postgresql://c/db"}
    assert loaded.settings.nats == ["nats://t0ken@a:4222", "nats://b:4222"]
    everything = shown(loaded)
    assert everything["stores"] == ({"s0": "********", "s1": "********"}, "DULY_STORES")
    assert everything["nats"] == (["********", "********"], "DULY_NATS")


def test_a_file_may_hold_a_mapping(tmp_path: Path) -> None:
    """As secrets are handed to containers."""
    secret = tmp_path / "stores"
    secret.write_text("s0=postgresql://u:p@a/db\ns1=postgresql://u:p@b/db\n")
    loaded = load(environ={"DULY_STORES_FILE": str(secret)})
    assert set(loaded.settings.stores) == {"s0", "s1"}
    assert shown(loaded)["stores"][1] == "DULY_STORES_FILE"


def test_webhooks_are_tables_whose_mistakes_are_told_with_their_place() -> None:
    """The rule, the field, and the file; `config show` does not tell a secret."""
    secret = "whsec_" + "A" * 40
    write(f'[[webhook]]\nurl = "https://example.com/x"\nsecret = "{secret}"\nevents = ["late", "finished"]\n')
    loaded = load(environ={})
    assert loaded.settings.webhook[0].events == ["late", "finished"]
    assert secret not in str(shown(loaded)["webhook"])
    for text, pointer in [
        ('[[webhook]]\nurl = "https://x.y/"\nevents = ["nope"]', "/webhook/0/events/0"),
        ("[[webhook]]\nurl = 5", "/webhook/0/url"),
        ('[[webhook]]\nurl = "https://x.y/"\nsecert = "x"', "/webhook/0"),
        ('[[webhook]]\nurl = "https://x.y/"', "/webhook/0/secret"),
    ]:
        write(text)
        with pytest.raises(InvalidInput, match=r"from duly\.toml") as caught:
            load(environ={})
        assert caught.value.errors[0].pointer == pointer
    write("")
    loaded = load(environ={"DULY_WEBHOOK": f'[{{"url": "https://x.y/", "secret": "{secret}"}}]'})
    assert loaded.settings.webhook[0].url == "https://x.y/"
    with pytest.raises(InvalidInput, match="is not JSON"):
        load(environ={"DULY_WEBHOOK": "https://x.y/"})
