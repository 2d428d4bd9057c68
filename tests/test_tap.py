from __future__ import annotations

from pathlib import Path

import pytest
from twisted.application.service import IService, IServiceMaker
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError
from zope.interface.verify import verifyObject

from llmproxy import __version__
from llmproxy.config import load
from llmproxy.demo_service import DemoService
from llmproxy.http import reactor as engine_reactor
from llmproxy.service import ProxyService
from llmproxy.tap import Options, makeService
from tests.support import ENVIRON, OPENAI_KEY, TOKEN, client_with


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a process with a good configuration."""
    for name in (
        "PORT",
        "OPENAI_API_KEY_FILE",
        "ANTHROPIC_API_KEY_FILE",
        "PROXY_TOKEN_FILE",
        "ANTHROPIC_VERSION",
        "LLMPROXY_CONFIG",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """When the engine's reactor was asked for, in place of installing it."""
    asked: list[bool] = []
    monkeypatch.setattr(engine_reactor, "install", lambda: asked.append(True))
    return asked


def parse(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(list(arguments))
    return options


@pytest.mark.parametrize(
    ("arguments", "listen"),
    [
        ([], []),
        (["--port", "8080"], ["tcp:8080"]),
        (["--port=8080"], ["tcp:8080"]),
        (["-p", "8080"], ["tcp:8080"]),
        (["--port", "1", "--port", "65535"], ["tcp:1", "tcp:65535"]),
        (["--port", "tcp:33000:interface=127.0.0.1"], ["tcp:33000:interface=127.0.0.1"]),
        (["--port", "unix:/run/llmproxy.sock", "-p", "80"], ["unix:/run/llmproxy.sock", "tcp:80"]),
    ],
)
def test_it_listens_where_port_says(arguments: list[str], listen: list[str]) -> None:
    assert parse(*arguments).listen == listen


def test_without_one_it_listens_where_the_configuration_says_at_each_reload() -> None:
    for arguments, listen in (([], None), (["--port", "81"], ["tcp:81"])):
        service = makeService(parse(*arguments))
        assert isinstance(service, ProxyService)
        assert service._listen == listen


def test_the_environment_says_the_port_where_no_option_does(environ: pytest.MonkeyPatch) -> None:
    environ.setenv("PORT", "8080")
    assert parse().load().listen == ("tcp:8080",)
    assert parse("--port", "81").listen == ["tcp:81"]


def test_it_drains_for_half_a_minute_unless_it_is_told_otherwise() -> None:
    assert parse().drain == 30.0
    assert parse("--drain", "0.5").drain == 0.5


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ("soon", "is not a number of seconds"),
        ("0", "is out of range"),
        ("nan", "is out of range"),
        ("", "is not a"),
    ],
)
def test_a_time_to_drain_that_cannot_be_used_is_refused(seconds: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"^--drain {words}"):
        parse("--drain", seconds)


class TestReactor:
    def test_it_is_asked_for_once_all_options_are_found_good(self, installed: list[bool]) -> None:
        parse("--port", "8080", "--drain", "5", "--access-log")
        assert installed == [True]

    def test_the_demo_asks_for_it_too(self, installed: list[bool]) -> None:
        parse("--demo")
        assert installed == [True]

    @pytest.mark.parametrize(
        "arguments", [["--port", "0"], ["--drain", "0"], ["--colour"], ["extra"], ["--port", "tcp:x"]]
    )
    def test_it_is_not_asked_for_with_a_wrong_option(
        self, installed: list[bool], arguments: list[str]
    ) -> None:
        with pytest.raises(UsageError):
            parse(*arguments)
        assert installed == []

    def test_it_is_not_asked_for_with_a_wrong_configuration(
        self, installed: list[bool], environ: pytest.MonkeyPatch
    ) -> None:
        environ.setenv("PORT", "0")
        for arguments in ([], ["--demo"]):
            with pytest.raises(UsageError):
                parse(*arguments)
        assert installed == []

    @pytest.mark.parametrize("argument", ["--version", "--help"])
    def test_it_is_not_asked_for_where_nothing_is_served(self, installed: list[bool], argument: str) -> None:
        with pytest.raises(SystemExit):
            parse(argument)
        assert installed == []


@pytest.mark.parametrize("port", ["0", "65536", "100000"])
def test_a_port_out_of_range_is_refused(port: str) -> None:
    with pytest.raises(UsageError, match=f"--port is out of range: {port}"):
        parse("--port", port)


@pytest.mark.parametrize("port", ["http", "-1", "", "8080x", "127.0.0.1"])
def test_a_port_that_is_no_number_is_refused(port: str) -> None:
    with pytest.raises(UsageError, match="--port is not a port number"):
        parse("--port", port)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp:http",
        "tcp:",
        "nonsense:80",
        "127.0.0.1:80",
        "tcp:80:color=red",
        "ssl:443:privateKey=/nowhere.pem",
    ],
)
def test_an_endpoint_that_cannot_be_used_is_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="--port is not an endpoint that can be used: ") as caught:
        parse("--port", endpoint)
    assert endpoint in str(caught.value)


def test_a_wrong_configuration_is_refused_with_all_that_is_wrong(environ: pytest.MonkeyPatch) -> None:
    environ.delenv("OPENAI_API_KEY")
    environ.setenv("PROXY_TOKEN", "")
    environ.setenv("PORT", "0")
    with pytest.raises(UsageError) as caught:
        parse("--port", "80")
    for name in ("OPENAI_API_KEY", "PROXY_TOKEN", "PORT"):
        assert f"\n  - {name} " in str(caught.value)
    assert "ANTHROPIC" not in str(caught.value)


