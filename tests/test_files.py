import errno
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from moe_runner import files
from moe_runner.backbones.loading import read_model
from moe_runner.runs.log import logged_to
from moe_runner.training import checkpoint


def test_write_json_and_read_json_agree(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"b": [1, 2.5, None], "a": "\u00e9"})
    assert files.read_json(path) == {"b": [1, 2.5, None], "a": "\u00e9"}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_json(path, 1)
    with pytest.raises(TypeError):
        files.write_json(path, {"x": object()})
    monkeypatch.setattr(files.os, "fsync", lambda _: os.fstat(-1))
    with pytest.raises(OSError, match="descriptor"):
        files.write_json(path, 2)
    assert files.read_json(path) == 1
    assert os.listdir(tmp_path) == ["x.json"]


def test_files_get_the_permissions_of_any_other_file(tmp_path):
    files.write_atomic(tmp_path / "x", "")
    files.append_line(tmp_path / "y", {})
    (tmp_path / "z").touch()
    assert len({(tmp_path / name).stat().st_mode for name in "xyz"}) == 1


def test_lines_come_back_in_order_without_a_torn_last_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, {"step": 1, "note": "two\nlines"})
    files.append_line(path, {"step": 2})
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        assert len(files.read_lines(path)) == whole[:end].count(b"\n")
    assert [line["step"] for line in files.read_lines(path)] == [1, 2]


def test_a_damaged_whole_line_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is not JSON"):
        files.read_lines(path)


def test_write_lines_replaces_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, {"step": 1})
    files.write_lines(path, [{"step": 2}, {"step": 3}])
    assert files.read_lines(path) == [{"step": 2}, {"step": 3}]


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_APIKEY", "my_password",
        "MYSQL_PWD", "DB_PASS", "GH_PAT", "SERVICE_TOKENS", "API_KEY_2", "SSH_PASSPHRASE",
        "NPM_AUTH", "SECRET_KEY_BASE", "GOOGLE_CREDENTIALS",
    ],
)  # fmt: skip
def test_these_names_are_of_secrets(name, monkeypatch):
    monkeypatch.setenv(name, "12345678")
    assert files.masked("a12345678b") == "a***b"


@pytest.mark.parametrize(
    "name", ["PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "PATH", "COMPAT", "KEYBOARD", "BYPASS"]
)
def test_these_names_are_of_no_secrets(name, monkeypatch):
    monkeypatch.setenv(name, "12345678")
    assert files.masked("a12345678b") == "a12345678b"


def test_passwords_in_addresses_are_left_out(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgres://user:p4ssw0rd!@host/db")
    assert files.masked("p4ssw0rd! of postgres") == "*** of postgres"
    assert files.masked("http://proxy:pw@host:1/ and http://host:1/a@b") == (
        "http://proxy:***@host:1/ and http://host:1/a@b"
    )


def test_of_two_secrets_the_longer_is_left_out_as_a_whole(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "12345678")
    monkeypatch.setenv("B_TOKEN", "12345678-and-more")
    assert files.masked("12345678-and-more") == "***"


def test_a_log_that_cannot_be_written_is_told_once_without_a_traceback(tmp_path, capsys):
    with logged_to(Path("/dev/full")):
        for _ in range(3):
            logging.getLogger("x").warning("word")
    err = capsys.readouterr().err
    assert err == "/dev/full: No space left on device; the log is not kept\n"


def test_secrets_of_the_environment_are_in_no_log(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("SHORT_KEY", "abc")
    assert files.masked("https://x?key=hf_abcdefgh&abc") == "https://x?key=***&abc"
    with logged_to(tmp_path / "run.log"):
        logging.getLogger("x").warning("with %s", "hf_abcdefgh")
    assert (tmp_path / "run.log").read_text().endswith("with ***\n")
    files.write_json(tmp_path / "a.json", {"hf_abcdefgh": 1})  # what is read back stays whole
    assert files.read_json(tmp_path / "a.json") == {"hf_abcdefgh": 1}


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0",
        "basic_ios::clear: iostream error",  # the first write of a file fails
    ],
)
def test_an_error_of_torchs_writer_names_the_folder(text, tmp_path):
    named = pytest.raises(OSError, match=f"{tmp_path} cannot be written; is the disk full?")
    with named, files.writing_tensors(tmp_path):
        raise RuntimeError(text)


def test_another_error_among_writes_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="CUDA"), files.writing_tensors(tmp_path):
        raise RuntimeError("CUDA error: out of memory")


STARVED = [
    MemoryError(),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    RuntimeError("can't start new thread"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", STARVED, ids=str)
def test_too_little_memory_is_told_with_what_to_do(error):
    assert "ulimit -v" in files.one_line(error)


@pytest.mark.parametrize("error", STARVED, ids=str)
def test_too_little_memory_is_no_damage_of_a_checkpoint(error, tmp_path):
    with pytest.raises(type(error)) as raised, checkpoint.reading(tmp_path):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("error", STARVED, ids=str)
def test_too_little_memory_is_no_fault_of_the_weights(error):
    class Starved:
        @staticmethod
        def from_pretrained(**_):
            raise error

    weights = SimpleNamespace(location={}, origin="weights")
    with pytest.raises(type(error)) as raised:
        read_model(Starved, weights)
    assert raised.value is error


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), OSError(errno.ENOENT, "missing"), ValueError("memory")]
)
def test_other_errors_are_not_about_memory(error):
    assert not files.is_starved(error)


def test_a_process_short_of_memory_is_told_before_it_starts_threads():
    files.check_room()
    with pytest.raises(MemoryError, match="fewer than 1073741824 MiB are free"):
        files.check_room(2**30)
