"""A real twistd with a configuration file, and clients with rights of their own: the official SDKs, a browser, raw sockets.

The upstreams `openai` and `anthropic` are a demo; `scripted` is in a test's hands, and has two keys.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types import MessageParam
from openai.types.chat import ChatCompletionMessageParam

from tests.integration.conftest import Background, Demo
from tests.integration.process import FOREGROUND, LOOPBACK, Twistd, eventually
from tests.integration.upstream import Upstream
from tests.integration.wire import LAST_CHUNK, Body, Message, Wire, chunked, connect, message

TIMEOUT = 20.0  # seconds; no answer of the demo takes a tenth of it

ALICE, BOB = "llmp_alice-7a10c2e5", "llmp_bob-5f93d1b8"
FIRST, SECOND = "sk-first-2b771c", "sk-second-90aa4e"
PAGE = b"https://chat.example"

MAY_USE_ALL = ""
MAY_USE_LITTLE = 'upstreams = ["openai", "anthropic"]\nmodels = ["demo-small"]'
CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Good morning"}]
LONG_CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "na\u00efve " * 200_000}]
MESSAGES: list[MessageParam] = [{"role": "user", "content": "Good morning"}]

COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}
        ],
    }
).encode()
LIMITED = b'{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}'


def answer(line: bytes, *headers: bytes, body: bytes) -> bytes:
    """An answer after which the upstream keeps no connection, so that each request comes on one of its own."""
    length = b"Content-Length: %d" % len(body)
    return message(line, *headers, b"Content-Type: application/json", b"Connection: close", length, body=body)


OK = answer(b"HTTP/1.1 200 OK", body=COMPLETION)


class Team:
    """A proxy whose file a test rewrites, and what its clients have."""

    def __init__(self, folder: Path, demo: Demo) -> None:
        self.scripted = Upstream()
        self._file = folder / "llmproxy.toml"
        self._demo = demo
        self._reloads = 0
        self._wires: list[Wire] = []
        self.write(alice=MAY_USE_ALL, bob=MAY_USE_LITTLE)
        keys = {"DEMO_KEY": demo.token, "FIRST_KEY": FIRST, "SECOND_KEY": SECOND}
        arguments = (*FOREGROUND, "--config", str(self._file), *LOOPBACK)
        self.twistd = Twistd(*arguments, settings=keys, cwd=folder)

    @property
    def processes(self) -> list[Twistd]:
        return [self.twistd]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.twistd.port}"

    def write(self, **clients: str) -> None:
        """Write the file, with the rights of each client."""
        tokens = {"alice": ALICE, "bob": BOB}
        tables = [
            f'[clients.{name}]\ntoken_sha256 = "{hashlib.sha256(tokens[name].encode()).hexdigest()}"\n{rights}\n'
            for name, rights in clients.items()
        ]
        self._file.write_text(
            f'cors_origins = ["{PAGE.decode()}"]\n'
            f'[upstreams.openai]\nbase_url = "{self._demo.url}/openai"\napi_key_env = "DEMO_KEY"\n'
            f'[upstreams.anthropic]\nbase_url = "{self._demo.url}/anthropic"\napi_key_env = "DEMO_KEY"\n'
            f'[upstreams.scripted]\nbase_url = "http://127.0.0.1:{self.scripted.port}"\napi = "openai"\n'
            'credential = "bearer"\napi_key_env = ["FIRST_KEY", "SECOND_KEY"]\n' + "".join(tables)
        )

    def reload(self) -> None:
        """Have the file read again, and wait until it is."""
        self._reloads += 1
        self.twistd.send_signal(signal.SIGHUP)
        eventually(lambda: self.twistd.log.count("Reloaded the configuration") == self._reloads, "reloaded")

    def connect(self) -> Wire:
        wire = connect(self.twistd.port)
        self._wires.append(wire)
        return wire

    def ask(
        self,
        line: bytes,
        *headers: bytes,
        token: str | None = None,
        body: bytes = b"",
        wire: Wire | None = None,
    ) -> Wire:
        """Send a request on a connection, by default a new one."""
        wire = wire or self.connect()
        credential = () if token is None else (b"Authorization: Bearer " + token.encode(),)
        framing = (b"Content-Length: %d" % len(body),) if body else ()
        host = b"Host: proxy.example"
        wire.send(message(line + b" HTTP/1.1", host, *credential, *framing, *headers, body=body))
        return wire

    def openai(self, token: str, upstream: str = "openai") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/{upstream}/v1", api_key=token, max_retries=0, timeout=TIMEOUT
        )

    def anthropic(self, token: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(
            base_url=f"{self.url}/anthropic", api_key=token, max_retries=0, timeout=TIMEOUT
        )

    def stop(self) -> None:
        """End it; its log must tell of no secret and of no fault of its own."""
        for wire in self._wires:
            wire.close()
        self.twistd.stop()
        self.scripted.close()
        secrets = (ALICE, BOB, FIRST, SECOND, self._demo.token)
        told = [word for word in (*secrets, "Traceback", "Unhandled") if word in self.twistd.log]
        assert not told, self.twistd.log


@pytest.fixture(autouse=True)
def _direct_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def shared_team(tmp_path_factory: pytest.TempPathFactory, demo: Demo) -> Iterator[Team]:
    """A team whose file no test rewrites."""
    made = Team(tmp_path_factory.mktemp("team"), demo)
    try:
        made.twistd.started()
        yield made
    finally:
        made.stop()


@pytest.fixture
def team(tmp_path: Path, demo: Demo) -> Iterator[Team]:
    made = Team(tmp_path, demo)
    try:
        made.twistd.started()
        yield made
    finally:
        made.stop()


def refusal(error: Any) -> str:
    """The sentence of a refusal, from the shape that all of the proxy's own errors have."""
    content = error.response.json()
    assert set(content) == {"error", "message"}
    assert content["error"] == "forbidden"
    sentence: str = content["message"]
    return sentence


