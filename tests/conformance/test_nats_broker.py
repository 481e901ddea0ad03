"""The broker over real nats-servers that are killed, frozen, flooded and lied to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import random  # noqa: TID251 - seeded
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import nats
import nkeys
import pytest
from nats.aio.client import Client

from duly.adapters import nats_link
from duly.adapters.nats_broker import NatsBroker
from duly.adapters.nats_wire import Wire
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.sqlite_store import SqliteStore
from duly.adapters.system_clock import SystemClock
from duly.cluster.nats_server import NatsServer, NatsServers
from duly.core.errors import InvalidInput, Unavailable
from duly.core.messages import AnyMessage, Cancel, Hint, Notice
from duly.core.model import JobId
from duly.roles.keeper import Keeper
from duly.testing import ManualClock
from nats_server import PASSWORD, eventually, nats_broker, nats_servers

SECOND = 1_000_000
SUBJECTS = ("hint.s0", "beat.s0", "report", "notice", "worker.w-1", "log.w-1")


@pytest.fixture(scope="module")
def shared() -> Iterator[NatsServers]:
    """A server that no test harms."""
    with nats_servers() as servers:
        yield servers


@pytest.fixture
def own() -> Iterator[NatsServers]:
    """A server for this test alone."""
    with nats_servers() as servers:
        yield servers


@pytest.fixture
def three() -> Iterator[NatsServers]:
    """A cluster for one test alone."""
    with nats_servers(3) as servers:
        yield servers


@contextlib.asynccontextmanager
async def stranger(url: str) -> AsyncIterator[Client]:
    """A client of the same server that is no duly."""
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


class Listener:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.heard: list[AnyMessage] = []

    async def __call__(self, message: AnyMessage) -> AnyMessage | None:
        self.heard.append(message)
        return Notice(kind="heard")


async def recorded(client: Client, broker: NatsBroker, subject: str, message: AnyMessage) -> bytes:
    """The payload of a message as it goes over the wire."""
    tap = await client.subscribe(f"{broker.options.prefix}.{subject}")
    await client.flush()
    for _ in range(10):  # what is published before the broker has its connection is lost
        await broker.publish(subject, message)
        with contextlib.suppress(TimeoutError):
            payload = (await tap.next_msg(1)).data
            await tap.unsubscribe()
            return payload
    raise AssertionError("the broker publishes nothing")


# -- what is not believed -----------------------------------------------------------------------------------


async def test_garbage_on_every_subject_is_counted_and_changes_nothing(
    shared: NatsServers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand pieces of it, logged once a kind; a good message that comes after is handled."""
    dice = random.Random(4)
    async with nats_broker(shared.urls, tmp_path, prefix="garbage") as broker, stranger(shared.urls[0]) as client:
        listener = Listener()
        for subject in SUBJECTS:
            await broker.subscribe(subject, listener)
        good = await recorded(client, broker, "elsewhere", Hint(shard="s0"))
        pieces = [
            b"",
            b"du",
            good[:-1],
            good[:2] + b"\x63" + good[3:],  # version 99
            good[:3] + b"\x07" + good[4:],  # a kind that is none
            good + b"}",
            good.replace(b"Hint", b"Evil"),
            b'{"type":"Hint","shard":"s0"}',
            good[:20] + b'{"type":"Hint","shard":7}',
            good[:20] + b"[" * 100_000,
            good[:20] + b'{"digest":"../../etc/passwd","size":9}',
            b"\x00" * 900_000,
        ]
        pieces += [dice.randbytes(dice.randrange(200)) for _ in range(1_000 - len(pieces))]
        for piece in pieces:
            await client.publish(f"garbage.{dice.choice(SUBJECTS)}", piece, reply="garbage.report")
        await client.flush()
        await broker.publish("notice", Hint(shard="good"))
        await eventually(lambda: broker.counters["received"] == 1_001)
        await eventually(lambda: listener.heard)
        assert listener.heard == [Hint(shard="good")]
        refused = {name: count for name, count in broker.counters.items() if name.startswith("refused.")}
        assert sum(refused.values()) == 1_000
        assert refused["refused.version"] >= 1
        assert refused["refused.garbage"] >= 900
        assert len([record for record in caplog.records if "refused" in record.message]) <= len(refused)