def test_an_unknown_option_or_argument_is_refused() -> None:
    for argument in ("--colour", "extra"):
        with pytest.raises(UsageError):
            parse(argument)


def test_version_is_the_proxys_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"llmproxy {__version__}\n"


def test_the_help_names_the_options_and_what_is_required() -> None:
    text = " ".join(str(Options()).split())
    for word in ("--port", "--demo", "--drain", "--access-log", "--config", "--version", *ENVIRON):
        assert word in text


class TestFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "llmproxy.toml"
        file.write_text('listen = [8081, "tcp:8082:interface=127.0.0.1"]')
        return file

    def test_its_listeners_are_used_where_no_port_is_given(self, file: Path) -> None:
        options = parse("--config", str(file))
        assert (options.listen, options.load().listen) == ([], ("tcp:8081", "tcp:8082:interface=127.0.0.1"))
        assert parse("-c", str(file), "--port", "80").listen == ["tcp:80"]

    def test_the_environment_can_name_it(self, file: Path, environ: pytest.MonkeyPatch) -> None:
        environ.setenv("LLMPROXY_CONFIG", str(file))
        assert parse().load().listen[0] == "tcp:8081"
        with pytest.raises(UsageError, match=r"absent\.toml cannot be read"):
            parse("--config", str(file.with_name("absent.toml")))

    @pytest.mark.parametrize("by", ["option", "environment"])
    def test_it_is_found_again_from_another_directory(
        self, file: Path, environ: pytest.MonkeyPatch, by: str
    ) -> None:
        environ.chdir(file.parent)
        if by == "environment":
            environ.setenv("LLMPROXY_CONFIG", file.name)
        options = parse(*(("--config", file.name) if by == "option" else ()))
        environ.chdir("/")
        assert options.load().listen[0] == "tcp:8081"

    def test_it_is_read_again_on_each_load_as_is_the_environment(
        self, file: Path, environ: pytest.MonkeyPatch
    ) -> None:
        options = parse("--config", str(file))
        file.write_text("max_resent_body = 5")
        environ.setenv("PROXY_TOKEN", "a-new-token-of-the-team")
        again = options.load()
        assert (again.max_resent_body, again.clients) == (5, (client_with(b"a-new-token-of-the-team"),))

    def test_a_wrong_one_is_refused(self, file: Path, installed: list[bool]) -> None:
        file.write_text("listen = [0]\ncolour = 1\n")
        with pytest.raises(UsageError, match=r"listen\[0\] is out of range(.|\n)*colour: unknown key"):
            parse("--config", str(file))
        assert installed == []

    def test_the_demo_takes_none(self, file: Path, environ: pytest.MonkeyPatch) -> None:
        with pytest.raises(UsageError, match="--demo"):
            parse("--demo", "--config", str(file))
        environ.setenv("LLMPROXY_CONFIG", "/nowhere")
        assert parse("--demo").listen == ["tcp:33000"]


class TestDemo:
    @pytest.fixture(autouse=True)
    def nothing_set(self, environ: pytest.MonkeyPatch) -> None:
        for name in ENVIRON:
            environ.delenv(name)

    def test_it_needs_no_configuration(self) -> None:
        options = parse("--demo")
        assert options["demo"]
        assert options.listen == ["tcp:33000"]

    def test_it_listens_on_port(self, environ: pytest.MonkeyPatch) -> None:
        environ.setenv("PORT", "8080")
        assert parse("--demo").listen == ["tcp:8080"]
        assert parse("--demo", "--port", "81").listen == ["tcp:81"]

    def test_a_wrong_port_is_refused(self, environ: pytest.MonkeyPatch) -> None:
        environ.setenv("PORT", "x")
        with pytest.raises(UsageError, match="PORT is not a port number"):
            parse("--demo")

    def test_it_makes_the_demo_service(self) -> None:
        service = makeService(parse("--demo", "--port", "81", "--drain", "5"))
        assert isinstance(service, DemoService)
        assert (service._listen, service._drain) == (["tcp:81"], 5.0)
        assert service._books._access_log is not None


def test_it_makes_the_service_that_the_options_ask_for() -> None:
    service = makeService(parse("--port", "8080", "--drain", "5"))
    verifyObject(IService, service)
    assert isinstance(service, ProxyService)
    assert not isinstance(service, DemoService)
    assert (service._listen, service._drain) == (["tcp:8080"], 5.0)
    assert service._load() == load(ENVIRON)
    assert service.name == "llmproxy"


@pytest.mark.parametrize(("arguments", "logged"), [([], False), (["--access-log"], True)])
def test_exchanges_are_logged_only_where_that_is_asked_for(arguments: list[str], logged: bool) -> None:
    service = makeService(parse(*arguments))
    assert isinstance(service, ProxyService)
    assert (service._books._access_log is not None) is logged


def test_a_reload_reads_the_environment_and_its_files_anew(
    environ: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN.decode("ascii"))
    environ.delenv("PROXY_TOKEN")
    environ.setenv("PROXY_TOKEN_FILE", str(file))
    options = parse()
    file.write_text("a-new-token-of-the-team")
    assert options.load().clients == (client_with(b"a-new-token-of-the-team"),)


def test_the_options_show_no_secret() -> None:
    shown = f"{parse()!r} {parse()}"
    assert OPENAI_KEY not in shown
    assert TOKEN.decode("ascii") not in shown


def test_twistd_finds_the_plugin() -> None:
    (maker,) = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "llmproxy"]
    assert maker.options is Options
    assert maker.makeService is makeService
