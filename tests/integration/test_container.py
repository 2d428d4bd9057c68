"""The image, as far as it can be checked without a container engine.

The Dockerfile's own commands are run, with its paths moved below a temporary directory. Two things differ from a real build:
pip gets no network, so the dependencies are those of the Python that runs the tests; and nothing is isolated.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import attrs
import pytest

from llmproxy.config import load
from tests.support import ENVIRON

CHECKOUT = Path(__file__).parents[2]
# An offline pip: the requirements are on PYTHONPATH instead.
PIP = f"""#!/bin/sh
exec {sys.executable} -m pip --disable-pip-version-check --quiet "$@" --no-index --no-deps --no-build-isolation
"""


def instructions() -> Iterator[tuple[str, str]]:
    """The Dockerfile's instructions, in order: the word and what follows it on its logical line."""
    lines = [line for line in (CHECKOUT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


def last(word: str) -> str:
    return [rest for found, rest in instructions() if found == word][-1]


@attrs.define
class Image:
    """What running the Dockerfile left behind."""

    root: Path
    environ: dict[str, str]
    working_directory: Path = attrs.field(default=attrs.Factory(lambda self: self.root, takes_self=True))

    def moved(self, text: str) -> str:
        """Put the paths that the Dockerfile uses below the root."""
        return re.sub(r"(?<![\w./])/(dist|opt|src)\b", rf"{self.root}/\1", text)

    def run(self, command: str) -> None:
        subprocess.run(
            command, shell=True, check=True, cwd=self.working_directory, env=self.environ, timeout=60
        )

    def copy(self, arguments: str) -> None:
        if "--from=" in arguments:  # the stages share one root here
            return
        *sources, destination = arguments.split()
        for source in sources:
            if (CHECKOUT / source).is_dir():
                unwanted = shutil.ignore_patterns("__pycache__", "dropin.cache")
                shutil.copytree(CHECKOUT / source, self.working_directory / destination, ignore=unwanted)
            else:
                shutil.copy(CHECKOUT / source, self.working_directory / destination)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    tools = tmp_path_factory.mktemp("tools")
    (tools / "pip").write_text(PIP)
    (tools / "pip").chmod(0o755)
    (tools / "python").symlink_to(sys.executable)
    requirements = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    path = os.pathsep.join((str(tools), str(Path(sys.executable).parent), os.defpath))
    built = Image(
        tmp_path_factory.mktemp("image"), {"PATH": path, "PYTHONPATH": os.pathsep.join(requirements)}
    )
    for word, rest in instructions():
        moved = built.moved(rest)
        if word == "RUN":
            built.run(moved)
        elif word == "COPY":
            built.copy(moved)
        elif word == "WORKDIR":
            built.working_directory = Path(moved)
            built.working_directory.mkdir(parents=True, exist_ok=True)
        elif word == "FROM":
            built.working_directory = built.root
        elif word == "ENV":
            name, _, value = moved.partition("=")
            built.environ[name] = value.replace("$PATH", built.environ["PATH"])
    return built


def is_healthy(port: int, **environ: str) -> bool:
    """Run the image's health check with this machine's Python."""
    _, _, command = last("HEALTHCHECK").partition("CMD")
    python, *arguments = json.loads(command)
    assert python == "python"
    checked = subprocess.run(
        [sys.executable, *arguments], env={"PORT": str(port)} | environ, stderr=subprocess.DEVNULL, timeout=30
    )
    return checked.returncode == 0


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as served:
        thread = Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def test_the_health_check_passes_when_healthz_answers(server: HTTPServer) -> None:
    assert is_healthy(server.server_port)


def test_the_health_check_asks_no_proxy_that_the_environment_names(server: HTTPServer) -> None:
    nobody = "http://127.0.0.1:1"
    assert is_healthy(server.server_port, http_proxy=nobody, HTTP_PROXY=nobody, all_proxy=nobody)


def test_the_health_check_fails_on_an_error_status(server: HTTPServer) -> None:
    assert server.RequestHandlerClass is not None
    server.RequestHandlerClass.do_GET = lambda handler: handler.send_error(503)  # type: ignore[attr-defined]
    assert not is_healthy(server.server_port)


def test_the_health_check_fails_when_nothing_listens() -> None:
    assert not is_healthy(1)


def test_the_plugin_cache_is_newer_than_the_plugin_in_an_image_that_keeps_whole_seconds(image: Image) -> None:
    (plugins,) = image.root.glob("opt/llmproxy/lib/python*/site-packages/twisted/plugins")
    baked = (plugins / "dropin.cache").stat().st_mtime
    assert baked - (plugins / "llmproxy_plugin.py").stat().st_mtime >= 1


def test_the_image_serves_is_healthy_writes_no_file_and_ends_at_sigterm(image: Image, tmp_path: Path) -> None:
    program, *arguments = json.loads(last("ENTRYPOINT"))
    assert program == "twistd"
    # Twisted is not in the image's venv but on PYTHONPATH, so its script is not there either.
    script = "import sys; from twisted.scripts.twistd import run; sys.exit(run())"
    python = image.root / "opt/llmproxy/bin/python"
    process = subprocess.Popen(
        [python, "-c", script, *arguments, "--demo", "--port", "tcp:0:interface=127.0.0.1"],
        cwd=tmp_path,
        env=image.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process, process.stdout:
        log = ""
        try:
            while not (listening := re.search(r"listens on 127\.0\.0\.1:(\d+)", log)):
                line = process.stdout.readline()
                assert line, f"twistd ended: {log}"
                log += line
            healthy = is_healthy(int(listening[1]))
            written = list(tmp_path.iterdir())
        finally:
            process.send_signal(signal.SIGTERM)
            log += process.stdout.read()
    assert healthy
    assert written == []
    assert process.returncode == 0, log
    assert "plugin cache" not in log


def test_a_ledger_is_kept_only_where_the_run_asks_for_one(tmp_path: Path) -> None:
    environ = ENVIRON | dict(rest.split("=", 1) for word, rest in instructions() if word == "ENV")
    secret = tmp_path / "ledger"
    secret.write_text("postgresql://llmproxy:hunter2@db.example/llmproxy\n")
    asked = {"LLMPROXY_LEDGER_FILE": str(secret)}
    assert load(environ).accounting.ledger == "none"
    assert load(environ | asked).accounting.ledger == secret.read_text().strip()


def test_the_user_is_a_number_and_not_root() -> None:
    user, group = map(int, last("USER").split(":"))
    assert user > 0
    assert group > 0


def in_build_context(path: str) -> bool:
    """Whether .dockerignore lets a path into the context: the last line that matches it, or a directory above, decides."""
    included = True
    above = [str(parent) for parent in (Path(path), *Path(path).parents) if parent != Path()]
    for line in (CHECKOUT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            names = [Path(parent).name for parent in above] if pattern.startswith("**/") else above
            if any(fnmatch(name, pattern.removeprefix("**/")) for name in names):
                included = line.startswith("!")
    return included


def test_what_the_dockerfile_copies_is_in_the_build_context() -> None:
    copied = [
        shlex.split(rest)[:-1] for word, rest in instructions() if word == "COPY" and "--from=" not in rest
    ]
    assert {"setup.cfg", "README.md", "LICENSE", "llmproxy", "twisted"} <= {
        name for names in copied for name in names
    }
    assert all((CHECKOUT / name).exists() and in_build_context(name) for names in copied for name in names)
    assert in_build_context("llmproxy/http/server.py")


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".env",
        "secrets/proxy_token",
        "tests/conftest.py",
        "twisted/plugins/dropin.cache",
    ],
)
def test_no_secret_and_no_litter_is_in_the_build_context(path: str) -> None:
    assert not in_build_context(path)
