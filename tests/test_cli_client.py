from __future__ import annotations

import re
from datetime import date, datetime, timezone
from hashlib import sha256
from typing import Any

import pytest
import tomlkit

from llmproxy.cli.client import digest_of, new_token
from llmproxy.config import load
from tests.cli_support import DIGESTS, FILE, Shell, shell

__all__ = ["shell"]  # a fixture

TOKEN = re.compile(r"llmp_[A-Za-z0-9_-]{43}")


def clients(shell: Shell) -> dict[str, Any]:
    """The clients as the file has them."""
    found: dict[str, Any] = tomlkit.parse(shell.file.read_text()).unwrap()["clients"]
    return found


def digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()


UPSTREAM = '[upstreams.openai]\napi_key_env = "TEAM_OPENAI_KEY"\n'
# What TOML allows, and what of it is hard for who changes it.
LAYOUTS = [
    FILE.rstrip("\n"),  # without a line break at its end
    FILE.replace("\n", "\r\n"),
    # Another client stands behind another table.
    f"{FILE}[clients.dave]\ntoken_sha256 = '{DIGESTS[3]}'\n",
    # The clients come first, without a table, and a key that is not theirs behind them.
    f"clients.alice.token_sha256 = '{DIGESTS[0]}'\nclients.bob.token_sha256 = '{DIGESTS[3]}'\nlisten = [33001]\n{UPSTREAM}",
    # Each in one line, in a table of theirs.
    f"{UPSTREAM}[clients]\nalice = {{token_sha256 = '{DIGESTS[0]}'}}\nbob = {{token_sha256 = '{DIGESTS[1]}'}}\n",
    # What belongs to one of them stands in two places, with something between them.
    f"[clients]\nalice.token_sha256 = '{DIGESTS[0]}'\nbob.token_sha256 = '{DIGESTS[1]}'\nalice.models = ['a']\n{UPSTREAM}",
    # Other spellings of the same names.
    FILE.replace("[clients.alice]", "[ \"clients\" . 'alice' ]"),
]
ONE_LINE = f"clients = {{alice = {{token_sha256 = '{DIGESTS[0]}'}}, bob = {{token_sha256 = '{DIGESTS[1]}'}}}}\n{UPSTREAM}"


class TestToken:
    def test_it_is_256_random_bits_behind_a_prefix(self) -> None:
        tokens = {new_token() for _ in range(100)}
        assert len(tokens) == 100
        assert all(TOKEN.fullmatch(token) for token in tokens)  # 43 characters of 6 bits

    def test_what_is_kept_of_it_is_its_digest(self) -> None:
        assert digest_of("llmp_x") == digest("llmp_x")


