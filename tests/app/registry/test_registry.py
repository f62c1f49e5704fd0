"""A registry and its clients, over real sockets."""

import asyncio
import logging
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from app import __version__
from app.concepts.store import ConceptStore, decode, encode, file_name
from app.errors import ApiError, ErrorCode, RateLimited, StartError
from app.registry import client as client_module
from app.registry import shared_accounts
from app.registry.client import RegistryClient
from app.registry.connection import connecting, status
from app.registry.listening import listening
from app.registry.pending import WAIT_SECONDS
from app.registry.shared_accounts import SharedAccounts
from app.registry.shared_concepts import SharedStorage
from app.registry.shared_directions import SharedDirections
from app.settings import AccessToken, LimitSettings
from inference.interface import registry as protocol
from inference.interface.concepts import DirectionResult
from inference.interface.registry import Announce, Heard, Loads, ModelLoad, Refused, Withdraw
from tests.app.fakes import model_info
from tests.app.registry.conftest import (
    RunningRegistry,
    concept,
    imported_concept,
    joining,
    new_key,
    until,
    until_async,
)

Clients = tuple[RegistryClient, RegistryClient]
DIGEST = "ab" * 32


def storage(client: RegistryClient) -> SharedStorage:
    return SharedStorage(client, ConceptStore())


async def test_once_a_concept_is_stored_the_other_server_knows_it(clients: Clients) -> None:
    first, second = clients
    await storage(first).write(concept())
    assert decode("kind.json", second.listener.files["kind.json"]) == concept()  # type: ignore[union-attr]
    assert first.listener.files == second.listener.files, "in the same order"  # type: ignore[union-attr]
    await storage(second).remove(concept())
    for client in clients:
        assert client.listener.removed_ids == ["_worker/kind"]  # type: ignore[union-attr]


async def test_a_name_belongs_to_the_first_content(clients: Clients) -> None:
    first, second = clients
    await storage(first).write(concept())
    await storage(second).write(concept())  # the same
    with pytest.raises(ApiError) as refused:
        await storage(second).write(concept(text="other words"))
    assert refused.value.code is ErrorCode.CONFLICT
    assert refused.value.param == "name"


async def test_a_file_that_is_no_concept_is_refused(clients: Clients) -> None:
    for name, content in (("kind.json", b"{}"), ("../x.json", b""), ("kind.safetensors", b"\0" * 9)):
        with pytest.raises(ApiError) as refused:
            await clients[0].ask(protocol.Store(clients[0].new_id(), name, content))
        assert refused.value.code is ErrorCode.INVALID_REQUEST


async def test_a_server_that_joins_later_or_again_gets_all_concepts(registry: RunningRegistry) -> None:
    async with joining(registry) as first:
        await storage(first).write(concept())
        registry.stop()
        await until(lambda: not first.joined)
        with pytest.raises(ApiError) as refused:
            await storage(first).write(concept("other"))
        assert refused.value.code is ErrorCode.UNAVAILABLE
        registry.start()
        await until(lambda: first.joined)
        await storage(first).write(concept("third"))
        async with joining(registry, "http://b") as second:
            assert set(second.listener.files) == {"kind.json", "third.json"}  # type: ignore[union-attr]
            assert second.listener.ids == ["_worker/kind", "_worker/third"]  # type: ignore[union-attr]


async def test_a_disk_that_cannot_be_written_is_one_error(clients: Clients, tmp_path: Path) -> None:
    (tmp_path / "registry" / "concepts").parent.mkdir(exist_ok=True)
    (tmp_path / "registry" / "concepts").write_text("in the way")
    with pytest.raises(ApiError) as refused:
        await storage(clients[0]).write(concept())
    assert refused.value.code is ErrorCode.UNAVAILABLE
    await storage(clients[0]).remove(concept())  # it is not stored


TOKEN = AccessToken(name="a", sha256="a" * 64, max_requests=2, tokens_per_minute=600)


def accounts(client: RegistryClient) -> SharedAccounts:
    return SharedAccounts(client, LimitSettings())


