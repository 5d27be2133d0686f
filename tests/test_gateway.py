"""The gateways, with the real nginx: what is let through, and how everything else is refused and logged."""

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fedward.client import enrolment as hospital_side
from fedward.client import gateway_process
from fedward.client.gateway import HospitalGateway
from fedward.client.gateway_process import MembershipWatch, gateway_program
from fedward.client.membership import FOLDER, Membership, node_public_pem
from fedward.common.certificates import (
    client_certificate,
    loopback_identity,
    new_authority,
    new_key,
    server_identity,
    signing_request,
)
from fedward.common.errors import GatewayFailed
from fedward.common.fleet import FLEET_CALLS
from fedward.common.flower_tools import free_port
from fedward.common.instants import utc_now
from fedward.common.key_files import Identity, pem, request_of
from fedward.common.nginx import Nginx, program
from fedward.common.nginx_workers import takes_connections
from fedward.common.supervision import Program, Supervisor
from fedward.server.coordinator import Coordinator
from fedward.server.enrolment import answer, review, revoke
from fedward.server.gateway import CoordinatorGateway, node_header
from fedward.server.gateway_process import GatewayRefresh
from fedward.simulations.deployment import wait_for

YEAR = timedelta(days=365)
SLOW_SECONDS = 1.0
PULL = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module", autouse=True)
def _needs_nginx() -> None:
    """There is no skipping: without its gateway a federation is open to everybody."""
    try:
        program()
    except GatewayFailed as missing:
        pytest.fail(f"{missing} (`make install` does it for root.)")


@dataclass
class Seen:
    """A request that came through to where SuperLink stands."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


class _Upstream(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, identity: Path) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.seen: list[Seen] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity / "superlink.pem", identity / "superlink.key")
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are a part of these tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Upstream

    def do_POST(self) -> None:
        body = self._body()
        self.server.seen.append(Seen(self.command, self.path, self.headers.items(), body))
        if body == b"slow":
            time.sleep(SLOW_SECONDS)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_DELETE = do_OPTIONS = do_HEAD = do_POST

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@dataclass
class Caller:
    """Calls a gateway with one certificate and the key of one node."""

    port: int
    authority: Path
    identity: tuple[Path, Path] | None
    node: str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    connection: http.client.HTTPSConnection | None = None

    def call(self, path: str, method: str = "POST", body: bytes = b"body", chunked: bool = False) -> int:
        return self.answer(path, method, body, chunked)[0]

    def answer(
        self, path: str, method: str = "POST", body: bytes = b"body", chunked: bool = False
    ) -> tuple[int, bytes]:
        with contextlib.closing(self.connected()) as connection:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in self._headers():
                connection.putheader(name, value)
            if chunked:
                connection.putheader("Transfer-Encoding", "chunked")
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            else:
                connection.putheader("Content-Length", str(len(body)))
            with contextlib.suppress(ConnectionError, ssl.SSLError):  # refused before the body was read
                connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.read()

    def connected(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.authority))
        context.maximum_version = version
        if self.identity is not None:
            context.load_cert_chain(*self.identity)
        return http.client.HTTPSConnection("localhost", self.port, context=context, timeout=15)

    def _headers(self) -> list[tuple[str, str]]:
        own = [] if self.node is None else [("flwr-public-key", node_header(self.node))]
        return [*own, *self.headers]


@dataclass
class World:
    """A coordinator with a running gateway, two hospitals, and an upstream where SuperLink stands."""

    folder: Path
    coordinator: Coordinator
    gateway: CoordinatorGateway
    upstream: _Upstream
    first: Any
    second: Any
    join: Callable[..., Any]

    @property
    def authority(self) -> Path:
        return self.folder / "authorities.pem"

    def caller(self, member: Any, **changes: Any) -> Caller:
        place = Membership.load(member.state)
        identity = (place.tls_certificate, place.tls_key)
        node = node_public_pem(place.node_key).decode()
        own = Caller(self.coordinator.address.port, self.authority, identity, node)
        return dataclasses.replace(own, **changes)

    def foreign(self, name: str, identity: Identity) -> tuple[Path, Path]:
        key, certificate = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        identity.save(key, certificate)
        return certificate, key

    def logged(self) -> list[dict[str, Any]]:
        text = (self.gateway.nginx.folder / "access.log").read_text()
        # A line that crosses a page of memory can be seen half-written.
        return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    make_coordinator: Callable[..., Coordinator],
    join_federation: Callable[..., Any],
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("gateway with a space")
    coordinator = make_coordinator(folder / "c", port=free_port(), superlink_port=free_port())
    upstream = _Upstream(coordinator.address.superlink_port, folder / "c" / "loopback")
    threading.Thread(target=upstream.serve_forever, args=(0.02,), daemon=True).start()
    members = [join_federation(coordinator, folder / name, name) for name in ("first", "second")]
    (folder / "authorities.pem").write_bytes(pem(coordinator.gateway_issuer(utc_now()).certificate))
    gateway = CoordinatorGateway(coordinator)
    gateway.start(utc_now())
    try:
        yield World(folder, coordinator, gateway, upstream, *members, join_federation)
    finally:
        gateway.stop()
        upstream.shutdown()


@pytest.fixture
def newcomer(world: World, tmp_path: Path) -> Any:
    """A hospital of a test's own, whom the gateway knows."""
    member = world.join(world.coordinator, tmp_path / "state", tmp_path.name)
    world.gateway.refresh(utc_now())
    return member