class TestNew:
    def test_the_token_comes_first_and_what_to_add_behind_it(self, shell: Shell) -> None:
        ran = shell.run("client", "new", "carol")
        token, toml = ran.out.split("\n", 1)
        assert TOKEN.fullmatch(token)
        assert tomlkit.parse(toml).unwrap() == {"clients": {"carol": {"token_sha256": digest(token)}}}
        assert "shown only now" in ran.err
        assert token not in ran.err

    def test_what_to_add_holds_all_rights(self, shell: Shell) -> None:
        ran = shell.run(
            *("client", "new", "carol", "--upstreams", "openai,anthropic", "--models", "gpt-*, o?"),
            *("--deny-models", "gpt-4*", "--expires", "2127-01-31", "--networks", "10.0.0.0/8,fd00::/8"),
        )
        carol = tomlkit.parse(ran.out.split("\n", 1)[1]).unwrap()["clients"]["carol"]
        del carol["token_sha256"]
        assert carol == {
            "upstreams": ["openai", "anthropic"],
            "models": ["gpt-*", "o?"],
            "deny_models": ["gpt-4*"],
            "expires": date(2127, 1, 31),
            "networks": ["10.0.0.0/8", "fd00::/8"],
        }

    def test_what_it_shows_can_be_added_as_it_is(self, shell: Shell) -> None:
        out = shell.run("client", "new", "carol", "--models", "gpt-*", "-c", str(shell.file)).out
        assert shell.file.read_text() == FILE  # nothing was written
        token, toml = out.split("\n", 1)
        shell.file.write_text(f"{FILE}\n{toml}")
        carol = load(shell.environ, str(shell.file)).clients[-1]
        assert (carol.name, carol.models) == ("carol", ("gpt-*",))
        assert [digest.hex() for digest in carol.digests] == [digest(token)]

    def test_each_run_makes_another_token(self, shell: Shell) -> None:
        assert shell.run("client", "new", "carol").out != shell.run("client", "new", "carol").out

    @pytest.mark.parametrize(
        ("expires", "meant"),
        [
            ("2127-01-31", date(2127, 1, 31)),
            ("2127-01-31T12:00:00Z", datetime(2127, 1, 31, 12, tzinfo=timezone.utc)),
        ],
    )
    def test_an_end_is_a_date_or_a_time(self, shell: Shell, expires: str, meant: date) -> None:
        toml = shell.run("client", "new", "carol", "--expires", expires).out.split("\n", 1)[1]
        assert tomlkit.parse(toml).unwrap()["clients"]["carol"]["expires"] == meant

    @pytest.mark.parametrize(
        "expires", ["soon", "2127-02-30", "12:00:00", "7", "'2127-01-31'", "2127-01-31\nx = 1", ""]
    )
    def test_an_end_that_is_no_date_is_refused(self, shell: Shell, expires: str) -> None:
        assert "--expires takes a date" in shell.refused(
            "client", "new", "carol", "--expires", expires, status=2
        )

    @pytest.mark.parametrize("option", ["--upstreams", "--models", "--deny-models", "--networks"])
    @pytest.mark.parametrize("value", ["", "a,,b", "a,", " "])
    def test_an_empty_value_in_a_list_is_refused(self, shell: Shell, option: str, value: str) -> None:
        error = shell.refused("client", "new", "carol", option, value, status=2)
        assert f"{option} holds an empty value" in error

    @pytest.mark.parametrize(
        ("words", "place"),
        [
            (["a b"], 'clients."a b"'),
            ([""], 'clients.""'),
            (["carol", "--networks", "10.0.0.1/8"], "clients.carol.networks"),
        ],
    )
    @pytest.mark.parametrize("known", [True, False])
    def test_what_the_proxy_would_not_take_is_refused_before_it_is_shown(
        self, shell: Shell, words: list[str], place: str, known: bool
    ) -> None:
        error = shell.refused("client", "new", *words, *(["-c", str(shell.file)] if known else []))
        assert place in error
        assert "There is no upstream" not in error  # of that, only the file could tell

    def test_an_upstream_that_there_is_not_is_refused(self, shell: Shell) -> None:
        error = shell.refused("client", "new", "carol", "--upstreams", "opnai", "-c", str(shell.file))
        assert "clients.carol.upstreams" in error

    def test_a_name_that_is_taken_is_refused(self, shell: Shell) -> None:
        error = shell.refused("client", "new", "alice", "-c", str(shell.file))
        assert "has a client alice already" in error


class TestNewWritten:
    def test_only_the_token_is_on_standard_output(self, shell: Shell) -> None:
        ran = shell.run("client", "new", "carol", "--write", str(shell.file))
        assert TOKEN.fullmatch(ran.out.removesuffix("\n"))
        assert "Added carol" in ran.err
        assert "systemctl reload llmproxy" in ran.err
        assert clients(shell)["carol"] == {"token_sha256": digest(ran.out.strip())}

    def test_all_else_in_the_file_stays_as_it_was(self, shell: Shell) -> None:
        shell.run("client", "new", "carol", "--models", "gpt-*", "--write", str(shell.file))
        text = shell.file.read_text()
        assert text.startswith(f"{FILE}\n[clients.carol]\n")
        assert load(shell.environ, str(shell.file)).clients[-1].models == ("gpt-*",)

    @pytest.mark.parametrize("text", LAYOUTS)
    def test_it_may_be_written_in_any_way_that_toml_allows(self, shell: Shell, text: str) -> None:
        shell.file.write_bytes(text.encode())
        before = tomlkit.parse(text).unwrap()
        token = shell.run("client", "new", "carol@work", "--write", str(shell.file)).out.strip()
        written = shell.file.read_bytes().decode()
        assert written.startswith(text)
        assert "\r\n" not in text or "\n" not in written.replace("\r\n", "")
        before["clients"]["carol@work"] = {"token_sha256": digest(token)}
        assert tomlkit.parse(written).unwrap() == before

    def test_where_toml_allows_no_more_clients_the_file_stays(self, shell: Shell) -> None:
        shell.file.write_text(ONE_LINE)
        assert f"{shell.file} was not changed" in shell.refused(
            "client", "new", "carol", "-w", str(shell.file)
        )
        assert shell.file.read_text() == ONE_LINE

    def test_a_name_that_is_taken_is_refused(self, shell: Shell) -> None:
        error = shell.refused("client", "new", "bob", "--write", str(shell.file))
        assert "has a client bob already; `llmproxy client rotate` gives it another token." in error
        assert shell.file.read_text() == FILE

    def test_what_the_proxy_would_not_take_leaves_the_file_untouched(self, shell: Shell) -> None:
        before = shell.file_version()
        error = shell.refused("client", "new", "carol", "--upstreams", "nowhere", "-w", str(shell.file))
        assert f"{shell.file} was not changed" in error
        assert "clients.carol.upstreams" in error
        assert shell.file_version() == before
        assert list(shell.file.parent.iterdir()) == [shell.file]

    def test_a_file_that_is_not_there_is_not_made(self, shell: Shell) -> None:
        missing = shell.file.with_name("missing.toml")
        assert "cannot be read" in shell.refused("client", "new", "carol", "--write", str(missing))
        assert not missing.exists()


