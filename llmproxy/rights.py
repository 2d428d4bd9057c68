"""What a client may do: where it may call from, which upstreams it may ask, and for which models.

Each function returns ``None``, or the sentence that tells the client which of its rights is missing: it names the right and
what was asked for, and nothing else of the configuration. Who a client is, and until when, is decided by
:mod:`llmproxy.credentials`. Pure: no reactor, no I/O.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address

from llmproxy.config import Client

# A unix socket is reached from this machine alone, so its peers are where the loopback addresses are.
_LOOPBACK: tuple[IPv4Address | IPv6Address, ...] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


def depend_on_place(client: Client) -> bool:
    """Tell whether a client's rights depend on where it calls from, or whom it asks."""
    return client.upstreams is not None or bool(client.networks)


def missing_for_network(client: Client, host: str | None) -> str | None:
    """Tell which right is missing to call from somewhere.

    :param host: the address of the client's end of the connection; ``None`` for a unix socket, which counts as loopback.
    """
    if not client.networks:
        return None
    addresses = _LOOPBACK if host is None else _addresses(host)
    if any(address in network for network in client.networks for address in addresses):
        return None
    where = "a unix socket" if host is None else host
    return f"Client {client.name!r} may not call from {where}: it is in none of the client's 'networks'."


def missing_for_upstream(client: Client, upstream: str) -> str | None:
    """Tell which right is missing to ask an upstream, given by its name."""
    if client.upstreams is None or upstream in client.upstreams:
        return None
    return f"Client {client.name!r} may not ask {upstream!r}: it is not among the client's 'upstreams'."


def depend_on_model(client: Client) -> bool:
    """Tell whether a client's rights depend on the model, so that it must be read from each of its requests."""
    return client.models is not None or bool(client.deny_models)


def missing_for_model(client: Client, model: str) -> str | None:
    """Tell which right is missing to ask for a model.

    Names are compared as they were sent, case and all. So ``models`` is the list to rely on: a name that it does not have in
    mind is refused, while ``deny_models`` lets through what the upstream knows as another name for the same model.

    :param model: as :mod:`llmproxy.asked_model` read it.
    """
    if any(fnmatchcase(model, pattern) for pattern in client.deny_models):
        return f"Client {client.name!r} may not ask for model {model!r}: the client's 'deny_models' has it."
    if client.models is None or any(fnmatchcase(model, pattern) for pattern in client.models):
        return None
    return f"Client {client.name!r} may not ask for model {model!r}: it is not among the client's 'models'."


def _addresses(host: str) -> tuple[IPv4Address | IPv6Address, ...]:
    """All that an address is: on a dual-stack socket, an IPv4 client has an IPv4-mapped one (RFC 4291 section 2.5.5.2)."""
    try:
        address = ip_address(host)
    except ValueError:
        return ()
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return (address, address.ipv4_mapped)
    return (address,)
