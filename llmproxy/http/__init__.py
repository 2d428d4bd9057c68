"""HTTP/1.1 itself, beneath Twisted's own interfaces: the server side under ``IRequest``, the client side under ``IAgent``.

Nothing above knows what lies beneath; what it may rely on beyond Twisted's interfaces stands in
:mod:`llmproxy.http.interfaces`.
"""