async def test_a_body_that_the_blob_store_does_not_have_is_refused(shared: NatsServers, tmp_path: Path) -> None:
    """Whatever name is given for it."""
    async with nats_broker(shared.urls, tmp_path, prefix="noblob") as broker, stranger(shared.urls[0]) as client:
        listener = Listener()
        await broker.subscribe("x", listener)
        good = await recorded(client, broker, "y", Hint(shard="s0"))
        for number, digest in enumerate(("sha256:" + "0" * 64, "../../etc/passwd", "")):
            head = good[:3] + b"\x01" + good[4:12] + (number + 100).to_bytes(8, "big")
            await client.publish("noblob.x", head + b'{"digest":"%s","size":9}' % digest.encode())
        await eventually(lambda: broker.counters["refused.blob"] == 3)
        assert listener.heard == []


async def test_a_message_that_comes_again_is_handled_once(shared: NatsServers, tmp_path: Path) -> None:
    """Doubled by the network or sent again by somebody who recorded it; members of a group share what they heard."""
    async with nats_broker(shared.urls, tmp_path, prefix="again") as broker, stranger(shared.urls[0]) as client:
        listener, member = Listener(), Listener()
        await broker.subscribe("x", listener)
        for _ in range(3):
            await broker.subscribe("x", member, group="g")
        payload = await recorded(client, broker, "x", Hint(shard="s0"))
        for _ in range(20):
            await client.publish("again.x", payload)
        await eventually(lambda: broker.counters["refused.duplicate"] == 40)
        assert listener.heard == member.heard == [Hint(shard="s0")]


async def test_with_a_key_nobody_without_it_is_heard(shared: NatsServers, tmp_path: Path) -> None:
    """Not as a sender, not by replaying on another subject, not with an answer; holders of the key are."""
    key = b"k" * 32
    async with (
        nats_broker(shared.urls, tmp_path, prefix="key", keys=(key,)) as one,
        nats_broker(shared.urls, tmp_path, prefix="key", keys=(b"n" * 32, key)) as other,
        nats_broker(shared.urls, tmp_path, prefix="key") as forger,
        stranger(shared.urls[0]) as client,
    ):
        listener = Listener()
        await one.subscribe("x", listener)
        await forger.publish("x", Hint(shard="forged"))
        taken = await recorded(client, one, "y", Hint(shard="moved"))
        await client.publish("key.x", taken)
        wire = Wire(b"12345678", (b"o" * 32,))
        await client.publish("key.x", wire.seal("key.x", "", wire.body(Hint(shard="other key"))))
        await eventually(lambda: one.counters["refused.forged"] == 3)
        await one.publish("x", Hint(shard="good"))
        await eventually(lambda: listener.heard)
        assert listener.heard == [Hint(shard="good")]
        await other.subscribe("x", listener)  # it still signs with a key that `one` does not have
        await forger.subscribe("z", listener)
        asked = asyncio.ensure_future(one.request("z", Hint(shard="s0"), timeout=30 * SECOND))
        await eventually(lambda: one.counters["refused.forged"] == 4)  # its answer
        assert not asked.done()
        asked.cancel()


async def test_an_answer_goes_to_inboxes_only(shared: NatsServers, tmp_path: Path) -> None:
    """Or a request could make a worker publish on any subject."""
    async with nats_broker(shared.urls, tmp_path, prefix="inbox") as broker, stranger(shared.urls[0]) as client:
        asked, misled = Listener(), Listener()
        await broker.subscribe("x", asked)
        await broker.subscribe("report", misled)
        wire = Wire(b"12345678")
        await client.publish(
            "inbox.x", wire.seal("inbox.x", "inbox.report", wire.body(Hint(shard="s0"))), "inbox.report"
        )
        await eventually(lambda: broker.counters["refused.garbage"] == 1)
        assert asked.heard == [Hint(shard="s0")]
        assert misled.heard == []


