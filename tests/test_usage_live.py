from __future__ import annotations

from functools import partial
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.credential import Family
from llmproxy.usage import Reading, Usage, is_live, tap_for_socket
from llmproxy.usage.live import LiveMessages
from llmproxy.usage.model import unread
from tests.test_frames import Deflated, frame
from tests.usage_support import WatchedSocket, dumped, readings_of

PATH = b"/gemini/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
TEXT, BINARY, CONTINUATION, CLOSE = 1, 2, 0, 8

SETUP: dict[str, Any] = {"setupComplete": {}}
HEARD = {"serverContent": {"inputTranscription": {"text": "Hello."}}}
SOUND = {
    "serverContent": {
        "modelTurn": {"parts": [{"inlineData": {"mimeType": "audio/pcm;rate=24000", "data": "AAAA"}}]}
    }
}
SAID = {"serverContent": {"outputTranscription": {"text": "Hi."}}}
GENERATED = {"serverContent": {"generationComplete": True}}
INTERRUPTED = {"serverContent": {"interrupted": True}}
TOOL_CALL = {"toolCall": {"functionCalls": [{"id": "fc_1", "name": "look_up", "args": {}}]}}
RESUMABLE = {"sessionResumptionUpdate": {"newHandle": "handle", "resumable": True}}


def details(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": name.upper(), "tokenCount": number} for name, number in counts.items()]


COUNTS = {
    "promptTokenCount": 100,
    "responseTokenCount": 30,
    "totalTokenCount": 130,
    "promptTokensDetails": details(text=40, audio=60),
    "responseTokensDetails": details(audio=30),
}
TURN = Usage(input_tokens=100, output_tokens=30, input_audio_tokens=60, output_audio_tokens=30)
PROMPT = {"promptTokenCount": 100, "totalTokenCount": 100, "promptTokensDetails": details(text=40, audio=60)}


def with_usage(message: dict[str, Any], counts: dict[str, Any] | None = None) -> dict[str, Any]:
    return {**message, "usageMetadata": COUNTS if counts is None else counts}


def done(counts: dict[str, Any] | None = None, **content: Any) -> dict[str, Any]:
    """The end of a turn; without usage where the counts are empty."""
    message = {"serverContent": {"turnComplete": True, **content}}
    return message if counts == {} else with_usage(message, counts)


def told_of(prompt: int, response: int = 0, **more: int) -> dict[str, int]:
    answer = {"responseTokenCount": response} if response else {}
    return {"promptTokenCount": prompt, **answer, "totalTokenCount": prompt + response, **more}


Session = partial(WatchedSocket, LiveMessages)
told = partial(readings_of, LiveMessages)


def only(*messages: dict[str, Any]) -> Reading:
    """The reading of the one turn."""
    (reading,) = told(*messages)
    return reading


def used(*messages: dict[str, Any]) -> Usage | None:
    """What the one turn used, which must be over when the last message has come."""
    session = Session(*messages)
    (reading,) = session.readings
    assert reading.outcome == "complete"
    session.close()
    assert len(session.readings) == 1
    return reading.usage


WHOLE = Reading(
    model=None,
    response_id=None,
    stop_reason=None,
    service_tier=None,
    usage=TURN,
    source="reported",
    outcome="complete",
)


def test_each_turn_is_told_when_it_ends() -> None:
    session = Session(SETUP, RESUMABLE)
    for _ in range(2):
        session.feed(HEARD, SOUND, SAID, SOUND, GENERATED, done(), RESUMABLE)
    assert [attrs.astuple(turn)[:4] for turn in session.ended] == [(0, 4, 4, 8), (1, 11, 11, 15)]
    assert [turn.stopped for turn in session.ended] == [None, None]
    assert session.readings == [WHOLE, WHOLE]
    assert session.close() == unread("turns", True)
    assert len(session.ended) == 2


def test_newer_and_vertex_names_are_read_too() -> None:
    counts = {
        name.replace("response", "candidates"): value for name, value in COUNTS.items() if "total" not in name
    }
    assert "candidatesTokensDetails" in counts
    assert only(SOUND, done({**counts, "trafficType": "ON_DEMAND"})) == attrs.evolve(
        WHOLE, service_tier="ON_DEMAND"
    )


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        # Of gemini-3.8-live (https://github.com/Laisky/one-api/pull/409): thoughts are not in the total, nor is the modality of
        # each token of the prompt told.
        (
            {
                "promptTokenCount": 548,
                "promptTokensDetails": details(text=306, audio=222),
                "responseTokenCount": 61,
                "responseTokensDetails": details(audio=61),
                "thoughtsTokenCount": 100,
                "totalTokenCount": 609,
            },
            Usage(548, 161, reasoning_tokens=100, input_audio_tokens=222, output_audio_tokens=61),
        ),
        (
            told_of(100, 30, cachedContentTokenCount=60, toolUsePromptTokenCount=5),
            Usage(input_tokens=45, output_tokens=30, cache_read_tokens=60),
        ),
        (
            told_of(100, 30) | {"promptTokensDetails": details(video=20, image=30)},
            Usage(100, 30, input_image_tokens=30, video=True),
        ),
    ],
)
def test_what_is_told_of_a_turn_is_read(counts: dict[str, Any], usage: Usage) -> None:
    assert used(SOUND, done(counts)) == usage