async def test_a_limit_holds_over_all_servers(clients: Clients) -> None:
    first, second = map(accounts, clients)
    charges = [await first.begin(TOKEN, False), await second.begin(TOKEN, False)]
    for each in (first, second):
        with pytest.raises(RateLimited):
            await each.begin(TOKEN, False)
    await charges[0].take(500)
    with pytest.raises(RateLimited) as refused:
        await charges[1].take(200)
    assert refused.value.retry_after == 10
    charges[0].end(used=100)
    await status(clients[0].address, None)  # nothing answers the end of a request
    await charges[1].take(200)
    assert await first.begin(TOKEN, nice=True), "nice requests have a budget of their own"
    assert await first.begin(None, False), "a caller without limits is not counted"


async def test_requests_of_a_server_that_is_gone_end(registry: RunningRegistry, clients: Clients) -> None:
    async with joining(registry, "http://c") as lost:
        for _ in range(2):
            await accounts(lost).begin(TOKEN, False)
    with pytest.raises(RateLimited):
        await accounts(clients[0]).begin(TOKEN, False)
    registry.clock.now += 2 * protocol.PULSE_SECONDS
    await asyncio.sleep(1.5 * protocol.PULSE_SECONDS)  # the others are heard
    registry.clock.now += protocol.SILENT_SECONDS - protocol.PULSE_SECONDS

    async def begins() -> bool:
        try:
            await accounts(clients[0]).begin(TOKEN, False)
        except RateLimited:
            return False
        return True

    await until_async(begins)


async def test_a_restart_forgets_no_budget(registry: RunningRegistry, clients: Clients) -> None:
    first, second = clients
    held = await accounts(first).begin(TOKEN, False)
    await held.take(600)
    registry.clock.now += 1.1  # the levels are saved each second
    await asyncio.sleep(0.3)
    registry.stop()
    await until(lambda: not first.joined and not second.joined)
    registry.start()
    await until(lambda: first.joined and second.joined)
    other = await accounts(second).begin(TOKEN, False)
    with pytest.raises(RateLimited):
        await accounts(second).begin(TOKEN, False)
    with pytest.raises(RateLimited):
        await other.take(300)
    held.end(used=0)
    await status(first.address, None)
    await other.take(300)


async def test_without_the_registry_each_server_permits_its_share(
    registry: RunningRegistry, clients: Clients
) -> None:
    first, second = clients
    await until(lambda: first.gateways == second.gateways == 2)
    registry.stop()
    await until(lambda: not first.joined and not second.joined)
    for client in clients:
        own = accounts(client)
        charge = await own.begin(TOKEN, False)
        with pytest.raises(RateLimited):
            await own.begin(TOKEN, False)
        await charge.take(300)
        charge.end(used=300)
        with pytest.raises(RateLimited):
            await (await own.begin(TOKEN, False)).take(100)


async def test_a_request_that_is_cancelled_is_not_counted(clients: Clients) -> None:
    first, second = map(accounts, clients)
    for _ in range(5):
        beginning = asyncio.create_task(first.begin(TOKEN, False))
        await asyncio.sleep(0)
        beginning.cancel()
        await asyncio.wait({beginning})
    await asyncio.sleep(0.3)
    assert [await second.begin(TOKEN, False) for _ in range(2)]


async def test_a_registry_that_hangs_holds_up_no_request(
    registry: RunningRegistry, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_accounts, "_PATIENCE_SECONDS", 0.1)
    first, second = map(accounts, clients)
    with registry.hanging():
        own = await first.begin(TOKEN, False)
    own.end(used=0)
    await asyncio.sleep(0.3)
    assert [await second.begin(TOKEN, False) for _ in range(2)], "what was counted late was ended"


async def test_directions_outlive_the_registry(registry: RunningRegistry, tmp_path: Path) -> None:
    model = model_info(tmp_path, 300)
    async with joining(registry) as client:
        directions = SharedDirections(client)
        assert await directions.get(model, DIGEST) is None
        await directions.put(model, DIGEST, DirectionResult("r", b"units", b"norms"))
        await directions.put(model, "../../x", DirectionResult("r", b"units", b"norms"))
        assert await directions.get(model, DIGEST) is not None
        registry.stop()
        await until(lambda: not client.joined)
        assert await directions.get(model, DIGEST) is None
        registry.start()
        await until(lambda: client.joined)
        found = await directions.get(model, DIGEST)
        assert found is not None
        assert (found.content, found.calibration) == (b"units", b"norms")
        assert await directions.get(msgspec.structs.replace(model, dtype="other"), DIGEST) is None
        [file] = [path for path in (tmp_path / "registry" / "directions").rglob("*") if path.is_file()]
        file.write_bytes(b"broken")
        assert await directions.get(model, DIGEST) is None


