from __future__ import annotations

from ipaddress import ip_network

import pytest

from llmproxy.config import Client
from llmproxy.rights import depend_on_model, missing_for_model, missing_for_network, missing_for_upstream

DIGEST = b"\x01" * 32


def client(
    upstreams: frozenset[str] | None = None,
    models: tuple[str, ...] | None = None,
    deny: tuple[str, ...] = (),
    networks: tuple[str, ...] = (),
) -> Client:
    return Client(
        "alice",
        (DIGEST,),
        upstreams,
        models,
        deny,
        networks=tuple(ip_network(network) for network in networks),
    )


def test_a_client_without_lists_may_do_everything() -> None:
    anyone = client()
    assert missing_for_upstream(anyone, "openai") is None
    assert missing_for_model(anyone, "gpt-5") is None
    assert missing_for_network(anyone, "203.0.113.9") is None
    assert missing_for_network(anyone, None) is None


def test_only_listed_upstreams_may_be_asked() -> None:
    one = client(upstreams=frozenset({"openai"}))
    assert missing_for_upstream(one, "openai") is None
    assert missing_for_upstream(one, "anthropic") == (
        "Client 'alice' may not ask 'anthropic': it is not among the client's 'upstreams'."
    )
    assert missing_for_upstream(client(upstreams=frozenset()), "openai") is not None


@pytest.mark.parametrize(
    ("networks", "host", "allowed"),
    [
        (("10.0.0.0/8",), "10.1.2.3", True),
        (("10.0.0.0/8",), "11.1.2.3", False),
        (("10.0.0.0/8", "192.0.2.7/32"), "192.0.2.7", True),
        (("10.0.0.0/8",), "::ffff:10.1.2.3", True),
        (("10.0.0.0/8",), "::ffff:11.1.2.3", False),
        (("::ffff:0:0/96",), "::ffff:10.1.2.3", True),
        (("2001:db8::/32",), "2001:db8::1", True),
        (("2001:db8::/32",), "2001:db9::1", False),
        (("fe80::/10",), "fe80::1%eth0", True),
        (("10.0.0.0/8",), "2001:db8::1", False),
        (("0.0.0.0/0",), "2001:db8::1", False),
        (("0.0.0.0/0", "::/0"), "not an address", False),
        (("127.0.0.0/8",), None, True),
        (("::1/128",), None, True),
        (("10.0.0.0/8",), None, False),
    ],
)
def test_calls_come_only_from_listed_networks(
    networks: tuple[str, ...], host: str | None, allowed: bool
) -> None:
    assert (missing_for_network(client(networks=networks), host) is None) is allowed


def test_who_calls_from_elsewhere_is_told_from_where() -> None:
    bound = client(networks=("10.0.0.0/8",))
    assert missing_for_network(bound, "192.0.2.1") == (
        "Client 'alice' may not call from 192.0.2.1: it is in none of the client's 'networks'."
    )
    assert "a unix socket" in str(missing_for_network(bound, None))


@pytest.mark.parametrize(
    ("models", "deny", "model", "missing"),
    [
        (("gpt-5",), (), "gpt-5", None),
        (("gpt-5",), (), "gpt-5-mini", "'models'"),
        (("gpt-5",), (), "GPT-5", "'models'"),
        (("gpt-5*", "o3"), (), "gpt-5-mini", None),
        (("gpt-5*", "o3"), (), "o3", None),
        (("gpt-5*", "o3"), (), "o3-pro", "'models'"),
        (("openai/*",), (), "openai/gpt-5", None),
        (("gpt-[45]",), (), "gpt-4", None),
        (("gpt-[45]",), (), "gpt-3", "'models'"),
        (("*",), (), "anything", None),
        ((), (), "gpt-5", "'models'"),
        (("gpt-5*",), ("gpt-5-pro",), "gpt-5-pro", "'deny_models'"),
        (("gpt-5*",), ("gpt-5-pro",), "gpt-5", None),
        (None, ("*-pro", "o*"), "gpt-5-pro", "'deny_models'"),
        (None, ("*-pro", "o*"), "gpt-5", None),
        (("gpt-5",), ("gpt-5",), "gpt-5", "'deny_models'"),
    ],
)
def test_models_are_matched_by_patterns_and_denied_first(
    models: tuple[str, ...] | None, deny: tuple[str, ...], model: str, missing: str | None
) -> None:
    found = missing_for_model(client(models=models, deny=deny), model)
    if missing is None:
        assert found is None
    else:
        assert found is not None
        assert missing in found
        assert repr(model) in found


def test_a_refusal_names_nothing_that_was_not_asked_for() -> None:
    narrow = client(frozenset({"secretive"}), ("internal-*",), ("hidden-*",), ("10.99.0.0/16",))
    for sentence in (
        missing_for_upstream(narrow, "openai"),
        missing_for_model(narrow, "gpt-5"),
        missing_for_model(narrow, "hidden-1"),
        missing_for_network(narrow, "192.0.2.1"),
    ):
        assert sentence is not None
        assert not any(word in sentence for word in ("secretive", "internal", "hidden-*", "10.99"))


def test_the_model_matters_only_where_there_is_a_list() -> None:
    assert not depend_on_model(client())
    assert not depend_on_model(client(upstreams=frozenset(), networks=("::/0",)))
    assert depend_on_model(client(models=()))
    assert depend_on_model(client(models=("*",)))
    assert depend_on_model(client(deny=("o1",)))
