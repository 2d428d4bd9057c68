"""What TLS listeners serve: a certificate, its key and its chain, which can be read again while they are in use.

They are read by Twisted's endpoint strings, into ``CertificateOptions``. Twisted's own transports take such options, native
ones a context of the standard library; :func:`for_twisted` and :func:`for_native` make either, and so find out what OpenSSL
will not serve. Both speak TLS 1.2 and newer, and HTTP/1.1 alone (ALPN, RFC 7301).
"""

from __future__ import annotations

import os
import ssl
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import CertificateOptions, TLSVersion
from zope.interface import implementer

_PROTOCOL = "http/1.1"


@implementer(IOpenSSLServerConnectionCreator)
class ServerCertificate:
    """What a listener serves now, whichever transports carry its connections.

    :ivar context: made by :func:`for_twisted` or :func:`for_native`. Where it is replaced, connections that are made from then
        on get the new one, and those that are up keep theirs.
    """

    def __init__(self, context: Any) -> None:
        self.context = context

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        connection: SSL.Connection = self.context.serverConnectionForTLS(protocol)
        return connection


def read(description: str) -> CertificateOptions | None:
    """Read the files that an endpoint description names; ``None`` for one without TLS.

    :raise Exception: of many kinds, where they cannot be read, hold something else, or the key is another certificate's.
    """
    if not description.startswith("ssl:"):
        return None
    found: list[CertificateOptions] = []

    def listenSSL(port: int, factory: Any, contextFactory: CertificateOptions, **_: Any) -> None:
        found.append(contextFactory)

    # An endpoint tells what it has read only to the reactor that it listens with.
    serverFromString(SimpleNamespace(listenSSL=listenSSL), description).listen(None)
    return found[0]


def for_twisted(options: CertificateOptions) -> CertificateOptions:
    """Make what Twisted's own transports serve.

    :raise OpenSSL.SSL.Error: where OpenSSL refuses the certificate, for example since its key is too short.
    """
    # Options of our own, since an endpoint's `sslmethod` would let older versions in.
    made = CertificateOptions(
        privateKey=options.privateKey,
        certificate=options.certificate,
        extraCertChain=options.extraCertChain,
        dhParameters=options.dhParameters,
        raiseMinimumTo=TLSVersion.TLSv1_2,
        acceptableProtocols=[_PROTOCOL.encode("ascii")],
    )
    made.getContext()  # or it would be made, and what is wrong be found, with the first connection
    return made


def for_native(options: Any) -> ssl.SSLContext:
    """Make what native transports serve.

    ``load_cert_chain`` reads files only, so the PEM goes through one that has no name and exists in memory alone.

    :param options: Twisted's ``CertificateOptions``, with a key and a certificate.
    :raise ssl.SSLError: as above.
    """
    key = options.privateKey.to_cryptography_key()
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for certificate in [options.certificate, *options.extraCertChain]:
        pem += certificate.to_cryptography().public_bytes(Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([_PROTOCOL])
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