async def send(socket: zmq.asyncio.Socket, message: object) -> object:
    await socket.send(protocol.encode(message))  # type: ignore[arg-type]
    return protocol.decode_answer(await asyncio.wait_for(socket.recv(), 5))


async def test_servers_hear_of_workers_that_come_and_go(registry: RunningRegistry, clients: Clients) -> None:
    found: list[list[str]] = []
    with clients[0].following("m", found.append):
        async with connecting(registry.address, None, b"worker") as (socket, _):
            await socket.poll(1000, zmq.POLLOUT)
            announce = Announce(__version__, "m", "tcp://host:1")
            for _ in range(2):
                assert await send(socket, announce) == Heard()
            await until(lambda: found == [["tcp://host:1"]])
            await socket.send(protocol.encode(Withdraw()))
            await until(lambda: found[-1] == [])
            assert await send(socket, announce) == Heard()
            await until(lambda: found[-1] == ["tcp://host:1"])
        late: list[list[str]] = []
        with clients[0].following("m", late.append):
            assert late == [["tcp://host:1"]]
        registry.clock.now += 2.5
        await asyncio.sleep(1.5 * protocol.PULSE_SECONDS)  # the servers are heard, the worker is not
        registry.clock.now += 2.5
        await until(lambda: found[-1] == [])


async def test_the_status_sums_up(registry: RunningRegistry) -> None:
    loads = {"m": ModelLoad(running=2, waiting=3, workers=1)}
    async with joining(registry, loads=lambda: loads) as client, joining(registry, "http://b"):
        await storage(client).write(concept())

        async def loaded() -> bool:
            return (await status(registry.address, None)).loads == loads

        await until_async(loaded)
        found = await status(registry.address, None)
        assert sorted(found.gateways) == ["http://a", "http://b"]
        assert found.concepts == 1
    with pytest.raises(StartError, match="gives no status: nothing answers at this address"):
        await status("tcp://127.0.0.1:1", None, seconds=0.5)


async def test_a_member_of_another_version_or_protocol_is_refused(registry: RunningRegistry) -> None:
    async with connecting(registry.address, None, b"member") as (socket, _):
        await socket.poll(1000, zmq.POLLOUT)
        refused = await send(socket, Announce("0.0.1", "m", "tcp://host:1"))
        assert isinstance(refused, Refused)
        assert "0.0.1" in refused.message
        assert isinstance(await send(socket, Loads({})), Refused), "it has not joined"
        await socket.send(b"\xc1")
        assert isinstance(protocol.decode_answer(await socket.recv()), Refused)
    async with joining(registry):
        pass  # the registry goes on


async def test_a_refused_server_says_so_and_tries_again(
    registry: RunningRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_module, "__version__", "0.0.1")
    client = RegistryClient(registry.address, None, dict)
    running = asyncio.create_task(client.run())
    with caplog.at_level(logging.ERROR):
        await until(lambda: "refuses this server: the registry has version" in caplog.text)
    monkeypatch.setattr(client_module, "__version__", __version__)
    await until(lambda: client.joined)
    running.cancel()
    await asyncio.wait({running})


async def test_only_members_with_the_key_are_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_module, "_LINE_SECONDS", 0.5)
    key = new_key()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as free:
        port = free.bind_to_random_port("tcp://127.0.0.1")
    registry = RunningRegistry(f"tcp://127.0.0.1:{port}", tmp_path / "registry", key)
    registry.start()
    try:
        async with joining(registry, key=key):
            client = RegistryClient(registry.address, new_key(), dict)
            running = asyncio.create_task(client.run())
            await until(lambda: "same worker key" in caplog.text)
            assert not client.joined
            running.cancel()
            await asyncio.wait({running})
        with pytest.raises(StartError, match="same worker key"):
            await status(registry.address, new_key(), seconds=1.0)
    finally:
        registry.stop()


def test_an_address_in_use_is_one_line(registry: RunningRegistry) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as taken:
        port = taken.bind_to_random_port("tcp://127.0.0.1")
        with (
            pytest.raises(StartError, match=f"tcp://127.0.0.1:{port}: Address already in use"),
            listening(f"tcp://127.0.0.1:{port}", None),
        ):
            pass