# What is let through


@pytest.mark.parametrize("call", FLEET_CALLS)
def test_a_site_reaches_every_fleet_call_with_its_own_certificate_and_key(world: World, call: str) -> None:
    caller = world.caller(world.first, headers=[("flwr-signature", "s"), ("X-Other", "kept")])
    assert caller.answer(f"/v1/fleet/{call}", body=b"bytes \x00\xff") == (200, b"bytes \x00\xff")
    seen = world.upstream.seen[-1]
    assert (seen.method, seen.path, seen.body) == ("POST", f"/v1/fleet/{call}", b"bytes \x00\xff")
    assert seen.all("flwr-public-key") == [node_header(caller.node or "")]
    assert (seen.all("flwr-signature"), seen.all("X-Other")) == (["s"], ["kept"])


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_several_chunks_goes_through(world: World, chunked: bool) -> None:
    body = bytes(range(256)) * 40_960  # 10 MiB
    assert world.caller(world.first).answer(PULL, body=body, chunked=chunked) == (200, body)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused(world: World, chunked: bool) -> None:
    count = len(world.upstream.seen)
    assert world.caller(world.first).call(PULL, body=bytes((16 << 20) + 1), chunked=chunked) == 413
    assert len(world.upstream.seen) == count
    _expect_logged(world, 413, PULL)


# Who is refused


def test_without_a_certificate_nobody_comes_in(world: World) -> None:
    _expect_stranger(world, world.caller(world.first, identity=None))


def test_a_foreign_authority_s_certificate_is_refused(world: World) -> None:
    now = utc_now()
    # An authority of the very same name, too.
    name = world.coordinator.site_issuer(now).certificate.subject.rfc4514_string().removeprefix("CN=")
    authority, key = new_authority(name, now, YEAR), new_key()
    certificate = client_certificate(authority, key.public_key(), world.first.place.site, now, YEAR)
    identity = world.foreign("foreign", Identity(key, certificate))
    _expect_stranger(world, world.caller(world.first, identity=identity))


def test_a_certificate_that_signed_itself_is_refused(world: World) -> None:
    identity = world.foreign("self", loopback_identity(utc_now(), YEAR))
    _expect_stranger(world, world.caller(world.first, identity=identity))


