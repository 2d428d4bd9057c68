from __future__ import annotations

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from llmproxy.cli import edit
from llmproxy.cli.command import CommandError
from tests.cli_support import FILE, Shell, shell

__all__ = ["shell"]  # a fixture


def appended(text: str) -> str:
    return f"{text}# changed\n"


class TestAtomicity:
    def test_who_has_the_file_open_reads_on_in_the_old_one(self, shell: Shell) -> None:
        with shell.file.open() as opened:
            edit.rewrite(shell.file, appended, shell.environ)
            assert opened.read() == FILE
        assert shell.file.read_text() == appended(FILE)

    def test_a_result_that_cannot_be_used_leaves_the_very_same_file(self, shell: Shell) -> None:
        before = shell.file_version()
        with pytest.raises(
            CommandError, match=r"was not changed; .*\n  - lisen: unknown key; did you mean listen"
        ):
            edit.rewrite(shell.file, lambda text: f"lisen = [1]\n{text}", shell.environ)
        assert shell.file_version() == before

    @pytest.mark.parametrize("text", ["listen = [", "limits = 3\nlimits = 4\n"])
    def test_a_result_that_is_no_toml_is_told_by_the_files_own_name(self, shell: Shell, text: str) -> None:
        with pytest.raises(CommandError) as caught:
            edit.rewrite(shell.file, lambda _: text, shell.environ)
        assert f"  - {shell.file}: line " in str(caught.value)

    @pytest.mark.parametrize("step", ["fchmod", "fsync", "replace"])
    def test_a_disk_that_fails_leaves_the_file_and_nothing_beside_it(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path if step == "replace" else os, step, fail)
        with pytest.raises(CommandError, match="cannot be changed: No space left on device"):
            edit.rewrite(shell.file, appended, shell.environ)
        assert shell.file.read_text() == FILE
        assert list(shell.file.parent.iterdir()) == [shell.file]

    def test_a_change_that_is_refused_leaves_nothing_beside_the_file(self, shell: Shell) -> None:
        def refuse(text: str) -> str:
            raise ValueError("has enough.")

        with pytest.raises(CommandError, match=r"llmproxy\.toml has enough\.$"):
            edit.rewrite(shell.file, refuse, shell.environ)
        assert list(shell.file.parent.iterdir()) == [shell.file]

    def test_the_new_file_is_on_the_disk_before_it_takes_the_old_ones_place(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        replace = Path.replace

        def note_and_replace(new: Path, old: Path) -> None:
            done.append("replace")
            replace(new, old)

        monkeypatch.setattr(os, "fsync", lambda _: done.append("fsync"))
        monkeypatch.setattr(Path, "replace", note_and_replace)
        edit.rewrite(shell.file, appended, shell.environ)
        assert done == ["fsync", "replace", "fsync"]  # the file, the name, the directory

    def test_two_changes_at_once_are_both_made(self, shell: Shell) -> None:
        directory = os.open(shell.file.parent, os.O_RDONLY)
        fcntl.flock(directory, fcntl.LOCK_EX)
        other = threading.Thread(target=edit.rewrite, args=(shell.file, appended, shell.environ))
        other.start()
        shell.file.write_text(f"{FILE}# first\n")
        os.close(directory)
        other.join(10)
        assert shell.file.read_text() == f"{FILE}# first\n# changed\n"


class TestWhatStays:
    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
    def test_the_mode(self, shell: Shell, mode: int) -> None:
        shell.file.chmod(mode)
        edit.rewrite(shell.file, appended, shell.environ)
        assert stat.S_IMODE(shell.file.stat().st_mode) == mode

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_the_owner(self, shell: Shell) -> None:
        os.chown(shell.file, 10001, 10002)
        edit.rewrite(shell.file, appended, shell.environ)
        assert (shell.file.stat().st_uid, shell.file.stat().st_gid) == (10001, 10002)

    def test_an_owner_that_cannot_be_kept_is_a_refusal(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forbid(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        made = os.fstat
        monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result([*made(fd)[:4], 4242, *made(fd)[5:]]))
        monkeypatch.setattr(os, "fchown", forbid)
        with pytest.raises(CommandError, match="cannot be changed: Operation not permitted"):
            edit.rewrite(shell.file, appended, shell.environ)
        assert shell.file.read_text() == FILE

    def test_a_symbolic_link(self, shell: Shell, tmp_path: Path) -> None:
        directory = tmp_path / "elsewhere"
        directory.mkdir()
        link = directory / "link.toml"
        link.symlink_to(shell.file)
        edit.rewrite(link, appended, shell.environ)
        assert link.readlink() == shell.file
        assert shell.file.read_text() == appended(FILE)
        assert list(directory.iterdir()) == [link]


class TestKeysThatOnlyTheProxyHas:
    def test_a_key_that_is_not_to_be_had_here_stops_no_change(self, shell: Shell) -> None:
        del shell.environ["TEAM_OPENAI_KEY"]
        (problem,) = edit.rewrite(shell.file, appended, shell.environ)
        assert problem.startswith("upstreams.openai.api_key_env")
        assert shell.file.read_text() == appended(FILE)

    def test_upstreams_that_the_environment_brings_stop_none_either(self, shell: Shell) -> None:
        text = FILE.replace('[upstreams.openai]\napi_key_env = "TEAM_OPENAI_KEY"  # from the vault\n', "")
        shell.file.write_text(text.replace('upstreams = ["openai"]\n', ""))
        (problem,) = edit.rewrite(shell.file, appended, shell.environ)
        assert problem.startswith("There is no upstream")

    def test_it_is_told(self, shell: Shell) -> None:
        del shell.environ["TEAM_OPENAI_KEY"]
        ran = shell.run("client", "revoke", "bob", "-c", str(shell.file))
        assert ran.status == 0
        assert (
            "Not checked, since it may be otherwise where the proxy runs: upstreams.openai.api_key_env"
            in ran.err
        )

    def test_a_key_that_the_change_takes_away_stops_it(self, shell: Shell) -> None:
        with pytest.raises(CommandError, match=r"upstreams\.openai\.api_key_env"):
            edit.rewrite(shell.file, lambda text: text.replace("TEAM_OPENAI_KEY", "OTHER"), shell.environ)

    def test_any_other_problem_that_was_there_before_stops_it(self, shell: Shell) -> None:
        shell.file.write_text(f"lisen = [1]\n{FILE}")
        with pytest.raises(CommandError, match="lisen"):
            edit.rewrite(shell.file, appended, shell.environ)