def test_usage_may_come_before_the_end_of_its_turn_and_beside_anything() -> None:
    messages: list[dict[str, Any]] = [{}, {"serverContent": {}}, SOUND, GENERATED, TOOL_CALL, RESUMABLE]
    for message in messages:
        assert used(SOUND, with_usage(message), done({})) == TURN
        assert used(SOUND, with_usage(message), done({"promptTokenCount": 0})) == TURN


def test_a_tool_call_is_in_the_middle_of_a_turn_whose_runs_are_all_billed() -> None:
    session = Session(HEARD, with_usage(TOOL_CALL, told_of(100, 8)))
    assert (session.begun[0].first_token, session.ended) == (2, [])
    session.feed(with_usage(TOOL_CALL, told_of(130, 2)), SOUND, done(told_of(160, 30)))
    assert session.readings == [attrs.evolve(WHOLE, usage=Usage(390, 40))]


def test_a_prompt_may_be_told_of_first_and_the_answer_piece_by_piece() -> None:
    """As recorded from gemini-3.1-flash-live-preview, with a tool call."""
    session = Session(SETUP, {"serverContent": {}}, HEARD)
    session.feed(with_usage({"serverContent": {}}, PROMPT))
    assert [attrs.astuple(turn)[:4] for turn in session.begun] == [(0, 4, None, None)]
    call = {"responseTokenCount": 8, "totalTokenCount": 8, "responseTokensDetails": details(text=8)}
    session.feed(with_usage(TOOL_CALL, call), with_usage({"serverContent": {}}, told_of(170)))
    for _ in range(3):
        piece = {
            "responseTokenCount": 10,
            "totalTokenCount": 10,
            "responseTokensDetails": details(audio=10),
        }
        session.feed(with_usage(SOUND, piece))
    session.feed(GENERATED, {"serverContent": {"turnComplete": True}, "usageMetadata": {}})
    assert session.readings == [
        attrs.evolve(WHOLE, usage=Usage(270, 38, input_audio_tokens=60, output_audio_tokens=30))
    ]


def test_a_second_word_of_the_same_prompt_takes_the_place_of_the_first() -> None:
    assert used(with_usage(SOUND, PROMPT), with_usage(SOUND, told_of(100, 20)), done()) == TURN
    pieces = [with_usage(SOUND, {"responseTokenCount": 15, "totalTokenCount": 15})] * 2
    assert used(with_usage(SOUND, PROMPT), *pieces, done()) == TURN
    assert used(with_usage(SOUND, told_of(70, 5)), with_usage(SOUND), done()) == attrs.evolve(
        TURN, input_tokens=170, output_tokens=35
    )


def test_an_answer_of_whose_length_nothing_is_told_is_not_taken_for_none() -> None:
    assert used(with_usage({"serverContent": {}}, PROMPT), SOUND, done({})) == attrs.evolve(
        TURN, output_tokens=None, output_audio_tokens=None
    )
    assert used(done(PROMPT)) == attrs.evolve(TURN, output_tokens=0, output_audio_tokens=None)


def test_usage_behind_the_end_of_a_turn_is_that_turns() -> None:
    session = Session(SOUND, done({}), RESUMABLE, HEARD, SAID)
    assert [(turn.stopped, turn.ended) for turn in session.begun] == [(2, None)]
    session.feed(with_usage({}))
    assert [(turn.stopped, turn.ended) for turn in session.begun] == [(2, 6)]
    assert session.readings == [WHOLE]