def test_an_expired_certificate_is_refused(world: World) -> None:
    then, key = utc_now() - 2 * YEAR, new_key()
    issuer = world.coordinator.site_issuer(utc_now())
    expired = client_certificate(issuer, key.public_key(), world.first.place.site, then, YEAR)
    identity = world.foreign("expired", Identity(key, expired))
    _expect_stranger(world, world.caller(world.first, identity=identity))


def test_the_gateway_s_own_certificate_opens_nothing(world: World) -> None:
    folder = world.gateway.nginx.folder
    _expect_stranger(
        world, world.caller(world.first, identity=(folder / "server.pem", folder / "server.key"))
    )


def test_a_certificate_of_a_site_that_is_not_listed_opens_nothing(world: World) -> None:
    key, issuer = new_key(), world.coordinator.site_issuer(utc_now())
    unlisted = client_certificate(issuer, key.public_key(), "site-0000000000000000", utc_now(), YEAR)
    caller = world.caller(world.first, identity=world.foreign("unlisted", Identity(key, unlisted)))
    _expect_stranger(world, caller)
    assert caller.call("/releases/m.tar", "GET", b"") == 401


def test_a_revoked_site_is_refused_and_the_others_notice_nothing(world: World, newcomer: Any) -> None:
    revoked, other = world.caller(newcomer), world.caller(world.second)
    assert revoked.call(PULL) == 200
    slow: list[int] = []
    in_flight = threading.Thread(target=lambda: slow.append(other.call(PULL, body=b"slow")))
    in_flight.start()
    stop, statuses = threading.Event(), list[int]()
    steady = threading.Thread(target=lambda: _keep_calling(other, stop, statuses))
    steady.start()
    time.sleep(0.2)
    revoke(world.coordinator, newcomer.place.site, utc_now(), "tests")
    assert world.gateway.refresh(utc_now())
    assert revoked.call(PULL) == 401  # at once
    time.sleep(0.2)
    stop.set()
    steady.join()
    in_flight.join()
    assert slow == [200]
    assert set(statuses) == {200}
    assert len(statuses) > 1
    assert revoked.call("/releases/m.tar", "GET", b"") == 401
    _expect_logged(world, 401, PULL, verified="FAILED:certificate revoked")


def test_a_revocation_takes_effect_though_the_command_died_before_the_reload(
    world: World, newcomer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_: object) -> None:
        raise KeyboardInterrupt

    revoke(world.coordinator, newcomer.place.site, utc_now(), "tests")
    with monkeypatch.context() as patch:
        patch.setattr(Nginx, "reload", dies)
        with pytest.raises(KeyboardInterrupt):
            CoordinatorGateway(Coordinator(world.coordinator.folder)).refresh(utc_now())
    assert world.caller(newcomer).call(PULL) == 200
    assert world.gateway.refresh(utc_now())
    assert world.caller(newcomer).call(PULL) == 401
    assert not world.gateway.refresh(utc_now())  # nothing is reloaded without need


@pytest.mark.parametrize("kind", ["other's", "none", "unregistered", "other case", "cut", "other's first"])
def test_a_node_s_key_that_is_not_the_certificate_s_is_refused_with_401(world: World, kind: str) -> None:
    own = node_public_pem(world.first.place.node_key).decode()
    theirs = node_public_pem(world.second.place.node_key).decode()
    headers = {
        "other's": [node_header(theirs)],
        "none": [],
        "unregistered": [node_header("-----BEGIN PUBLIC KEY-----\n")],
        "other case": [node_header(own).swapcase()],
        "cut": [node_header(own)[:-1]],
        "other's first": [node_header(theirs), node_header(own)],
    }[kind]
    named = [("flwr-public-key", value) for value in headers]
    _expect_stranger(world, world.caller(world.first, node=None, headers=named))