class TestOpenAI:
    @pytest.mark.parametrize("messages", [CHAT, LONG_CHAT], ids=["short", "long"])
    def test_a_listed_model_is_served(
        self, shared_team: Team, messages: list[ChatCompletionMessageParam]
    ) -> None:
        with shared_team.openai(BOB) as client:
            completion = client.chat.completions.create(
                model="demo-small", messages=messages, max_completion_tokens=20
            )
        assert completion.model == "demo-small"
        assert completion.choices[0].message.content

    def test_a_listed_model_streams(self, shared_team: Team) -> None:
        with (
            shared_team.openai(BOB) as client,
            client.chat.completions.create(model="demo-small", messages=CHAT, stream=True) as stream,
        ):
            chunks = list(stream)
        assert "Good morning" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("messages", [CHAT, LONG_CHAT], ids=["short", "long"])
    def test_another_is_refused_by_name(
        self, shared_team: Team, stream: bool, messages: list[ChatCompletionMessageParam]
    ) -> None:
        with shared_team.openai(BOB) as client, pytest.raises(openai.PermissionDeniedError) as caught:
            client.chat.completions.create(model="demo-large", messages=messages, stream=stream)
        assert refusal(caught.value) == (
            "Client 'bob' may not ask for model 'demo-large': it is not among the client's 'models'."
        )

    def test_another_serves_who_may_use_all(self, shared_team: Team) -> None:
        with shared_team.openai(ALICE) as client:
            assert client.chat.completions.create(model="demo-large", messages=CHAT).model == "demo-large"

    @pytest.mark.parametrize("token", [ALICE, BOB])
    def test_the_list_of_models_is_the_upstreams(self, shared_team: Team, token: str) -> None:
        with shared_team.openai(token) as client:
            assert {"demo-small", "demo-large"} <= {model.id for model in client.models.list()}

    def test_an_upstream_that_is_not_listed_is_refused_by_name(self, shared_team: Team) -> None:
        with (
            shared_team.openai(BOB, "scripted") as client,
            pytest.raises(openai.PermissionDeniedError) as caught,
        ):
            client.models.list()
        assert refusal(caught.value) == (
            "Client 'bob' may not ask 'scripted': it is not among the client's 'upstreams'."
        )

    def test_an_unknown_token_is_refused(self, shared_team: Team) -> None:
        with shared_team.openai("llmp_nobody") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()