def test_usage_that_was_told_with_the_end_of_a_turn_is_not_counted_again() -> None:
    assert used(SOUND, done(), with_usage({})) == TURN
    assert used(SOUND, done(), done()) == TURN
    assert used(SOUND, done({}), with_usage({}), with_usage({})) == TURN


def test_two_turns_may_use_the_same() -> None:
    assert told(SOUND, done(), with_usage(SOUND), done({})) == [WHOLE, WHOLE]
    assert told(SOUND, done(), SOUND, done()) == [WHOLE, WHOLE]


def test_other_usage_behind_the_end_of_a_turn_is_that_of_the_next() -> None:
    first, second = told(SOUND, done(), with_usage({}, told_of(140)), SOUND, done(told_of(150, 5)))
    assert (first.usage, second.usage) == (TURN, Usage(290, 5))


@pytest.mark.parametrize("begins", [SOUND, TOOL_CALL, with_usage({"serverContent": {}}, PROMPT), GENERATED])
def test_the_usage_of_a_turn_is_unknown_if_the_next_begins_before_it_was_told(begins: dict[str, Any]) -> None:
    session = Session(SOUND, done({}), begins)
    assert session.readings == [attrs.evolve(WHOLE, usage=None, source="absent")]
    session.feed(done())
    assert session.readings[1:] == [WHOLE]


def test_a_turn_whose_usage_was_never_told_ends_with_its_socket_and_is_whole() -> None:
    session = Session(SOUND, done({}))
    assert session.readings == []
    session.close()
    assert session.readings == [attrs.evolve(WHOLE, usage=None, source="absent")]


def test_an_end_that_is_told_twice_is_one() -> None:
    session = Session(SOUND, done({}), done({}))
    assert [(turn.stopped, turn.ended) for turn in session.begun] == [(2, None)]
    session.feed(done())
    assert session.readings == [WHOLE]


def test_a_turn_that_was_interrupted_tells_so() -> None:
    reading = only(SOUND, INTERRUPTED, done())
    assert reading == attrs.evolve(WHOLE, stop_reason="interrupted")
    assert told(INTERRUPTED) == []


def test_the_reason_why_a_turn_is_complete_is_told() -> None:
    reading = only(SOUND, done(turnCompleteReason="MALFORMED_FUNCTION_CALL"))
    assert reading.stop_reason == "MALFORMED_FUNCTION_CALL"


def test_transcripts_are_no_turn_wherever_they_come() -> None:
    assert told(HEARD, SAID, {"serverContent": {}}, {"serverContent": {"modelTurn": {}}}) == []
    assert used(HEARD, SOUND, HEARD, done(), SAID, HEARD) == TURN


def test_an_end_before_which_nothing_was_made_is_a_turn() -> None:
    assert used(HEARD, done(PROMPT)) == attrs.evolve(TURN, output_tokens=0, output_audio_tokens=None)
    assert only(HEARD, done({})) == attrs.evolve(WHOLE, usage=None, source="absent")


def test_a_socket_that_only_transcribes_has_a_turn_of_unknown_usage() -> None:
    """As gemini-3.5-transcribe-live, which tells of no turns and no usage."""
    reading = only(SETUP, HEARD, GENERATED, HEARD, GENERATED)
    assert (reading.outcome, reading.usage, reading.source) == ("cut", None, "absent")


# Work in the background; the counts are of gemini-3.8-live-extended-thinking, and also recorded there.

BACKGROUND = {"promptTokenCount": 2947, "thoughtsTokenCount": 95, "totalTokenCount": 3042}
SPOKEN = told_of(3104, 42, thoughtsTokenCount=49)
IDLE: dict[str, Any] = {"interactionStatus": "IDLE"}


def test_each_utterance_over_work_in_the_background_is_a_turn_with_the_runs_before_it() -> None:
    busy: dict[str, Any] = {"interactionStatus": "IN_PROGRESS"}
    one, two = told(
        SOUND,
        done(**busy),
        with_usage({"serverContent": busy}, BACKGROUND),
        TOOL_CALL | busy,
        SOUND,
        done(SPOKEN, **IDLE),
        IDLE,
    )
    assert one == WHOLE
    assert two == attrs.evolve(WHOLE, usage=Usage(6051, 186, reasoning_tokens=144))