class TestRotate:
    def test_a_client_gets_another_token_beside_its_own(self, shell: Shell) -> None:
        ran = shell.run("client", "rotate", "alice", "-c", str(shell.file))
        assert TOKEN.fullmatch(ran.out.strip())
        assert clients(shell)["alice"]["token_sha256"] == [DIGESTS[0], digest(ran.out.strip())]
        assert "systemctl reload llmproxy" in ran.err
        assert "# her laptop" in shell.file.read_text()

    def test_several_stay_several(self, shell: Shell) -> None:
        token = shell.run("client", "rotate", "bob", "-c", str(shell.file)).out.strip()
        assert clients(shell)["bob"]["token_sha256"] == [DIGESTS[1], DIGESTS[2], digest(token)]

    def test_in_the_end_only_the_newest_is_left(self, shell: Shell) -> None:
        token = shell.run("client", "rotate", "alice", "-c", str(shell.file)).out.strip()
        ran = shell.run("client", "rotate", "alice", "--finish", "-c", str(shell.file))
        assert (ran.status, ran.out) == (0, "")
        assert clients(shell)["alice"]["token_sha256"] == digest(token)

    def test_all_else_in_the_file_stays_as_it_was(self, shell: Shell) -> None:
        shell.run("client", "rotate", "alice", "-c", str(shell.file))
        shell.run("client", "rotate", "alice", "--finish", "-c", str(shell.file))
        kept = re.sub("[0-9a-f]{64}", "", shell.file.read_text()).replace("''", '""')
        assert kept == re.sub("[0-9a-f]{64}", "", FILE).replace("''", '""')

    @pytest.mark.parametrize("text", [*LAYOUTS, ONE_LINE])
    def test_it_may_be_written_in_any_way_that_toml_allows(self, shell: Shell, text: str) -> None:
        shell.file.write_bytes(text.encode())
        expected = tomlkit.parse(text).unwrap()
        token = shell.run("client", "rotate", "alice", "-c", str(shell.file)).out.strip()
        written = shell.file.read_bytes().decode()
        expected["clients"]["alice"]["token_sha256"] = [DIGESTS[0], digest(token)]
        assert tomlkit.parse(written).unwrap() == expected
        assert "\r\n" not in text or "\n" not in written.replace("\r\n", "")

    def test_a_client_that_there_is_not_is_refused(self, shell: Shell) -> None:
        assert "has no client of that name" in shell.refused(
            "client", "rotate", "carol", "-c", str(shell.file)
        )

    @pytest.mark.parametrize("value", ["[]", "3", "[3]", "{}"])
    def test_a_client_whose_tokens_cannot_be_read_is_refused(self, shell: Shell, value: str) -> None:
        text = FILE.replace(f"'{DIGESTS[0]}'", value)
        shell.file.write_text(text)
        error = shell.refused("client", "rotate", "alice", "-c", str(shell.file))
        assert "has no token_sha256 for that client to go on from" in error
        assert shell.file.read_text() == text