async def test_a_message_that_waited_long_for_its_handler_is_stale(shared: NatsServers, tmp_path: Path) -> None:
    """Nobody wants its answer any more."""
    clock = ManualClock()
    async with nats_broker(shared.urls, tmp_path, prefix="wait", clock=clock) as broker:
        free = asyncio.Event()
        heard: list[AnyMessage] = []

        async def slow(message: AnyMessage) -> None:
            heard.append(message)
            await free.wait()

        await broker.subscribe("x", slow)
        for number in range(3):
            await broker.publish("x", Hint(shard=f"s{number}"))
        await eventually(lambda: broker.counters["received"] == 3)
        await clock.advance(11 * SECOND)
        free.set()
        await eventually(lambda: broker.counters["refused.stale"] == 2)
        assert heard == [Hint(shard="s0")]


# -- large messages -----------------------------------------------------------------------------------------


async def test_a_large_message_travels_by_the_blob_store_and_the_keeper_removes_it(
    shared: NatsServers, tmp_path: Path
) -> None:
    """Only its name crosses the broker, both ways of a request too."""
    large = Hint(shard="s0", changed=tuple(JobId(f"job-{number:060d}") for number in range(20_000)))
    async with nats_broker(shared.urls, tmp_path, prefix="large") as broker, stranger(shared.urls[0]) as client:
        heard: list[AnyMessage] = []

        async def echo(message: AnyMessage) -> AnyMessage:
            heard.append(message)
            return message

        await broker.subscribe("x", echo)
        assert len(await recorded(client, broker, "x", large)) < 200
        await eventually(lambda: heard == [large])
        assert await broker.request("x", large, timeout=30 * SECOND) == large
        assert broker.counters["by_blob"] == 3
        clock = ManualClock()
        blobs = ObstoreBlobs(tmp_path / "blobs", clock=clock)
        assert len(await blobs.page(None, 10, unused_for=-1)) == 1  # the same content is one blob
        store = SqliteStore(":memory:", clock=clock)
        await store.migrate()
        keeper = Keeper(store=store, blobs=blobs, clock=clock)
        assert await keeper.tidy() == (0, 1)  # it is older than an hour by this clock, which is years ahead
        assert await blobs.page(None, 10, unused_for=-1) == []
        await store.close()


async def test_strange_names_become_subjects_that_match_nothing_else(shared: NatsServers, tmp_path: Path) -> None:
    """No wildcard, no space, no empty word."""
    async with nats_broker(shared.urls, tmp_path, prefix="names") as broker:
        listener = Listener()
        for subject in ("a.*", "a.>", "a..b", "a b", "ä\n", ".a"):
            await broker.subscribe(subject, listener)
            await broker.publish(subject, Hint(shard=subject))
            await eventually(lambda subject=subject: listener.heard == [Hint(shard=subject)])  # type: ignore[misc]  # a default, not an argument
            listener.heard.clear()


# -- servers that go ----------------------------------------------------------------------------------------


async def test_a_killed_server_costs_nothing_but_messages_and_is_found_again(own: NatsServers, tmp_path: Path) -> None:
    """Meanwhile nothing blocks, requests are Unavailable at once, also those under way; then all works again."""
    async with (
        nats_broker(own.urls, tmp_path, prefix="p", name="here") as here,
        nats_broker(own.urls, tmp_path, prefix="p", name="there") as there,
    ):
        listener, silent = Listener(), asyncio.Event()

        async def never(message: AnyMessage) -> None:
            await silent.wait()

        await here.subscribe("x", listener)
        await here.subscribe("never", never)
        under_way = asyncio.ensure_future(there.request("never", Hint(shard="s0"), timeout=60 * SECOND))
        await eventually(lambda: here.counters["received"] == 1)
        own.members[0].kill()
        with pytest.raises(Unavailable):
            await under_way
        await eventually(lambda: not here.up.is_set() and not there.up.is_set())
        for number in range(1_000):
            await there.publish("x", Hint(shard=f"lost{number}"))
        assert there.counters["unsent"] == 1_000
        with pytest.raises(Unavailable):
            await there.request("x", Hint(shard="s0"), timeout=60 * SECOND)
        late = Listener()
        await here.subscribe("late", late)  # does not wait for the server
        await own.start()
        await there.up.wait()
        await here.up.wait()
        silent.set()
        assert await there.request("x", Hint(shard="again"), timeout=30 * SECOND) == Notice(kind="heard")
        assert await there.request("late", Hint(shard="again"), timeout=30 * SECOND) == Notice(kind="heard")
        assert listener.heard == [Hint(shard="again")]  # nothing stale came with it
        assert here.counters["disconnects"] == there.counters["disconnects"] == 1


