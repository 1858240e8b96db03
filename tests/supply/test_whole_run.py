"""One sweep with everything on: nothing leaves the machine, no secret is written, modes are right.

It trains in a process of joblib with one of a data loader, keeps the weights, exports them and
copies itself to an offline wandb. The checks share it: it takes 20 s.
"""

from __future__ import annotations

import base64
import re
import stat
import subprocess
import zlib
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.supply.commands import SHORT, call, without_network

SECRETS = {
    "HF_TOKEN": "hf_SentinelOfTheHub0123456789",
    "WANDB_API_KEY": "5e471e10" * 5,
    "AWS_SECRET_ACCESS_KEY": "Sentinel/of+Amazon/0123456789",
    "OPENAI_APIKEY": "sk-SentinelWithoutUnderscore",
    "MY_PASSWORD": "SentinelPassword",
    "MYSQL_PWD": "SentinelOfMySQL",
    "GH_PAT": "ghp_SentinelOfGitHub",
    "DATABASE_URL": "postgres://user:SentinelOfDatabase@host/db",
    "SERVICE_TOKEN_2": "SentinelTwo",
}
HIDDEN = [*SECRETS.values(), "SentinelOfDatabase", "SentinelOfRemote"]
WANDB = ("logger=wandb", "logger.group=of-${oc.env:MY_PASSWORD}", "logger.project=p-sk-SentinelWithoutUnderscore")  # fmt: skip  # noqa: E501
UMASK = 0o007  # a group that shares a store: whatever is made for its owner alone shows


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The folder of the sweep, and how the command ended."""
    folder = tmp_path_factory.mktemp("sweep")
    git = ["git", "-C", str(folder)]
    remote = "https://user:SentinelOfRemote@example.invalid/x.git"
    for words in (["init", "-q"], ["remote", "add", "origin", remote]):
        subprocess.run([*git, *words], check=True)
    done = call(
        [
            "moe-run", *SHORT, *WANDB, "trainer.workers=1", "keep_model=best", "export=dense",
            "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "-m",
        ],
        folder, environment=SECRETS, umask=UMASK, before=without_network(),
    )  # fmt: skip
    (folder / "screen").write_text(done.stdout + done.stderr)
    return folder, done


@pytest.mark.long
def test_it_asks_no_other_machine(sweep):
    folder, done = sweep
    assert done.returncode == 0, done.stderr
    log = folder / "network.log"
    assert not log.exists(), log.read_text()
    assert len(list(folder.glob("outputs/runs/*/wandb/offline-run-*/*.wandb"))) == 1


@pytest.mark.long
def test_no_secret_is_in_a_file_or_on_the_screen(sweep):
    folder, done = sweep
    assert done.returncode == 0, done.stderr
    searched = [path for path in files_of(folder) if ".git" not in path.parts]
    assert len(searched) > 30
    found = [
        f"{path.relative_to(folder)} has {secret}"
        for path in searched
        for secret in HIDDEN
        if any(form in content(path) for form in forms(secret))
    ]
    assert not found, "\n".join(found)
    assert "p-***" in strings_of_wandb(folder)
    assert "of-***" in strings_of_wandb(folder)


@pytest.mark.long
def test_what_is_written_has_the_modes_of_the_users_umask(sweep):
    folder, done = sweep
    assert done.returncode == 0, done.stderr
    wrong = []
    for path in (folder / "outputs").rglob("*"):
        if path.is_symlink() or path.name == "debug-core.log":
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o777 if path.is_dir() else 0o666) & ~UMASK:
            wrong.append(f"{mode:o} {path.relative_to(folder)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.long
def test_nothing_is_left_behind_elsewhere(sweep):
    folder, _ = sweep
    left = [path for path in files_of(folder / "tmp")]
    assert not left, left
    outside = {path.relative_to(folder / "home").parts[:2] for path in files_of(folder / "home")}
    assert outside <= {(".cache", "wandb")}  # the log of wandb's own process


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def content(path: Path) -> bytes:
    """The bytes of a file, without the record headers that cut texts in wandb's log."""
    data = path.read_bytes()
    if path.suffix == ".wandb":  # blocks of 32 KiB, each record behind 7 bytes
        data += b"".join(data[i : i + 32768] for i in range(0, len(data), 32768))
        data += re.sub(rb"[\x00-\x08\x0e-\x1f\x80-\xff]", b"", data)
    if data[:2] == b"\x1f\x8b":
        data += zlib.decompress(data, 31)
    return data


def forms(secret: str) -> list[bytes]:
    """How a secret might be written: as it is, in an address, in base64."""
    plain = secret.encode()
    return [plain, quote(secret, safe="").encode(), base64.b64encode(plain).rstrip(b"=")[:-1]]


def strings_of_wandb(folder: Path) -> str:
    files = folder.glob("outputs/runs/*/wandb/offline-run-*/*.wandb")
    return "\n".join(path.read_bytes().decode("latin-1") for path in files)