async def test_a_late_answer_locks_nobody_out(
    registry: RunningRegistry, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry counts requests for which nobody waits any more. When the server joins again, they end."""
    monkeypatch.setattr(shared_accounts, "_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(client_module, "_ANSWER_SECONDS", 0.3)
    first, second = map(accounts, clients)
    with registry.hanging():
        charges = [await first.begin(TOKEN, False) for _ in range(2)]
        await asyncio.sleep(0.5)
        assert not clients[0].joined
    for charge in charges:
        charge.end(used=0)
    await until(lambda: clients[0].joined)
    held = [await second.begin(TOKEN, False) for _ in range(2)]
    await held[0].take(600)


async def test_tokens_that_were_taken_too_late_are_counted_once(
    registry: RunningRegistry, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_accounts, "_PATIENCE_SECONDS", 0.1)
    charge = await accounts(clients[0]).begin(TOKEN, False)
    with registry.hanging():
        await charge.take(400)
    charge.end(used=100)
    await status(registry.address, None)
    await (await accounts(clients[1]).begin(TOKEN, False)).take(500)


async def test_all_servers_hear_of_changes_in_the_same_order(clients: Clients) -> None:
    """Also the one that has asked for them: else its own change could undo a later one."""
    first, second = clients
    for client in (first, second, first):
        await storage(client).write(concept())
        await storage(second).remove(concept())
    assert first.listener.removed_ids == second.listener.removed_ids == ["_worker/kind"] * 3  # type: ignore[union-attr]


async def test_what_is_broken_on_the_disk_does_not_end_the_registry(
    registry: RunningRegistry, tmp_path: Path
) -> None:
    async with joining(registry) as first:
        await storage(first).write(concept())
        registry.stop()
        await until(lambda: not first.joined)
        concepts = tmp_path / "registry" / "concepts"
        whole = imported_concept()
        (concepts / file_name(whole)).write_bytes(encode(whole)[:-4])
        (tmp_path / "registry" / "budgets.json").write_text("{")
        registry.start()
        await until(lambda: first.joined)
        assert first.listener.ids == ["_worker/kind"]  # type: ignore[union-attr]


async def test_imported_vectors_travel(clients: Clients) -> None:
    whole = imported_concept()
    await storage(clients[0]).write(whole)
    name = file_name(whole)
    found = decode(name, clients[1].listener.files[name])  # type: ignore[union-attr]
    assert found.vectors is not None
    assert whole.vectors is not None
    assert found.vectors.read_values() == whole.vectors.read_values()
    assert found.digest == whole.digest


async def test_an_odd_message_does_not_end_the_registry(registry: RunningRegistry) -> None:
    async with connecting(registry.address, None, b"member") as (socket, _):
        await socket.poll(1000, zmq.POLLOUT)
        await socket.send_multipart([b"", b"two frames"])
        assert isinstance(protocol.decode_answer(await asyncio.wait_for(socket.recv(), 5)), Refused)
    async with joining(registry):
        pass


async def test_an_address_belongs_to_the_worker_that_has_announced_it_last(registry: RunningRegistry) -> None:
    async with (
        connecting(registry.address, None, b"old") as (old, _),
        connecting(registry.address, None, b"new") as (new, _),
    ):
        for socket, model in ((old, "a"), (new, "b")):
            await socket.poll(1000, zmq.POLLOUT)
            assert await send(socket, Announce(__version__, model, "tcp://host:1")) == Heard()
        assert (await status(registry.address, None)).workers == {"b": ["tcp://host:1"]}


async def test_the_connection_goes_on_after_a_listener_has_failed(
    registry: RunningRegistry, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = clients

    async def fail(name: str, content: bytes) -> None:
        raise RuntimeError("out of memory")

    second.listener.stored = fail  # type: ignore[union-attr,method-assign]
    writing = asyncio.create_task(storage(first).write(concept()))
    await until(lambda: "has failed" in caplog.text)
    registry.clock.now += WAIT_SECONDS
    await writing
    del second.listener.stored  # type: ignore[union-attr]
    await until(lambda: second.joined and "kind.json" in second.listener.files)  # type: ignore[union-attr]