def test_no_second_key_is_smuggled_past_the_one_that_was_compared(world: World) -> None:
    theirs = node_header(node_public_pem(world.second.place.node_key).decode())
    smuggled = [("flwr-public-key", theirs), ("FLWR-PUBLIC-KEY", theirs), ("flwr_public_key", theirs)]
    caller = world.caller(world.first, headers=smuggled)
    count = len(world.upstream.seen)
    status = caller.call(PULL)
    assert status in (200, 401)
    for seen in world.upstream.seen[count:]:
        assert [seen.all("flwr-public-key"), seen.all("flwr_public_key")] == [
            [node_header(caller.node or "")],
            [],
        ]


def test_older_tls_is_refused(world: World) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - an alert, or the connection's end
        world.caller(world.first).connected(ssl.TLSVersion.TLSv1_2).request("POST", PULL)


# What is refused


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/",
        "/v1/fleet",
        "/",
        "/health",
        f"{PULL}/",
        f"{PULL}?run=1",
        f"{PULL}%20",
        f"{PULL}%00",
        f"{PULL}%0a",
        f"{PULL};x",
        f"{PULL}/../../control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/%252e%252e/control/start-run",
        "/v1/fleet/..;/control/start-run",
        "/v1/fleet/..\\control\\start-run",
        "/v1/./fleet/pull-messages",
        "/v1//fleet/pull-messages",
        "//v1/fleet/pull-messages",
        "/v1/control/../fleet/pull-messages",
        "/v1/fleet/pull%2dmessages",
        "/V1/FLEET/PULL-MESSAGES",
        "http://localhost/v1/control/start-run",
        "https://superlink/v1/control/start-run",
        "/../../v1/control/start-run",
        "/releases/../v1/control/start-run",
    ],
)
def test_every_other_path_is_refused(world: World, path: str) -> None:
    count = len(world.upstream.seen)
    # 400 where nginx calls it no path at all.
    assert world.caller(world.first).call(path) in (400, 403)
    assert len(world.upstream.seen) == count
    _logged(world, lambda line: line["status"] in (400, 403) and path.endswith(line["uri"]))


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "post"])
def test_a_fleet_call_is_a_post(world: World, method: str) -> None:
    count = len(world.upstream.seen)
    assert world.caller(world.first).call(PULL, method) in (400, 403)
    assert len(world.upstream.seen) == count


def test_what_is_refused_is_logged_with_the_site_and_the_reason(world: World) -> None:
    world.caller(world.first).call("/v1/control/start-run")
    site = f"CN={world.first.place.site}"
    line = _logged(world, lambda line: line["uri"] == "/v1/control/start-run" and line["subject"] == site)
    assert (line["verified"], line["method"], line["status"]) == ("SUCCESS", "POST", 403)


# Releases


def test_releases_are_read_and_nothing_else(world: World) -> None:
    folder = world.coordinator.folder / "releases"
    (folder / "v1").mkdir()
    (folder / "v1" / "model.tar").write_bytes(b"signed")
    (folder / ".draft-1").write_bytes(b"half")
    (folder / "link").symlink_to(world.coordinator.folder / "coordinator.json")
    caller = world.caller(world.first, node=None)
    assert caller.answer("/releases/v1/model.tar", "GET", b"") == (200, b"signed")
    assert caller.answer("/releases/v1/model.tar", "HEAD", b"") == (200, b"")
    refused = {
        ("/releases/v1/model.tar", "POST"): {403},
        ("/releases/v1/model.tar", "PUT"): {403},
        ("/releases/v1/model.tar", "DELETE"): {403},
        ("/releases/", "GET"): {403},
        ("/releases/v1/", "GET"): {403},
        ("/releases/.draft-1", "GET"): {403},
        ("/releases/link", "GET"): {403},
        ("/releases/none", "GET"): {404},
        ("/releases/../sites.json", "GET"): {403},
        ("/releases../sites.json", "GET"): {403},
        ("/releases/..%2fsites.json", "GET"): {403},
        ("/releases/%2e%2e/authority/1/ca.key", "GET"): {403},
        ("/releases/v1/..%2f..%2f..%2fsites.json", "GET"): {400, 403},
    }
    for (path, method), expected in refused.items():
        assert caller.call(path, method, b"") in expected, (path, method)
    assert dataclasses.replace(caller, identity=None).call("/releases/v1/model.tar", "GET", b"") == 401