async def test_a_node_of_three_is_killed_and_messages_go_on(three: NatsServers, tmp_path: Path) -> None:
    """Every node in turn, started again before the next goes. A broker that was told of one finds the others."""
    async with (
        nats_broker(three.urls[:1], tmp_path, prefix="p", name="here") as here,
        nats_broker(three.urls, tmp_path, prefix="p", name="there") as there,
    ):
        listener = Listener()
        await here.subscribe("x", listener)
        for round_number, member in enumerate(three.members):
            member.kill()
            answer: AnyMessage | None = None
            end = time.monotonic() + 30
            while answer is None:
                assert time.monotonic() < end
                with contextlib.suppress(Unavailable):
                    answer = await there.request(
                        "x", Cancel(key=(JobId("j"), 1), attempt=1, reason="r"), timeout=SECOND
                    )
                if answer is None:
                    await there.clock.sleep(10_000)
            assert len(listener.heard) > round_number
            await member.start()


async def test_a_frozen_server_blocks_nobody(own: NatsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not take is dropped, in bounded memory and time; it is left, and used again when it goes on."""
    monkeypatch.setattr(nats_link, "PINGS", 0.2)
    monkeypatch.setattr(nats_link, "HELD_UP", 0.02)
    large = Hint(shard="s0", changed=tuple(JobId(f"job-{number:060d}") for number in range(5_000)))
    async with nats_broker(own.urls, tmp_path, prefix="p") as broker:
        pid = own.members[0].pid
        assert pid is not None
        listener = Listener()
        await broker.subscribe("x", listener)
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(100):  # 35 MB
                await broker.publish("x", large)
            assert broker.counters["unsent"] > 0
            await eventually(lambda: not broker.up.is_set())
        finally:
            os.kill(pid, signal.SIGCONT)
        await broker.up.wait()
        listener.heard.clear()
        assert await broker.request("x", Hint(shard="again"), timeout=30 * SECOND) == Notice(kind="heard")


async def test_close_does_not_need_a_server(own: NatsServers, tmp_path: Path) -> None:
    """Neither one that was lost nor one that never was."""
    async with nats_broker(own.urls, tmp_path, prefix="p") as broker:
        await broker.subscribe("x", Listener())
        own.members[0].kill()
        await eventually(lambda: not broker.up.is_set())
        await broker.close()
        with pytest.raises(Unavailable):
            await broker.start(within=0)
    with pytest.raises(AssertionError):  # not connected within its time
        async with nats_broker(["nats://127.0.0.1:1"], tmp_path, prefix="p", within=100_000):
            raise RuntimeError("there is no server there")


async def test_what_a_closed_broker_published_has_gone(shared: NatsServers, tmp_path: Path) -> None:
    """It is written out first."""
    async with nats_broker(shared.urls, tmp_path, prefix="bye") as here:
        listener = Listener()
        await here.subscribe("x", listener)
        async with nats_broker(shared.urls, tmp_path, prefix="bye") as there:
            for number in range(500):
                await there.publish("x", Hint(shard=f"s{number}"))
        await eventually(lambda: len(listener.heard) == 500)


# -- logins -------------------------------------------------------------------------------------------------


async def test_a_wrong_password_does_not_connect_and_is_not_logged(
    shared: NatsServers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again and again, since it may be put right at the server."""
    caplog.set_level(logging.DEBUG)
    url = shared.urls[0].replace(PASSWORD, "wrong-secret")
    with pytest.raises(AssertionError):
        async with nats_broker([url], tmp_path, prefix="p", within=500_000):
            raise RuntimeError("it must not connect")
    assert "uthorization" in caplog.text
    assert "wrong-secret" not in caplog.text
    assert PASSWORD not in caplog.text


async def test_a_login_may_come_from_the_options(shared: NatsServers, tmp_path: Path) -> None:
    """Apart from the address."""
    bare = shared.urls[0].replace(f"duly:{PASSWORD}@", "")
    async with nats_broker([bare], tmp_path, prefix="p", user="duly", password=PASSWORD) as broker:
        assert broker.up.is_set()


def _jwt(issuer: nkeys.KeyPair, subject: nkeys.KeyPair, kind: str, **claims: object) -> str:
    """A token of NATS' own kind, signed by its issuer."""
    public = subject.public_key.decode()
    body = {
        "jti": "none",
        "iat": 1_800_000_000,
        "iss": issuer.public_key.decode(),
        "name": kind,
        "sub": public,
        "nats": {"type": kind, "version": 2, **claims},
    }
    parts = [
        base64.urlsafe_b64encode(msgspec.json.encode(part)).rstrip(b"=")
        for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)
    ]
    signed = b".".join(parts)
    return (signed + b"." + base64.urlsafe_b64encode(issuer.sign(signed)).rstrip(b"=")).decode()