class TestAnthropic:
    def test_a_listed_model_is_served(self, shared_team: Team) -> None:
        with shared_team.anthropic(BOB) as client:
            made = client.messages.create(model="demo-small", max_tokens=99, messages=MESSAGES)
        assert made.model == "demo-small"

    def test_a_listed_model_streams(self, shared_team: Team) -> None:
        with (
            shared_team.anthropic(BOB) as client,
            client.messages.stream(model="demo-small", max_tokens=99, messages=MESSAGES) as stream,
        ):
            assert "Good morning" in "".join(stream.text_stream)

    def test_another_is_refused_by_name(self, shared_team: Team) -> None:
        with shared_team.anthropic(BOB) as client:
            with pytest.raises(anthropic.PermissionDeniedError) as caught:
                client.messages.create(model="demo-large", max_tokens=99, messages=MESSAGES)
            assert "'demo-large'" in refusal(caught.value)
            with (
                pytest.raises(anthropic.PermissionDeniedError),
                client.messages.stream(model="demo-large", max_tokens=99, messages=MESSAGES),
            ):
                pass
            with pytest.raises(anthropic.PermissionDeniedError):
                client.messages.count_tokens(model="demo-large", messages=MESSAGES)

    def test_the_list_of_models_is_the_upstreams(self, shared_team: Team) -> None:
        with shared_team.anthropic(BOB) as client:
            assert {"demo-small", "demo-large"} <= {model.id for model in client.models.list()}