# The hospital's side


@pytest.fixture(scope="module")
def hospital_gateway(world: World) -> Iterator[HospitalGateway]:
    gateway = HospitalGateway(world.first.state, free_port())
    gateway.start(utc_now())
    yield gateway
    gateway.stop()


def _node(world: World, gateway: HospitalGateway, member: Any) -> Caller:
    """A SuperNode: no certificate of its own, and it trusts the loopback's alone."""
    return world.caller(member, port=gateway.port, authority=gateway.certificate, identity=None)


def test_the_whole_chain_works(world: World, hospital_gateway: HospitalGateway) -> None:
    node = _node(world, hospital_gateway, world.first)
    for call in FLEET_CALLS:
        assert node.answer(f"/v1/fleet/{call}", body=b"x" * 100_000) == (200, b"x" * 100_000)
        assert world.upstream.seen[-1].path == f"/v1/fleet/{call}"
    (world.coordinator.folder / "releases" / "chain").write_bytes(b"release")
    assert node.answer("/releases/chain", "GET", b"") == (200, b"release")


def test_a_refusal_comes_through_the_chain_as_it_is(world: World, hospital_gateway: HospitalGateway) -> None:
    """A node that is refused by 403 would wait for ever."""
    assert _node(world, hospital_gateway, world.second).call(PULL) == 401


@pytest.mark.parametrize("path", ["/v1/control/leaves", "/leaves", f"{PULL}?leaves", "/v1/fleet/../leaves"])
def test_nothing_else_leaves_the_hospital_by_its_gateway(
    world: World, hospital_gateway: HospitalGateway, path: str
) -> None:
    node = _node(world, hospital_gateway, world.first)
    assert (node.call(path), node.call(PULL)) == (403, 200)
    assert not any("leaves" in line["uri"] for line in world.logged())


@pytest.mark.parametrize("kind", ["another site", "foreign authority", "other name"])
def test_whoever_stands_in_for_the_coordinator_gets_nothing(
    world: World, tmp_path: Path, join_federation: Callable[..., Any], kind: str
) -> None:
    """Among them an insider with a good client certificate."""
    now, port = utc_now(), free_port()
    own = world.coordinator.gateway_issuer(now)
    identity = {
        "another site": (world.second.place.tls_certificate, world.second.place.tls_key),
        "foreign authority": world.foreign(
            "stand-in", server_identity(new_authority("other", now, YEAR), ["localhost"], now, YEAR)
        ),
        "other name": world.foreign("named", server_identity(own, ["gateway.example.org"], now, YEAR)),
    }[kind]
    impostor = tmp_path / "impostor"
    impostor.mkdir()
    (impostor / "superlink.pem").write_bytes(identity[0].read_bytes())
    (impostor / "superlink.key").write_bytes(identity[1].read_bytes())
    upstream = _Upstream(port, impostor)
    threading.Thread(target=upstream.serve_forever, args=(0.02,), daemon=True).start()
    moved = Coordinator(world.coordinator.folder)
    moved.address = dataclasses.replace(moved.address, port=port)
    member = join_federation(moved, tmp_path / "state", f"meets {kind}")
    gateway = HospitalGateway(member.state, free_port())
    gateway.start(now)
    try:
        assert _node(world, gateway, member).call(PULL) == 502
        assert upstream.seen == []
    finally:
        gateway.stop()
        upstream.shutdown()


# Keys that change


def test_a_renewal_goes_on_without_a_gap_and_the_old_certificate_ends(world: World, newcomer: Any) -> None:
    now = utc_now()
    before = world.caller(newcomer)
    _, file = hospital_side.renew(newcomer.state, now + timedelta(seconds=1), new_keys=True)
    seen = review(world.coordinator, file, now + timedelta(seconds=1))
    answered = answer(world.coordinator, seen, None, now, "tests")
    world.gateway.refresh(now)
    assert before.call(PULL) == 200  # until it accepts
    hospital_side.accept(newcomer.state, answered, None, now)
    after = world.caller(newcomer)
    assert after.identity != before.identity
    assert after.node != before.node
    assert (after.call(PULL), before.call(PULL)) == (200, 200)
    world.gateway.refresh(now + timedelta(days=8))
    assert (after.call(PULL), before.call(PULL)) == (200, 401)
    assert dataclasses.replace(after, node=before.node).call(PULL) == 401


def test_rotated_keys_overlap_and_then_end(
    world: World,
    tmp_path: Path,
    make_coordinator: Callable[..., Coordinator],
    join_federation: Callable[..., Any],
) -> None:
    now = utc_now() - timedelta(days=91)
    coordinator = make_coordinator(
        tmp_path / "c", port=free_port(), superlink_port=world.upstream.server_port, now=now
    )
    (tmp_path / "c" / "loopback" / "superlink.pem").write_bytes(
        (world.coordinator.folder / "loopback" / "superlink.pem").read_bytes()
    )
    late, prompt = (join_federation(coordinator, tmp_path / name, name, now) for name in ("late", "prompt"))
    gateway = CoordinatorGateway(coordinator)
    gateway.start(now)
    locals_ = [HospitalGateway(member.state, free_port()) for member in (late, prompt)]
    try:
        for one in locals_:
            one.start(now)
        nodes = [_node(world, one, member) for one, member in zip(locals_, (late, prompt), strict=True)]
        coordinator.rotate(now, "tests", timedelta(days=90))
        gateway.refresh(now)
        assert [node.call(PULL) for node in nodes] == [200, 200]
        _, file = hospital_side.renew(prompt.state, now + timedelta(seconds=1))
        seen = review(coordinator, file, now + timedelta(seconds=1))
        hospital_side.accept(prompt.state, answer(coordinator, seen, None, now, "tests"), None, now)
        assert locals_[1].refresh(now)
        assert [node.call(PULL) for node in nodes] == [200, 200]
        gateway.refresh(utc_now())
        # The late one no longer knows the gateway, and would not be let in either.
        assert [node.call(PULL) for node in nodes] == [502, 200]
        authority = tmp_path / "new.pem"
        authority.write_bytes(pem(coordinator.site_issuer(utc_now()).certificate))
        direct = world.caller(late, port=coordinator.address.port, authority=authority)
        assert direct.call(PULL) == 401
    finally:
        for running in (*locals_, gateway):
            running.stop()


# The process


def test_a_gateway_whose_parent_died_is_taken_over_and_stopped_by_its_number(
    world: World, tmp_path: Path, make_coordinator: Callable[..., Coordinator]
) -> None:
    coordinator = make_coordinator(tmp_path / "c", port=free_port(), superlink_port=free_port())
    first, second = CoordinatorGateway(coordinator), CoordinatorGateway(coordinator)
    first.start(utc_now())
    pid = first.nginx.pid
    second.start(utc_now())
    assert second.nginx.pid == pid
    second.stop()
    assert (first.nginx.pid, second.nginx.pid) == (None, None)
    assert world.gateway.nginx.pid is not None
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", coordinator.address.port))


@contextlib.contextmanager
def _supervised(folder: Path, gateway: Program) -> Iterator[Supervisor]:
    until, supervisor = threading.Event(), Supervisor(folder, [gateway])
    thread = threading.Thread(target=supervisor.run, args=(until,))
    thread.start()
    try:
        yield supervisor
    finally:
        until.set()
        thread.join(30)


def _master(nginx: Nginx, other_than: int | None = None) -> int:
    """The gateway's process, once it has workers."""
    wait_for(lambda: nginx.pid not in (None, other_than) and nginx._workers(), 20)
    return nginx.pid or 0