@pytest.mark.parametrize("idle", [IDLE, {"serverContent": IDLE}])
def test_work_of_which_nothing_is_said_ends_when_it_is_over(idle: dict[str, Any]) -> None:
    usage = Usage(2947, 95, reasoning_tokens=95)
    assert used(with_usage({"serverContent": {}}, BACKGROUND), idle) == usage
    assert used(with_usage({"serverContent": {}}, BACKGROUND), done({}, **IDLE)) == usage


def test_that_nothing_goes_on_is_no_turn_and_no_end_of_one() -> None:
    assert told(IDLE, {"serverContent": IDLE}, done({}, **IDLE)) == []
    assert used(SOUND, IDLE, SOUND, GENERATED | IDLE, {"serverContent": IDLE}, done()) == TURN
    assert used({"serverContent": {"generationComplete": True, **IDLE}}, done()) == TURN


def test_what_the_web_was_searched_for_is_counted_once_however_often_it_is_told() -> None:
    def grounded(*queries: str) -> dict[str, Any]:
        return {"serverContent": {"groundingMetadata": {"webSearchQueries": list(queries)}}}

    uses = Usage(server_tool_uses={"web_search_requests": 3})
    assert used(SOUND, grounded("a", ""), grounded("a", "b"), grounded("c"), done()) == TURN + uses
    assert only(SOUND, grounded("a"), done({})).usage is None


def test_searches_are_not_gathered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmproxy.usage.live._MOST_QUERIES", 2)
    searched = {"serverContent": {"groundingMetadata": {"webSearchQueries": ["a", "b", "c"]}}}
    other = {"serverContent": {"groundingMetadata": {"webSearchQueries": ["d"]}}}
    uses = Usage(server_tool_uses={"web_search_requests": 2})
    assert used(SOUND, searched, other, done()) == TURN + uses


def test_a_turn_in_which_a_socket_was_left_is_cut() -> None:
    session = Session(SOUND, done(), SOUND)
    assert session.close().source == "turns"
    assert session.readings == [WHOLE, attrs.evolve(WHOLE, usage=None, source="absent", outcome="cut")]


def test_what_was_told_of_a_turn_that_is_cut_is_kept() -> None:
    reading = only(with_usage(TOOL_CALL, told_of(100, 8)))
    assert reading == attrs.evolve(WHOLE, usage=Usage(100, 8), outcome="cut")
    reading = only(with_usage({"serverContent": {}}, PROMPT), SOUND)
    assert reading.usage == attrs.evolve(TURN, output_tokens=None, output_audio_tokens=None)


def test_a_session_without_a_turn_used_nothing() -> None:
    session = Session(SETUP, RESUMABLE, HEARD, {"goAway": {"timeLeft": "50s"}})
    assert session.close() == unread("turns", True)
    assert session.begun == []


def test_pieces_of_an_answer_are_not_parsed_but_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(data: bytes) -> dict[str, Any]:
        raise AssertionError(data)

    session = Session(SETUP, SOUND)
    quoting = {
        "serverContent": {"outputTranscription": {"text": 'say "turnComplete", or "promptTokenCount": 5'}}
    }
    monkeypatch.setattr("llmproxy.usage.live.document", parsed)
    session.feed(SOUND, SAID, quoting, GENERATED, RESUMABLE, HEARD)
    assert session.ended == []


@pytest.mark.parametrize("count", ["100", -1, 1.5, True, None, 10**16])
def test_what_is_no_number_is_not_known(count: Any) -> None:
    reading = only(SOUND, done({"promptTokenCount": count, "responseTokenCount": count}))
    assert (reading.usage, reading.source) == (None, "absent")


@given(
    st.lists(
        st.binary(max_size=60)
        | st.sampled_from(
            [
                dumped(message)
                for message in (SOUND, done(), done({}), TOOL_CALL, INTERRUPTED, with_usage({}), IDLE)
            ]
        )
        | st.builds(
            lambda content, counts: dumped({"serverContent": content, "usageMetadata": counts}),
            st.recursive(
                st.none() | st.booleans() | st.sampled_from(["turnComplete", "modelTurn", "parts"]),
                lambda inner: st.lists(inner) | st.dictionaries(st.just("turnComplete"), inner),
            ),
            st.none() | st.just([1]) | st.dictionaries(st.just("promptTokenCount"), st.integers()),
        )
    )
)
def test_no_message_is_an_error_and_each_turn_ends_once(messages: list[bytes]) -> None:
    session = Session()
    session.feed(*messages)
    assert session.close().source == "turns"


