import datetime as dt
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.retraining.config import NotifyConfig
from pipeline.retraining.notify import Notifier, sign, verify
from pipeline.retraining.state import State

NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
BODY = {"pipeline": "p", "at": "then", "status": "refused", "cause": "macro_f1 0.4 breaks its bound 0.6", "span": 9}


class Receiver:
    """A webhook on loopback that answers with the given statuses, the last one from then on."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests: list[tuple[dict, bytes]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((dict(self.headers), body))
                status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "root")
    yield state
    state.close()


def notifier(now: dt.datetime = NOW, **config) -> Notifier:
    return Notifier(NotifyConfig(**config), lambda: now, pause_s=0.001)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("s3cret\n")
    return path


def test_webhook_gets_a_signed_body(state: State, secret: Path) -> None:
    receiver = Receiver(200)
    state.queue([("refused", BODY)], NOW)
    notifier(webhook=receiver.address, secret_file=secret)(state)
    receiver.close()
    [(headers, body)] = receiver.requests
    assert json.loads(body) == {**BODY, "event": "refused", "id": "p-then-1"}
    assert headers["X-Event"] == "refused"
    assert verify(b"s3cret", headers["X-Timestamp"], body, headers["X-Signature-256"])
    assert not verify(b"other", headers["X-Timestamp"], body, headers["X-Signature-256"])
    assert not verify(b"s3cret", headers["X-Timestamp"], body + b" ", headers["X-Signature-256"])
    assert state.outbox() == []


def test_signature_is_the_documented_one() -> None:
    # printf '100.{}' | openssl dgst -sha256 -hmac key
    assert sign(b"key", "100", b"{}") == ("sha256=b6ae95232f7a6f10ed56c0c2931bda6344efb9e66d09bf79943ca1df746bbddf")


def test_failing_webhook_is_asked_again(state: State, secret: Path) -> None:
    receiver = Receiver(500, 503, 200)
    state.queue([("pushed", BODY)], NOW)
    notifier(webhook=receiver.address, secret_file=secret)(state)
    receiver.close()
    assert len(receiver.requests) == 3
    assert len({body for _, body in receiver.requests}) == 1
    assert state.outbox() == []


@pytest.mark.parametrize("status", [301, 302, 303])
def test_redirect_is_not_followed_for_the_body_would_be_lost(
    state: State, secret: Path, answer_with, caplog, status: int
) -> None:
    target = answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").encode()
    hook = answer_with(b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, target))
    state.queue([("failed", BODY)], NOW)
    notifier(webhook=hook, secret_file=secret)(state)
    assert [failures for *_, failures, _ in state.outbox()] == [1]
    assert f"HTTP status {status}" in caplog.text


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b""])
def test_answer_that_is_no_http_leaves_the_notification_queued(state: State, secret: Path, answer_with, answer) -> None:
    state.queue([("failed", BODY)], NOW)
    notifier(webhook=answer_with(answer), secret_file=secret)(state)
    assert [failures for *_, failures, _ in state.outbox()] == [1]


def test_notification_that_is_not_taken_stays_queued_and_is_given_up_in_the_end(state: State, secret: Path) -> None:
    receiver = Receiver(500)
    state.queue([("pushed", BODY)], NOW)
    for turn in range(2):
        hook = notifier(NOW + turn * dt.timedelta(minutes=5), webhook=receiver.address, secret_file=secret, attempts=2)
        hook(state)
        hook(state)  # too early for another attempt
    receiver.close()
    assert len(receiver.requests) == 6, "two turns of three attempts each"
    assert state.outbox() == []


def test_command_gets_the_body_on_its_standard_input(state: State, tmp_path: Path) -> None:
    code = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_bytes(sys.stdin.buffer.read())"
    state.queue([("failed", BODY)], NOW)
    notifier(command=[sys.executable, "-c", code, str(tmp_path / "got")])(state)
    assert json.loads((tmp_path / "got").read_text()) == {**BODY, "event": "failed", "id": "p-then-1"}
    assert state.outbox() == []


@pytest.mark.parametrize("command", [["/nowhere/program"], [sys.executable, "-c", "raise SystemExit(3)"]])
def test_command_that_fails_leaves_the_notification_queued(state: State, command: list[str]) -> None:
    state.queue([("failed", BODY)], NOW)
    notifier(command=command)(state)
    assert [failures for *_, failures, _ in state.outbox()] == [1]


def test_secret_that_cannot_be_read_is_named_and_nothing_is_sent_unsigned(state: State, secret: Path, caplog) -> None:
    receiver = Receiver(200)
    secret.write_text(" \n")
    state.queue([("failed", BODY)], NOW)
    notifier(webhook=receiver.address, secret_file=secret)(state)
    receiver.close()
    assert receiver.requests == []
    assert "secret is empty" in caplog.text
    assert receiver.address not in caplog.text


def test_event_that_nobody_asked_for_is_not_told(state: State, tmp_path: Path) -> None:
    state.queue([("pushed", BODY), ("failed", BODY)], NOW)
    code = "import sys, pathlib; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read() + b'\\n')"
    notifier(command=[sys.executable, "-c", code, str(tmp_path / "got")], events=["failed"])(state)
    lines = (tmp_path / "got").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["failed"]
    assert state.outbox() == []


def test_no_two_notifications_have_the_same_id(state: State, tmp_path: Path) -> None:
    code = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10))"
    hook = notifier(command=[sys.executable, "-c", code, str(tmp_path / "got")])
    for _ in range(3):
        state.queue([("pushed", BODY)], NOW)
        hook(state)
    ids = [json.loads(line)["id"] for line in (tmp_path / "got").read_text().splitlines()]
    assert ids == ["p-then-1", "p-then-2", "p-then-3"]