def test_a_gateway_that_is_killed_is_back_on_its_port_and_no_worker_of_the_old_one_is_left(
    world: World, newcomer: Any
) -> None:
    place = newcomer.state / FOLDER / "gateway"
    gateway = HospitalGateway(newcomer.state, free_port())
    with _supervised(newcomer.state, gateway_program(newcomer.state, gateway.port)):
        old = _master(Nginx(place))
        workers = Nginx(place)._workers()
        os.kill(old, signal.SIGKILL)
        assert _master(Nginx(place), old) != old
        assert not any(map(takes_connections, workers))
        assert _node(world, gateway, newcomer).call(PULL) == 200
    assert Nginx(place).pid is None


def _renew(world: World, member: Any, seconds: int, **options: bool) -> None:
    """`seconds` after it joined: two requests of one second could not be told apart."""
    now = utc_now()
    _, file = hospital_side.renew(member.state, now + timedelta(seconds=seconds), **options)
    seen = review(world.coordinator, file, now + timedelta(seconds=seconds))
    hospital_side.accept(member.state, answer(world.coordinator, seen, None, now, "tests"), None, now)
    world.gateway.refresh(now)


def test_a_renewal_is_taken_over_by_what_runs_and_by_a_gateway_that_was_just_starting(
    world: World, newcomer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_process, "_LOOK_SECONDS", 0.0)
    gateway, restarted = HospitalGateway(newcomer.state, free_port()), list[str]()
    gateway.start(utc_now())
    watch = MembershipWatch(newcomer.state, gateway.port, restarted.append)
    pid_file = gateway.nginx.folder / "nginx.pid"
    try:
        pid_file.rename(pid_file.with_suffix(".later"))  # it has read its configuration, and says so later
        _renew(world, newcomer, 10)
        watch.tick()
        pid_file.with_suffix(".later").rename(pid_file)
        watch.tick()
        place = Membership.load(newcomer.state).folder
        assert f'"{place}/tls.pem"' in (gateway.nginx.folder / "nginx.conf").read_text()
        assert gateway.nginx._loaded() == watch._gateway.nginx._wanted
        assert restarted == []  # the node's key is the same
        _renew(world, newcomer, 20, new_keys=True)
        for _ in range(2):
            watch.tick()
        assert restarted == ["supernode"]
        assert _node(world, gateway, newcomer).call(PULL) == 200
    finally:
        gateway.stop()


