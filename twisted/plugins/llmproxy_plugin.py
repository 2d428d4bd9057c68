from twisted.application.service import ServiceMaker

llmproxy = ServiceMaker(
    "llmproxy",
    "llmproxy.tap",
    "A transparent, streaming reverse proxy for LLM APIs.",
    "llmproxy",
)