class TestRevoke:
    def test_a_client_is_taken_out(self, shell: Shell) -> None:
        ran = shell.run("client", "revoke", "alice", "-c", str(shell.file))
        assert (ran.status, ran.out) == (0, "")
        assert list(clients(shell)) == ["bob"]
        assert "systemctl reload llmproxy" in ran.err
        assert "SIGHUP" in ran.err

    @pytest.mark.parametrize(
        ("client", "begins", "ends"),
        [
            ("alice", "[clients.alice]", "# Bob has two machines."),
            ("bob", "[clients.bob]", "# How much they may ask."),
        ],
    )
    def test_all_else_stays_comments_that_follow_included(
        self, shell: Shell, client: str, begins: str, ends: str
    ) -> None:
        shell.run("client", "revoke", client, "-c", str(shell.file))
        before, _, rest = FILE.partition(begins)
        after = rest[rest.index(ends) :]
        text = shell.file.read_text()
        assert text.startswith(before)
        assert text.endswith(after)
        assert len(text) <= len(before) + len(after) + 1

    @pytest.mark.parametrize("text", [*LAYOUTS, ONE_LINE])
    def test_it_may_be_written_in_any_way_that_toml_allows(self, shell: Shell, text: str) -> None:
        shell.file.write_bytes(text.encode())
        expected = tomlkit.parse(text).unwrap()
        del expected["clients"]["alice"]
        assert shell.run("client", "revoke", "alice", "-c", str(shell.file)).status == 0
        written = shell.file.read_bytes().decode()
        assert tomlkit.parse(written).unwrap() == expected
        assert "\r\n" not in text or "\n" not in written.replace("\r\n", "")

    def test_a_name_that_there_is_not_is_refused_with_those_that_there_are_and_not_shown(
        self, shell: Shell
    ) -> None:
        token = new_token()  # from someone who has the token and wants to have it revoked
        error = shell.refused("client", "revoke", token, "-c", str(shell.file))
        assert "it has alice, bob" in error
        assert token not in error
        assert shell.file.read_text() == FILE

    def test_the_last_client_stays_since_a_reload_without_any_would_change_nothing(
        self, shell: Shell
    ) -> None:
        shell.run("client", "revoke", "bob", "-c", str(shell.file))
        text = shell.file.read_text()
        assert "There is no client" in shell.refused("client", "revoke", "alice", "-c", str(shell.file))
        assert shell.file.read_text() == text

    def test_a_file_without_clients_says_so(self, shell: Shell) -> None:
        shell.file.write_text("listen = [33001]\n")
        assert "it has none" in shell.refused("client", "revoke", "alice", "-c", str(shell.file))


class TestList:
    def test_it_is_a_table_without_a_digest(self, shell: Shell) -> None:
        ran = shell.run("client", "list", "-c", str(shell.file))
        assert ran.out.splitlines() == [
            "NAME   UPSTREAMS  MODELS     EXPIRES     NETWORKS  TOKENS",
            "alice  all        gpt-*, o?  never       anywhere  1",
            "bob    openai     all        2127-01-31  anywhere  2",
        ]

    def test_no_key_is_needed_for_it(self, shell: Shell) -> None:
        del shell.environ["TEAM_OPENAI_KEY"]
        assert shell.run("client", "list", "-c", str(shell.file)).status == 0

    def test_models_that_are_denied_are_told(self, shell: Shell) -> None:
        shell.file.write_text(FILE.replace("expires = 2127-01-31", 'deny_models = ["gpt-4*"]'))
        assert "all but not gpt-4*" in shell.run("client", "list", "-c", str(shell.file)).out

    def test_where_they_may_ask_from_is_told(self, shell: Shell) -> None:
        shell.file.write_text(
            FILE.replace("expires = 2127-01-31", 'networks = ["10.0.0.0/8", "2001:db8::/32"]')
        )
        assert "  10.0.0.0/8, 2001:db8::/32  " in shell.run("client", "list", "-c", str(shell.file)).out

    def test_a_file_that_is_not_right_yet_is_listed_too(self, shell: Shell) -> None:
        shell.file.write_text("[clients]\nalice = 3\n[clients.bob]\nmodels = 7\ndeny_models = 'x'\n")
        assert shell.run("client", "list", "-c", str(shell.file)).out.splitlines() == [
            "NAME   UPSTREAMS  MODELS       EXPIRES  NETWORKS  TOKENS",
            "alice  all        all          never    anywhere  0",
            "bob    all        7 but not x  never    anywhere  0",
        ]

    def test_a_file_without_clients_lists_none(self, shell: Shell) -> None:
        for text in ("listen = [33001]\n", "clients = 3\n"):
            shell.file.write_text(text)
            assert shell.run("client", "list", "-c", str(shell.file)).out.splitlines() == [
                "NAME  UPSTREAMS  MODELS  EXPIRES  NETWORKS  TOKENS"
            ]