def test_a_coordinator_that_moved_to_another_address_is_found_again(
    newcomer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nginx looks a name up once: a new process of it looks again."""
    monkeypatch.setattr(gateway_process, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(gateway_process, "_LOOKUP_SECONDS", 0.0)
    gateway = HospitalGateway(newcomer.state, free_port())
    gateway.start(utc_now())
    try:
        watch = MembershipWatch(newcomer.state, gateway.port, pytest.fail)
        workers = gateway.nginx._workers()
        for found in (frozenset[str](), watch._addresses):  # no answer, and the same
            monkeypatch.setattr(gateway_process, "addresses", lambda _, found=found: found)
            watch.tick()
        assert gateway.nginx._workers() == workers
        monkeypatch.setattr(gateway_process, "addresses", lambda _: frozenset({"192.0.2.1"}))
        watch.tick()
        assert not gateway.nginx._workers() & workers
    finally:
        gateway.stop()


def test_the_coordinators_gateway_takes_up_a_site_that_no_command_told_it_of(
    world: World, tmp_path: Path, make_coordinator: Callable[..., Coordinator]
) -> None:
    """Because `enrol` was killed before it did."""
    coordinator = make_coordinator(
        tmp_path / "c", port=free_port(), superlink_port=world.upstream.server_port
    )
    for name in ("superlink.pem", "superlink.key"):
        (tmp_path / "c" / "loopback" / name).write_bytes(
            (world.coordinator.folder / "loopback" / name).read_bytes()
        )
    refresh = GatewayRefresh(coordinator.folder)
    command = [sys.executable, "-m", "fedward.server.gateway_process", "--state", str(coordinator.folder)]
    with _supervised(coordinator.folder, Program("gateway", command)):
        _master(Nginx(coordinator.folder / "gateway"))
        refresh.tick()
        member = world.join(coordinator, tmp_path / "state", "late")
        (tmp_path / "authority.pem").write_bytes(pem(coordinator.gateway_issuer(utc_now()).certificate))
        caller = world.caller(member, port=coordinator.address.port, authority=tmp_path / "authority.pem")
        assert caller.call(PULL) == 401
        time.sleep(1.1)  # it looks once a second
        refresh.tick()
        assert caller.call(PULL) == 200


def test_a_port_that_is_taken_and_a_text_that_nginx_refuses_are_named(
    world: World, tmp_path: Path, make_coordinator: Callable[..., Coordinator]
) -> None:
    taken = make_coordinator(tmp_path / "c", port=world.coordinator.address.port)
    with pytest.raises(GatewayFailed, match=r"Address already in use|does not accept"):
        CoordinatorGateway(taken).start(utc_now())
    configured = world.gateway.nginx.folder / "nginx.conf"
    before = configured.read_bytes()
    with pytest.raises(GatewayFailed, match="nonsense"):
        world.gateway.nginx.configure("nonsense on;")
    assert configured.read_bytes() == before


def test_a_number_that_another_process_got_is_left_alone(
    tmp_path: Path, make_coordinator: Callable[..., Coordinator], world: World
) -> None:
    gateway = CoordinatorGateway(make_coordinator(tmp_path / "c"))
    gateway.nginx.folder.mkdir()
    (gateway.nginx.folder / "nginx.pid").write_text(f"{world.gateway.nginx.pid}\n")
    gateway.stop()
    assert world.caller(world.first).call(PULL) == 200


def test_logs_begin_anew_when_they_are_large(world: World) -> None:
    log = world.gateway.nginx.folder / "access.log"
    world.caller(world.first).call(PULL)
    world.gateway.nginx.rotate_logs(largest_bytes=1)
    deadline = time.monotonic() + 5
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    world.caller(world.first).call("/again")
    _logged(world, lambda line: line["uri"] == "/again")
    assert (log.parent / "access.log.1").exists()


def test_keys_are_for_their_owner_alone(world: World, hospital_gateway: HospitalGateway) -> None:
    secret = [path for path in world.folder.rglob("*.key") if path.parent != world.folder]
    secret += list(world.folder.rglob("signing-key.json"))
    assert len(secret) > 8
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}
    assert {path.parent.stat().st_mode & 0o777 for path in secret} == {0o700}


def test_a_request_for_a_certificate_names_no_subject() -> None:
    """The coordinator says who somebody is."""
    key = new_key()
    assert request_of(signing_request(key)) == key.public_key()


def _keep_calling(caller: Caller, stop: threading.Event, statuses: list[int]) -> None:
    while not stop.is_set():
        statuses.append(caller.call(PULL))


def _expect_stranger(world: World, caller: Caller) -> None:
    count = len(world.upstream.seen)
    assert caller.call(PULL) == 401
    assert len(world.upstream.seen) == count
    _expect_logged(world, 401, PULL)


def _expect_logged(world: World, status: int, uri: str, **fields: str) -> None:
    wanted = {"status": status, "uri": uri, **fields}
    _logged(world, lambda line: all(line[key] == value for key, value in wanted.items()))


def _logged(world: World, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """A line of the log's end that fits; nginx writes it after it has answered."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if found := [line for line in world.logged()[-40:] if fits(line)]:
            return found[-1]
        time.sleep(0.02)
    pytest.fail(f"not logged; the last: {world.logged()[-3:]}")
