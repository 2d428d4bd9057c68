"""The providers that need no more than their key: where each API begins, how it takes a key, what its usage looks like.

A base URL is what stands before the path that a client sends after this proxy's prefix. Clients bring ``/v1`` themselves: with
``https://api.openai.com`` here they are pointed at ``http://proxy:33000/openai/v1``. So no base URL ends in ``/v1``.

Everything here is only a default: an upstream of one of these names takes from its preset what its own settings leave out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from llmproxy.config.credential import Credential, Family

_BEARER = Credential.parse("bearer")
_NO_KEY = Credential.parse("none")


@attrs.frozen
class Preset:
    """What is known of a provider.

    :ivar name: of the upstream, and so the prefix under which clients find it.
    :ivar base_url: where its API begins; ``None`` where that differs for each customer, who must give it.
    :ivar family: what the usage in its answers looks like.
    :ivar source: the page of the provider's own documentation on which its URL or its credential stand.
    :ivar price_list: the id in ``genai-prices`` of the prices that hold at the ``base_url``; ``None`` where there is none.
    :ivar default_headers: names and values that are added where a client sent none of that name.
    :ivar needs_key: whether the upstream is of no use without a key.
    """

    name: str
    base_url: str | None
    credential: Credential
    family: Family
    source: str
    price_list: str | None = None
    default_headers: tuple[tuple[bytes, bytes], ...] = ()
    needs_key: bool = True


_TABLE = (
    Preset(
        "openai",
        "https://api.openai.com",
        _BEARER,
        Family.OPENAI,
        "https://developers.openai.com/api/reference/overview",
        "openai",
    ),
    # No anthropic-version is added: its versions differ in what a request means, so the client chooses, or the operator does by
    # `headers`. Without one, the API's own answer says so. Newer SDKs of its own send a key as a bearer token; the page names
    # x-api-key for keys.
    Preset(
        "anthropic",
        "https://api.anthropic.com",
        Credential.parse("x-api-key"),
        Family.ANTHROPIC,
        "https://platform.claude.com/docs/en/api/overview",
        "anthropic",
    ),
    # Clients' paths begin with /v1beta (or /v1, /upload/v1beta, /ws/...), which is theirs to choose. The API also takes the key
    # as the query parameter `key`, but what stands in a URL is logged on its way.
    Preset(
        "gemini",
        "https://generativelanguage.googleapis.com",
        Credential.parse("header:x-goog-api-key"),
        Family.GEMINI,
        "https://ai.google.dev/api",
        "google",
    ),
    # Each resource has a host of its own: https://RESOURCE.openai.azure.com. Without /openai at its end: clients for Azure add
    # /openai/deployments/..., and others are pointed at .../azure-openai/openai/v1.
    Preset(
        "azure-openai",
        None,
        Credential.parse("header:api-key"),
        Family.OPENAI,
        "https://learn.microsoft.com/en-us/azure/ai-services/openai/reference",
    ),
    Preset(
        "openrouter",
        "https://openrouter.ai/api",
        _BEARER,
        Family.OPENAI,
        "https://openrouter.ai/docs/api_reference/authentication",
        "openrouter",
    ),
    # Groq's own SDK adds /openai/v1 to its base URL, and needs an upstream with the base URL https://api.groq.com.
    Preset(
        "groq",
        "https://api.groq.com/openai",
        _BEARER,
        Family.OPENAI,
        "https://console.groq.com/docs/openai",
        "groq",
    ),
    Preset(
        "mistral",
        "https://api.mistral.ai",
        _BEARER,
        Family.OPENAI,
        "https://docs.mistral.ai/api",
        "mistral",
    ),
    # Its documentation has clients leave out /v1, and both ways lead to the same API. What stands under /anthropic speaks that
    # one: for its usage to be read, it needs an upstream of its own with `api = "anthropic"`.
    Preset(
        "deepseek",
        "https://api.deepseek.com",
        _BEARER,
        Family.OPENAI,
        "https://api-docs.deepseek.com/",
        "deepseek",
    ),
    Preset(
        "xai",
        "https://api.x.ai",
        _BEARER,
        Family.OPENAI,
        "https://docs.x.ai/developers/rest-api-reference/inference",
        "x-ai",
    ),
    Preset(
        "together",
        "https://api.together.ai",
        _BEARER,
        Family.OPENAI,
        "https://docs.together.ai/docs/inference/openai-compatibility",
        "together",
    ),
    # Fireworks' own SDK adds /inference/v1 to its base URL, and needs an upstream with the base URL https://api.fireworks.ai.
    Preset(
        "fireworks",
        "https://api.fireworks.ai/inference",
        _BEARER,
        Family.OPENAI,
        "https://docs.fireworks.ai/tools-sdks/openai-compatibility",
        "fireworks",
    ),
    # Its own API under /v1 and /v2, whose usage is unlike the others'. What stands under /compatibility/v1 speaks OpenAI's: for
    # its usage to be read, it needs an upstream of its own with `api = "openai"`.
    Preset(
        "cohere",
        "https://api.cohere.com",
        _BEARER,
        Family.NONE,
        "https://docs.cohere.com/reference/chat",
        "cohere",
    ),
    # Responses stand under /v1, Chat Completions at the root: clients of the latter are pointed at .../perplexity.
    Preset(
        "perplexity",
        "https://api.perplexity.ai",
        _BEARER,
        Family.OPENAI,
        "https://docs.perplexity.ai/docs/agent-api/openai-compatibility",
        "perplexity",
    ),
    # The last three run beside this proxy, each on the port that it takes by default, and ask for no key unless they were told
    # to. By address, since `localhost` may come to be ::1, on which not all of them listen. A container has a loopback of its
    # own: from there, they need a base URL.
    Preset(
        "ollama",
        "http://127.0.0.1:11434",
        _NO_KEY,
        Family.OPENAI,
        "https://docs.ollama.com/api/authentication",
        needs_key=False,
    ),
    Preset(
        "vllm",
        "http://127.0.0.1:8000",
        _NO_KEY,
        Family.OPENAI,
        "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html",
        needs_key=False,
    ),
    Preset(
        "lmstudio",
        "http://127.0.0.1:1234",
        _NO_KEY,
        Family.OPENAI,
        "https://lmstudio.ai/docs/api/openai-api",
        needs_key=False,
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _TABLE})
