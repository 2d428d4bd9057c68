from __future__ import annotations

import attrs
import pytest

from llmproxy.exchange import AccessLog, Ending, Exchange
from tests.support import log_lines

OPEN = Exchange(
    client="default", upstream="openai", method="POST", path="/openai/v1/chat/completions", started=1.0
)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"status": 200, "sent": 1234, "first_byte": 0.1, "duration": 1.23456, "ending": Ending.COMPLETED},
            "default POST /openai/v1/chat/completions -> openai 200, 1234 bytes in 1.235 s, completed",
        ),
        (
            {"duration": 0.5, "ending": Ending.CLIENT_LEFT},
            "default POST /openai/v1/chat/completions -> openai -, 0 bytes in 0.500 s, client left",
        ),
        (
            {"status": 504, "duration": 600.0, "ending": Ending.UPSTREAM_SILENT},
            "default POST /openai/v1/chat/completions -> openai 504, 0 bytes in 600.000 s, upstream silent",
        ),
        ({}, "default POST /openai/v1/chat/completions -> openai -, 0 bytes in 0.000 s, open"),
    ],
)
def test_the_access_log_has_one_line_for_an_exchange(changes: dict[str, object], line: str) -> None:
    with log_lines() as lines:
        AccessLog()(attrs.evolve(OPEN, **changes))  # type: ignore[arg-type]
    assert lines == [line]


def test_each_ending_has_a_text_of_its_own() -> None:
    assert len({ending.value for ending in Ending}) == len(Ending) == 6