class TestRevoked:
    def test_a_token_stops_at_once_and_its_stream_goes_on(self, team: Team) -> None:
        streaming = team.ask(b"GET /scripted/v1/events", token=ALICE)
        upstream, _ = team.scripted.receive()
        upstream.send(message(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", body=chunked(b"before ")))
        body = Body(streaming, streaming.head())
        assert body.exactly(7) == b"before "
        idle = team.ask(b"GET /openai/v1/models", token=ALICE)
        assert idle.response().head.status == 200

        team.write(bob=MAY_USE_LITTLE)
        team.reload()

        for wire in (None, idle):
            refused = team.ask(b"GET /openai/v1/models", token=ALICE, wire=wire).response()
            assert (refused.head.status, refused.json) == (401, {"error": "unauthorized"})
        with team.openai(ALICE) as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with team.openai(BOB) as client:
            assert list(client.models.list())
        upstream.send(chunked(b"after") + LAST_CHUNK)
        assert body.rest() == b"after"

    def test_rights_that_were_taken_count_for_the_next_request(self, team: Team) -> None:
        with team.openai(BOB) as client:
            client.chat.completions.create(model="demo-small", messages=CHAT)
            team.write(alice=MAY_USE_ALL, bob='models = ["demo-large"]')
            team.reload()
            with pytest.raises(openai.PermissionDeniedError):
                client.chat.completions.create(model="demo-small", messages=CHAT)
            client.chat.completions.create(model="demo-large", messages=CHAT)

    def test_a_wrong_file_revokes_nothing(self, team: Team) -> None:
        team.write(alice="modles = []")
        team.twistd.send_signal(signal.SIGHUP)
        team.twistd.wait_for("clients.alice.modles")
        for token in (ALICE, BOB):
            with team.openai(token) as client:
                assert list(client.models.list())


def key_of(request: Message) -> str:
    (value,) = request.head.values(b"authorization")
    return value.decode().removeprefix("Bearer ")


class TestKeys:
    def chat(self, team: Team) -> Any:
        with team.openai(ALICE, "scripted") as client:
            return client.chat.completions.create(model="m", messages=CHAT)

    def test_one_that_is_limited_rests_and_the_other_serves(self, team: Team, background: Background) -> None:
        asking = background(self.chat, team)
        upstream, first = team.scripted.receive()
        upstream.send(answer(b"HTTP/1.1 429 Too Many Requests", b"Retry-After: 60", body=LIMITED))
        upstream, second = team.scripted.receive()
        upstream.send(OK)
        assert asking.result().choices[0].message.content == "hello"
        assert (key_of(first), key_of(second)) == (FIRST, SECOND)
        assert first.body == second.body != b""
        team.twistd.wait_for("refused key 1 with 429; it rests for 60.0 s")

        team.reload()
        for _ in range(2):
            asking = background(self.chat, team)
            upstream, request = team.scripted.receive()
            upstream.send(OK)
            asking.result()
            assert key_of(request) == SECOND

    def test_where_both_are_the_upstreams_own_answer_passes(self, team: Team, background: Background) -> None:
        asking = background(self.chat, team)
        for number in (b"1", b"2"):
            upstream, _ = team.scripted.receive()
            retry = b"Retry-After: " + number
            upstream.send(answer(b"HTTP/1.1 429 Too Many Requests", retry, body=LIMITED))
        with pytest.raises(openai.RateLimitError) as caught:
            asking.result()
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.response.headers["retry-after"] == "2"
        assert caught.value.response.content == LIMITED

    def test_an_upload_of_half_a_megabyte_is_sent_again(self, team: Team) -> None:
        body = bytes(range(256)) * 2048
        client = team.ask(b"POST /scripted/v1/files", token=ALICE, body=body)
        upstream, _ = team.scripted.receive()
        upstream.send(answer(b"HTTP/1.1 401 Unauthorized", body=LIMITED))
        upstream, again = team.scripted.receive()
        upstream.send(OK)
        assert client.response().head.status == 200
        assert (again.body == body, key_of(again)) == (True, SECOND)

    def test_one_over_the_bound_is_not(self, team: Team) -> None:
        body = bytes(range(256)) * 4097
        client = team.ask(b"POST /scripted/v1/files", token=ALICE, body=body)
        upstream, _ = team.scripted.receive()
        upstream.send(answer(b"HTTP/1.1 401 Unauthorized", body=LIMITED))
        response = client.response()
        assert (response.head.status, response.body) == (401, LIMITED)
        assert team.scripted.waiting() == 0


class TestBrowser:
    def test_a_page_asks_first_and_reads_what_it_is_answered(self, shared_team: Team) -> None:
        origin = b"Origin: " + PAGE
        wire = shared_team.ask(
            b"OPTIONS /openai/v1/chat/completions",
            origin,
            b"Access-Control-Request-Method: POST",
            b"Access-Control-Request-Headers: authorization,content-type,x-stainless-lang",
        )
        preflight = wire.response(b"OPTIONS").head
        assert preflight.status == 204
        assert preflight.values(b"access-control-allow-origin") == [PAGE]
        assert b"POST" in preflight.values(b"access-control-allow-methods")[0]
        assert preflight.values(b"access-control-allow-headers") == [
            b"authorization,content-type,x-stainless-lang"
        ]

        body = json.dumps({"model": "demo-small", "messages": CHAT, "stream": True}).encode()
        json_type = b"Content-Type: application/json"
        line = b"POST /openai/v1/chat/completions"
        for token, status in ((BOB, 200), (None, 401)):
            response = shared_team.ask(line, origin, json_type, token=token, body=body, wire=wire).response(
                b"POST"
            )
            assert response.head.status == status
            assert response.head.values(b"access-control-allow-origin") == [PAGE]
            assert response.head.values(b"vary")[-1] == b"Origin"

    def test_a_page_from_elsewhere_is_told_nothing(self, shared_team: Team) -> None:
        wire = shared_team.ask(
            b"OPTIONS /openai/v1/models",
            b"Origin: https://evil.example",
            b"Access-Control-Request-Method: GET",
        )
        head = wire.response(b"OPTIONS").head
        assert head.status == 401
        assert head.values(b"access-control-allow-origin") == []
