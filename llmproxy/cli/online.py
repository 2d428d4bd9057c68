"""Whether upstreams answer, and take their keys: each is asked for its list of models, which costs nothing.

It goes the way of every other request: through treq over the engine's connections, with the same timeouts for connecting, the
same certificates and the same HTTP proxy. No key is shown; keys are told apart by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from llmproxy import __version__, faults
from llmproxy.config import Config, Upstream
from llmproxy.config.credential import Family, Place
from llmproxy.http.client import PooledAgent
from llmproxy.http.fields import Fields
from llmproxy.http.interfaces import IAbortableResponse
from llmproxy.transparent import TransparentClient

_PATIENCE = 30.0  # seconds until the headers of a list of models must be here

_PATHS: Mapping[Family, bytes] = {
    Family.OPENAI: b"/v1/models",  # https://developers.openai.com/api/reference/resources/models/methods/list
    Family.ANTHROPIC: b"/v1/models",  # https://platform.claude.com/docs/en/api/models/list
    Family.GEMINI: b"/v1beta/models",  # https://ai.google.dev/api/models
}
# https://learn.microsoft.com/en-us/azure/ai-foundry/openai/api-version-lifecycle: its own resources come before the /v1.
_AZURE, _AZURE_PATH = ".openai.azure.com", b"/openai/v1/models"
# Without one, the API answers 400 before it looks at the key.
_ANTHROPIC_VERSION = (b"anthropic-version", b"2023-06-01")


@attrs.frozen
class Finding:
    """What came of asking an upstream with one of its keys.

    :ivar subject: the upstream, and which of its keys.
    :ivar text: what it came to.
    :ivar failed: whether requests of clients would fail.
    """

    subject: str
    text: str
    failed: bool = False


def ask_all(reactor: Any, config: Config) -> Deferred[list[Finding]]:
    """Ask every upstream of a configuration, all at once.

    :return: fires with what was found, in the order of the configuration; it does not fail for what upstreams do.
    """
    agents = []
    asked = []
    for upstream in config.upstreams:
        ca_files = {upstream.base_url.host: upstream.ca_file} if upstream.ca_file else {}
        agent = PooledAgent(reactor, upstream.limits, ca_files, config.proxy_for)
        agents.append(agent)
        asked += ask(TransparentClient(agent, reactor), reactor, upstream)

    def close(findings: Any) -> Any:
        for agent in agents:
            agent.close()
        return findings

    return gatherResults(asked).addBoth(close)


def ask(client: TransparentClient, clock: IReactorTime, upstream: Upstream) -> list[Deferred[Finding]]:
    """Ask one upstream, once with each of its keys, or once without one where it needs none."""
    return [
        _Question(client, clock, upstream, number, key).ask()
        for number, key in enumerate(upstream.keys or ("",), 1)
    ]


def judge(family: Family, status: int) -> tuple[str, bool]:
    """Say what the status of an answer to such a request tells, and whether requests of clients would fail."""
    # Google answers 400 where others answer 401. https://ai.google.dev/gemini-api/docs/troubleshooting
    if status in (401, 403) or (status == 400 and family is Family.GEMINI):
        return "refuses the key", True
    if 200 <= status < 300:
        return "works", False
    if status in (404, 405, 501):
        return "is reached, but has no list of models to try the key on", False
    if status == 429:
        return "is reached, but over its limits", False
    return "does not answer as it should", True


@attrs.frozen
class _Question:
    """One upstream and one of its keys."""

    client: TransparentClient
    clock: IReactorTime
    upstream: Upstream
    number: int
    key: str = attrs.field(repr=False)

    def ask(self) -> Deferred[Finding]:
        path = _PATHS.get(self.upstream.family)
        if path is None:
            return succeed(self._found("unsupported: no list of models is known for an api of none"))
        if self.upstream.base_url.host.endswith(_AZURE):
            path = _AZURE_PATH
        credential = self.upstream.credential
        if self.key and credential.place is Place.QUERY:
            path += b"?" + credential.parameter(self.key)
        started = self.clock.seconds()
        asked: Deferred[Any] = self.client.request(
            b"GET", self.upstream.base_url.join(path), self._fields(), None
        )
        asked.addTimeout(_PATIENCE, self.clock, lambda _, seconds: None)
        return asked.addCallbacks(self._answered, self._not_answered, callbackArgs=(started,))

    def _fields(self) -> Fields:
        credential = self.upstream.credential
        fields = Fields(
            [
                (b"Host", self.upstream.base_url.netloc),
                (b"Accept", b"application/json"),
                (b"User-Agent", f"llmproxy/{__version__}".encode("ascii")),
                *self.upstream.default_headers,
            ]
        )
        if self.key and credential.place is Place.HEADER:
            fields.addRawHeader(*credential.header(self.key))
        if self.upstream.family is Family.ANTHROPIC and not fields.hasHeader(_ANTHROPIC_VERSION[0]):
            fields.addRawHeader(*_ANTHROPIC_VERSION)
        return fields

    def _answered(self, response: IAbortableResponse | None, started: float) -> Finding:
        if response is None:
            _, message = faults.silent(self.upstream, _PATIENCE)
            return self._found(message, failed=True)
        response.abort()  # nobody reads the list itself
        words, failed = judge(self.upstream.family, response.code)
        took = (self.clock.seconds() - started) * 1000
        return self._found(f"{words} ({response.code} in {took:.0f} ms)", failed)

    def _not_answered(self, failure: Failure) -> Finding:
        explained = faults.explain(self.upstream, failure)
        if explained is None:
            failure.raiseException()
        return self._found(explained[1], failed=True)

    def _found(self, text: str, failed: bool = False) -> Finding:
        of = f"key {self.number} of {len(self.upstream.keys)}" if self.key else "no key"
        return Finding(f"{self.upstream.name}, {of}", text, failed)
