"""The Anthropic half of the demo upstream: its paths, its key, its models and the shape of its errors."""

from __future__ import annotations

from twisted.web.http_headers import Headers

from llmproxy.demo import messages
from llmproxy.demo.api import Answer, Api, ApiError, Call
from llmproxy.demo.fields import BadField, BadJson, Json

ANTHROPIC_KEY = "demo-anthropic-key"
"""The key that the Anthropic half asks for. No secret: it opens nothing but the demo."""

MODELS = {"demo-large": "Demo Large", "demo-small": "Demo Small"}
"""The models that are listed, id and name. A request may name any other: the answer is the same."""


class Anthropic(Api):
    """Answers as https://api.anthropic.com does, to what the demo knows."""

    request_id_header = "request-id"

    def authorize(self, headers: Headers) -> None:
        """Require `x-api-key: ANTHROPIC_KEY`, once."""
        given = headers.getRawHeaders("x-api-key")
        if given is None:
            raise ApiError(401, "authentication_error", "x-api-key header is required")
        if given != [ANTHROPIC_KEY]:
            raise ApiError(401, "authentication_error", "invalid x-api-key")

    def answer(self, call: Call) -> Answer:
        """Answer `call`."""
        match call.method, call.path:
            case "POST", ("v1", "messages"):
                _require_version(call.headers)
                return messages.answer(call.body(), call.token)
            case "POST", ("v1", "messages", "count_tokens"):
                _require_version(call.headers)
                return messages.count_tokens(call.body())
            case "GET", ("v1", "models"):
                names = list(MODELS)
                return {
                    "data": [_model(name) for name in names],
                    "has_more": False,
                    "first_id": names[0],
                    "last_id": names[-1],
                }
            case "GET", ("v1", "models", name):
                if name not in MODELS:
                    raise ApiError(404, "not_found_error", f"model: {name}")
                return _model(name)
        raise ApiError(404, "not_found_error", "Not found")

    def explain(self, problem: BadJson | BadField) -> ApiError:
        """Word a bad request body."""
        if isinstance(problem, BadJson):
            return _invalid(f"The request body is not valid JSON: {problem.reason}")
        if problem.expected is None:
            return _invalid(f"{problem.name}: Field required")
        return _invalid(f"{problem.name}: Input should be {problem.expected}")

    def error_body(self, error: ApiError, request_id: str) -> Json:
        """Return Anthropic's error object."""
        return {
            "type": "error",
            "error": {"type": error.type, "message": error.message},
            "request_id": request_id,
        }


def _invalid(message: str) -> ApiError:
    return ApiError(400, "invalid_request_error", message)


def _require_version(headers: Headers) -> None:
    if not headers.hasHeader("anthropic-version"):
        raise _invalid("anthropic-version: header is required")


def _model(name: str) -> Json:
    return {
        "type": "model",
        "id": name,
        "display_name": MODELS[name],
        "created_at": "2025-01-01T00:00:00Z",
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
        "capabilities": None,
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }
