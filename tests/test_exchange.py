from __future__ import annotations

from llmproxy.exchange import Ending


def test_each_ending_has_a_text_of_its_own() -> None:
    assert len({ending.value for ending in Ending}) == len(Ending) == 6
