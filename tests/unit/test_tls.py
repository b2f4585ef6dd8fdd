"""TLS of the listeners: who gets in, what is read again, what is refused at the start; over real connections."""

from __future__ import annotations

import logging
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPSConnection
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tailspan import tls
from tailspan.collect.otlp import grpc_server
from tailspan.collect.otlp.server import OtlpReceiver
from tailspan.config import Tls
from tailspan.errors import CannotError, UsageError
from tailspan.export.prometheus import Metrics
from tailspan.export.scrape import MetricsServer
from tailspan.wire.otlp import Signal
from tests.conftest import eventually
from tests.e2e.backends import SERVICES, Certificates

BODY = ExportTraceServiceRequest().SerializeToString()
ANY = "0.0.0.0"  # beyond loopback, and still reached by it


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of another authority."""
    return Certificates(tmp_path_factory.mktemp("others"))


def files(of: Certificates, client_ca: bool = True) -> Tls:
    return Tls(str(of.server), str(of.server_key), str(of.ca) if client_ca else "")


def client(trusted: Certificates, shown: Certificates | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(trusted.ca))
    if shown:
        context.load_cert_chain(shown.client, shown.client_key)
    return context


def asks_by_http(method: str, path: str, status: int) -> Callable[..., bool]:
    def ask(port: int, trusted: Certificates, shown: Certificates | None = None) -> bool:
        """Whether it was served, over a connection of its own."""
        connection = HTTPSConnection("127.0.0.1", port, timeout=20, context=client(trusted, shown))
        with closing(connection), suppress(OSError):
            connection.request(method, path, BODY, {"Content-Type": "application/x-protobuf"})
            assert connection.getresponse().status == status
            return True
        return False

    return ask


def ask_by_grpc(port: int, trusted: Certificates, shown: Certificates | None = None) -> bool:
    pair = (shown.client_key.read_bytes(), shown.client.read_bytes()) if shown else (None, None)
    credentials = grpc.ssl_channel_credentials(trusted.ca.read_bytes(), *pair)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        export = channel.unary_unary(f"/{SERVICES[Signal.TRACES]}/Export")
        try:
            export(BODY, timeout=20)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            return False
        return True


ASK = {
    "metrics": asks_by_http("GET", "/metrics", 200),
    "http": asks_by_http("POST", "/v1/traces", 200),
    "grpc": ask_by_grpc,
}


@contextmanager
def listener(kind: str, host: str, server: tls.ServerTls | None) -> Iterator[int]:
    """One of the three, on that address; gives its port."""
    if kind == "metrics":
        with closing(MetricsServer(Metrics().registry, host=host, port=0, tls=server)) as metrics:
            yield metrics.port
        return
    addresses = {"grpc": "", "http": "", kind: f"{host}:0"}
    receiver = OtlpReceiver(**addresses, forward=lambda *_: None, tls=server)
    with closing(receiver):
        yield receiver.grpc_port or receiver.http_port


@pytest.mark.parametrize("kind", ASK)
def test_beyond_loopback_only_clients_of_the_authority_are_served(
    kind: str, made: Certificates, others: Certificates
) -> None:
    with listener(kind, ANY, tls.server(files(made))) as port:
        assert ASK[kind](port, trusted=made, shown=made)
        assert not ASK[kind](port, trusted=made, shown=others)
        assert not ASK[kind](port, trusted=made)
        assert not ASK[kind](port, trusted=others, shown=made)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as plain, suppress(ConnectionError):
            plain.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b"200" not in plain.recv(100)
        assert ASK[kind](port, trusted=made, shown=made)


@pytest.mark.parametrize("kind", ASK)
def test_without_an_authority_anybody_who_trusts_the_certificate_is_served(kind: str, made: Certificates) -> None:
    with listener(kind, ANY, tls.server(files(made, client_ca=False))) as port:
        assert ASK[kind](port, trusted=made)


@pytest.mark.parametrize("kind", ASK)
def test_on_loopback_it_stays_plain(kind: str, made: Certificates) -> None:
    with listener(kind, "127.0.0.1", tls.server(files(made))) as port:
        assert not ASK[kind](port, trusted=made, shown=made)


@pytest.mark.parametrize("kind", ASK)
def test_in_the_clear_beyond_loopback_is_warned_of_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with listener(kind, ANY, None), listener(kind, "127.0.0.1", None):
        pass
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "in the clear" in record.getMessage()


@pytest.mark.parametrize("kind", ASK)
def test_silent_clients_keep_nobody_waiting(
    kind: str, made: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tls, grpc_server):
        monkeypatch.setattr(module, "HANDSHAKE_S", 0.5)
    with listener(kind, ANY, tls.server(files(made))) as port:
        silent = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(5)]
        assert ASK[kind](port, trusted=made, shown=made)
        for connection in silent:  # and they are cut off
            with connection, suppress(ConnectionError):
                while connection.recv(1000):  # gRPC has a word to say first
                    pass


@pytest.mark.parametrize("kind", ASK)
def test_certificates_are_read_again_when_a_link_leads_elsewhere(
    kind: str,
    made: Certificates,
    others: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0.0)
    # GIVEN files as Kubernetes mounts them: links through one that is replaced
    for name, of in (("old", made), ("new", others)):
        (tmp_path / name).mkdir()
        for source, target in ((of.server, "tls.crt"), (of.server_key, "tls.key"), (of.ca, "ca.crt")):
            shutil.copy(source, tmp_path / name / target)
    (tmp_path / "broken").mkdir()
    for target in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / "broken" / target).write_text("half of a fi")

    def lead_to(name: str) -> None:
        (tmp_path / "next").symlink_to(name)
        (tmp_path / "next").replace(tmp_path / "data")

    lead_to("old")
    paths = [str(tmp_path / "data" / target) for target in ("tls.crt", "tls.key", "ca.crt")]
    server = tls.ServerTls(Tls(*paths))
    with listener(kind, ANY, server) as port:
        assert ASK[kind](port, trusted=made, shown=made)

        # WHEN they become unusable, THEN the old ones stay, and it is said once
        lead_to("broken")
        assert ASK[kind](port, trusted=made, shown=made)
        assert ASK[kind](port, trusted=made, shown=made)
        assert server.reloads == {"refused": 1}
        (said,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
        assert paths[0] in said

        # WHEN they are others, THEN those are used: certificate, key, and who may connect
        lead_to("new")
        eventually(lambda: ASK[kind](port, trusted=others, shown=others), "the new ones are in use")
        assert not ASK[kind](port, trusted=others, shown=made)
        assert not ASK[kind](port, trusted=made, shown=others)
        assert server.reloads == {"refused": 1, "loaded": 1}


def test_files_are_looked_at_no_more_than_once_a_second(made: Certificates, tmp_path: Path) -> None:
    certificate = tmp_path / "tls.crt"
    shutil.copy(made.server, certificate)
    server = tls.ServerTls(Tls(str(certificate), str(made.server_key)))
    first = server.current()
    certificate.touch()
    assert server.current() is first
    eventually(lambda: server.current() is not first, "it is read again")
    assert server.reloads == {"loaded": 1}


def test_it_knows_when_the_certificate_ends(made: Certificates) -> None:
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-enddate", "-in", made.server], capture_output=True, text=True, check=True
    )
    end = ssl.cert_time_to_seconds(shown.stdout.strip().removeprefix("notAfter="))
    assert tls.ServerTls(files(made)).expires_unix_s == end


def expired(made: Certificates, folder: Path) -> Tls:
    shutil.copytree(made.folder, folder / "copy")
    copy = Certificates.__new__(Certificates)
    copy.folder, copy.ca = folder / "copy", folder / "copy" / made.ca.name
    copy.expire()
    return files(copy)


def encrypted(made: Certificates, folder: Path) -> Tls:
    locked = folder / "locked.key"
    command = ["openssl", "pkey", "-in", made.server_key, "-aes128", "-passout", "pass:x", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    return Tls(str(made.server), str(locked))


def folder_as_key(made: Certificates, folder: Path) -> Tls:
    return Tls(str(made.server), str(folder))


def no_authority(made: Certificates, folder: Path) -> Tls:
    (folder / "empty").touch()
    return Tls(str(made.server), str(made.server_key), str(folder / "empty"))


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (
            lambda made, _: Tls("/nowhere.pem", str(made.server_key)),
            "tls.certificate: cannot read /nowhere.pem: No such",
        ),
        (lambda made, _: Tls(str(made.server), "/nowhere.key"), "tls.key: cannot read /nowhere.key: No such"),
        (lambda made, _: Tls(str(made.server), str(made.client_key)), "KEY_VALUES_MISMATCH"),
        (lambda made, _: Tls(str(made.server_key), str(made.server_key)), "is no certificate in PEM"),
        (lambda made, _: Tls(str(made.server), str(made.server_key), "/none"), "tls.client_ca: cannot read /none"),
        (folder_as_key, "Is a directory"),
        (no_authority, "empty has no certificate of an authority"),
        (expired, "certificate has expired"),
        (encrypted, "locked.key is encrypted"),
    ],
)
def test_files_that_cannot_be_used_are_named_at_the_start(
    broken: Callable[[Certificates, Path], Tls], says: str, made: Certificates, tmp_path: Path
) -> None:
    with pytest.raises(CannotError, match=re.escape(says)):
        tls.server(broken(made, tmp_path))


@pytest.mark.parametrize("half", [Tls(certificate="/c.pem"), Tls(key="/k.pem"), Tls(client_ca="/ca.pem")])
def test_half_of_a_configuration_is_refused(half: Tls) -> None:
    with pytest.raises(UsageError, match=r"tls\.(certificate|key) is not set"):
        tls.server(half)


def test_nothing_configured_is_none() -> None:
    assert tls.server(Tls()) is None


def test_a_key_that_everybody_may_read_is_warned_of(
    made: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for mode, warnings in ((0o640, 0), (0o644, 1)):
        key = tmp_path / f"{mode:o}.key"
        shutil.copy(made.server_key, key)
        key.chmod(mode)
        tls.ServerTls(Tls(str(made.server), str(key)))
        assert len(caplog.records) == warnings


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
        ("no.such.host.invalid", False),
    ],
)
def test_loopback_is_told_by_the_address(host: str, is_one: bool) -> None:
    assert tls.is_loopback(host) is is_one


def test_old_protocols_are_refused(made: Certificates) -> None:
    context = tls.ServerTls(files(made)).current().context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_scraper_that_takes_for_ever_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailspan.export.scrape.CONNECTION_S", 0.3)
    with listener("metrics", "127.0.0.1", None) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.settimeout(0.05)

        def is_cut_off() -> bool:
            try:
                slow.send(b"x")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        eventually(is_cut_off, "it is cut off")


def test_what_a_handshake_cost_the_receiver_is_counted(made: Certificates) -> None:
    receiver = OtlpReceiver("", f"{ANY}:0", lambda *_: None, tls=tls.ServerTls(files(made)))
    with closing(receiver):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", receiver.http_port), timeout=20) as plain:
                plain.sendall(b"POST /v1/traces HTTP/1.1\r\n\r\n")
                with suppress(ConnectionError):
                    plain.recv(100)
        eventually(lambda: receiver.refused == {"tls": 3}, "they are counted")