# In frames


MESSAGES = [dumped(message) for message in (SETUP, HEARD, SOUND, SOUND, GENERATED, done())]


def framed(kind: int) -> bytes:
    return b"".join(frame(kind, message) for message in MESSAGES)


def read(pieces: list[bytes], extensions: bytes = b"", path: bytes = PATH) -> tuple[list[Reading], Reading]:
    """The readings of the turns and of the socket."""
    session = Session()
    tap = tap_for_socket(Family.GEMINI, path, extensions, session)
    assert tap is not None
    for piece in pieces:
        tap.feed(piece)
    reading = tap.close(True)
    return session.readings, reading


def byte_by_byte(sent: bytes) -> list[bytes]:
    return [sent[at : at + 1] for at in range(len(sent))]


@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_messages_are_read_in_binary_frames_and_in_text(kind: int) -> None:
    sent = framed(kind)
    assert read([sent]) == read(byte_by_byte(sent)) == ([WHOLE], unread("turns", True))


def test_they_are_read_wherever_they_are_cut() -> None:
    sent = framed(BINARY)
    for at in range(len(sent)):
        assert read([sent[:at], sent[at:]]) == ([WHOLE], unread("turns", True))


def test_they_are_read_in_fragments_and_compressed() -> None:
    fragments = [
        part
        for message in MESSAGES
        for part in (
            frame(BINARY, message[:9], fin=False),
            frame(9, b"ping"),
            frame(CONTINUATION, message[9:]),
        )
    ]
    assert read(fragments)[0] == [WHOLE]
    deflated = Deflated()
    compressed = b"".join(frame(BINARY, deflated(message), compressed=True) for message in MESSAGES)
    for pieces in ([compressed], byte_by_byte(compressed)):
        assert read(pieces, b"permessage-deflate")[0] == [WHOLE]


def test_what_is_not_whole_is_cut() -> None:
    sent = framed(BINARY)
    for lacking in (1, len(frame(BINARY, MESSAGES[-1])) - 1):
        readings, socket = read([sent[:-lacking]])
        assert readings == [attrs.evolve(WHOLE, usage=None, source="absent", outcome="cut")]
        assert socket.source == "turns"


def test_a_message_that_is_too_large_leaves_its_turn_unknown_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmproxy.usage.framed._LARGEST_MESSAGE", 1000)
    large = frame(BINARY, b" " * 1001)
    begun = frame(BINARY, dumped(with_usage(SOUND)))
    lost = unread("too_large", False)
    for sent in (large, begun + large):
        readings, socket = read([framed(BINARY), sent, framed(BINARY)])
        assert (readings, socket.source) == ([WHOLE, lost, WHOLE], "turns")
    waits = frame(BINARY, dumped(SOUND)) + frame(BINARY, dumped(done({})))
    readings, _ = read([waits, large, framed(BINARY)])
    assert readings == [attrs.evolve(lost, outcome="complete"), WHOLE]


def test_what_is_no_frame_leaves_the_socket_unknown() -> None:
    readings, socket = read([framed(BINARY), b"\xff\xff broken", framed(BINARY)])
    assert (readings, socket.source) == ([WHOLE], "undecodable")
    assert read([framed(BINARY)], b"x-unheard-of")[1].source == "undecodable"


@pytest.mark.parametrize(
    ("path", "live"),
    [
        (PATH, True),
        (PATH + b"/", True),
        (PATH.replace(b"v1beta", b"v1alpha") + b"Constrained", True),
        (b"/vertex/ws/google.cloud.aiplatform.v1.LlmBidiService/BidiGenerateContent", True),
        (b"/gemini/ws/google.ai.generativelanguage.v1alpha.GenerativeService.BidiGenerateMusic", False),
        (b"/gemini/v1beta/models/x:streamGenerateContent", False),
    ],
)
def test_the_path_tells_which_sockets_are_of_the_live_api(path: bytes, live: bool) -> None:
    assert is_live(Family.GEMINI, path) is live
    assert (tap_for_socket(Family.GEMINI, path, b"", Session()) is not None) is live
    assert is_live(Family.OPENAI, path) is live
    assert is_live(Family.NONE, path) is False
    assert tap_for_socket(Family.NONE, path, b"", Session()) is None