def _pair(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), prefix)))


async def test_a_credentials_file_is_a_login(tmp_path: Path) -> None:
    """As a NATS operator hands it out; the server knows the operator and the account only."""
    operator, account, user = (
        _pair(kind) for kind in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER)
    )
    limits = {"subs": -1, "data": -1, "payload": -1}
    of_account = _jwt(
        operator, account, "account", limits={**limits, "conn": -1, "leaf": -1, "imports": -1, "exports": -1}
    )
    (tmp_path / "user.creds").write_text(
        f"-----BEGIN NATS USER JWT-----\n{_jwt(account, user, 'user', **limits)}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    server = NatsServer(
        tmp_path / "server",
        clock=SystemClock(),
        password="",
        settings=(
            f"operator: {_jwt(operator, operator, 'operator')}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {account.public_key.decode()}: {of_account} }}\n"
        ),
    )
    await server.start()
    try:
        address = f"nats://127.0.0.1:{server.port}"
        async with nats_broker([address], tmp_path, prefix="p", credentials=str(tmp_path / "user.creds")) as broker:
            await broker.subscribe("x", Listener())
            assert await broker.request("x", Hint(shard="s0"), timeout=30 * SECOND) == Notice(kind="heard")
        with pytest.raises(AssertionError):
            async with nats_broker([address], tmp_path, prefix="p", within=300_000):
                raise RuntimeError("it must not connect")
    finally:
        await server.stop()


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A key and its own certificate, for 127.0.0.1."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    request += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *request], check=True, capture_output=True)
    return key, certificate


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_tls_is_spoken_and_the_server_is_checked(tmp_path: Path) -> None:
    """By the certificates that the options name; others are refused."""
    key, certificate = _certificate(tmp_path)
    tls = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}\n'
    server = NatsServer(tmp_path / "server", clock=SystemClock(), password=PASSWORD, settings=tls)
    await server.start()
    try:
        address = server.url.replace("nats://", "tls://")
        async with nats_broker([address], tmp_path, prefix="p", ca=str(certificate)) as broker:
            await broker.subscribe("x", Listener())
            assert await broker.request("x", Hint(shard="s0"), timeout=30 * SECOND) == Notice(kind="heard")
        with pytest.raises(AssertionError):
            async with nats_broker([address], tmp_path, prefix="p", within=500_000):
                raise RuntimeError("it must not connect: the system does not know this certificate")
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("servers", "options"),
    [
        ([], {}),
        (["http://127.0.0.1:4222"], {}),
        (["nats://"], {}),
        (["nats://h:port"], {}),
        (["nats://h:4222/path"], {}),
        (["nats://127.0.0.1:4222"], {"credentials": "/does/not/exist"}),
        (["tls://127.0.0.1:4222"], {"ca": "/does/not/exist"}),
    ],
)
async def test_an_address_that_is_none_is_refused(servers: list[str], options: dict[str, str], tmp_path: Path) -> None:
    """With the setting that is wrong."""
    with pytest.raises(InvalidInput) as caught:
        async with nats_broker(servers, tmp_path, prefix="p", **options):
            raise RuntimeError("it must not be made")
    assert caught.value.errors[0].pointer.startswith("/nats")
