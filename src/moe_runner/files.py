"""Write files so that a reader, or a kill at any moment, never meets a half-written one."""

import errno
import functools
import json
import mmap
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

SECRET = re.compile(  # names of environment variables; PWD alone is the working directory
    r"(TOKEN|KEY|PASSWD|PASSPHRASE|CREDENTIAL)S?(_?\d+)?$|SECRET|PASSWORD|.(_PASS|_?PWD|_PAT|_AUTH)$",
    re.IGNORECASE,
)
WORKING_FOLDER = ("PWD", "OLDPWD")
WITH_PASSWORD = re.compile(r"(://[^\s/:@]*:)([^\s/@]+)@")  # scheme://user:password@host
KEPT = "what is finished is kept: free some space, and the same command goes on"
FULL = (errno.ENOSPC, errno.EDQUOT)
STARVED = "the system gave too little memory or too few threads (ulimit -v, -u): give more"
STARVING = ("can't start new thread", "can't allocate memory", "Cannot allocate memory")
TORCH_WRITER = ("inline_container", "iostream error")  # in its errors: its file; C++'s stream
LEAST_SECRET = 8  # letters: a shorter value occurs by chance


def masked(text: str) -> str:
    """Put *** in place of secrets in a text that people read; see `secrets`.

    Passwords in addresses (https://user:password@host) are left out, whoever gave them.
    """
    for secret in secrets():
        text = text.replace(secret, "***")
    return WITH_PASSWORD.sub(r"\1***@", text)


def secrets() -> tuple[str, ...]:
    """List what the environment holds that is nobody's business, the longest first.

    These are the values of variables with names such as HF_TOKEN, and, of any variable with an
    address in it (https://user:password@host), the password.
    """
    return _secrets(tuple(os.environ.items()))


@functools.lru_cache(maxsize=1)  # asked for every text of every run
def _secrets(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    found = set()
    for name, value in environment:
        if SECRET.search(name) and name not in WORKING_FOLDER:
            found.add(value)
        if "://" in value:
            found |= {password for _, password in WITH_PASSWORD.findall(value)}
    long = [value for value in found if len(value) >= LEAST_SECRET]
    return tuple(sorted(long, key=len, reverse=True))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a new file in place of one: the old content or the new one is there, never a part.

    Args:
        path: the file; its folder must exist.

    Yields:
        The file to make and write in the block, beside `path`; it takes its place when the block
        ends, and is removed if the block raises.

    Raises:
        OSError: if it cannot be written; it names `path`, which keeps its old content.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(path, temporary):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # such as a folder that is gone: the first error says more
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an error of writing name the file that the user knows.

    That of a write names none, that of a rename two, and libraries that tidy up on a full disk hide
    it behind another one.

    Args:
        path: the file.
        temporary: what is written in its place.

    Raises:
        OSError: with `path` as its file name.
    """
    try:
        yield
    except Exception as error:
        found = _full(error)
        if found is None and isinstance(error, OSError) and error.errno is not None:
            own = (None, str(path), str(temporary))
            found = error if error.filename in own else None
        if found is None:
            raise
        raise OSError(found.errno, os.strerror(found.errno or 0), str(path)) from error


def _full(error: BaseException | None) -> OSError | None:
    """Find the error of a full disk among those that an error came from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def write_atomic(path: Path, text: str) -> None:
    """Write a text file: the old content or the new one is there, never a part.

    Args:
        path: the file; its folder must exist.
        text: the whole content, written as UTF-8.

    Raises:
        OSError: if it cannot be written; `path` then keeps its old content.
    """
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)


def unfinished(folder: Path) -> list[Path]:
    """List the files in a folder that killed writes left, see `replacing`."""
    return sorted(folder.glob(".*.tmp"))


@contextmanager
def writing_tensors(folder: Path) -> Iterator[None]:
    """Name the folder where torch's or safetensors' writer fails, and share what is written.

    The errors of these writers name no file, and safetensors makes files for their owner alone.

    Raises:
        OSError: in their place.
    """
    try:
        yield
        share(folder, "*.safetensors")
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in TORCH_WRITER):
            raise
        reason = str(error).splitlines()[0]
        raise OSError(
            f"{folder} cannot be written; is the disk full? ({reason}); {KEPT}"
        ) from error


def share(folder: Path, pattern: str) -> None:
    """Give files the mode that any new file has here, by the umask or the folder's own list.

    Args:
        folder: that they are in.
        pattern: of `Path.glob`; links are left alone.
    """
    files = [path for path in folder.glob(pattern) if path.is_file() and not path.is_symlink()]
    if files:
        probe = folder / f".mode.{uuid.uuid4().hex}.tmp"
        try:
            probe.touch(exist_ok=False)
            mode = probe.stat().st_mode & 0o666
        finally:
            probe.unlink(missing_ok=True)
        for file in files:
            file.chmod(mode)


def one_line(error: Exception) -> str:
    """Word an error in a line; of a file that is out of reach, its name and the system's reason."""
    if is_starved(error):
        return f"{str(error).strip() or 'not enough memory'}; {STARVED}"
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    return f"{error.filename}: {error.strerror}{f'; {KEPT}' if error.errno in FULL else ''}"


def is_starved(error: BaseException) -> bool:
    """Say if an error comes from too little memory or too few threads, so from no file."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in STARVING)


def check_room(mebibytes: int = 64) -> None:
    """Find out now whether the process is short of memory: a thread cannot say so, it hangs.

    (CPython 3.11, where the allocator fails in the first lines of a new thread.)

    Args:
        mebibytes: of addresses that there must be; they are given back.

    Raises:
        MemoryError: if there are fewer.
    """
    try:
        mmap.mmap(-1, mebibytes * 2**20).close()
    except OSError as error:
        raise MemoryError(f"fewer than {mebibytes} MiB are free") from error


def expanded(place: str | Path) -> Path:
    """Put the home folder in place of `~`; as a shell does, leave that of an unknown user as it is.

    Args:
        place: as given; `no_place` refuses one of an unknown user.
    """
    return Path(os.path.expanduser(place))


def no_place(key: str, place: str) -> str | None:
    """Say in a line why nothing can be looked for at a place; None if it can, there or not.

    Args:
        key: of the option, for the message.
        place: file or folder.
    """
    try:
        Path(place).expanduser().stat()
    except (FileNotFoundError, NotADirectoryError):
        return None  # whoever needs it says so
    except (OSError, ValueError, RuntimeError) as error:  # too long, null byte, ~nobody, no access
        shown = place if len(place) <= 60 else f"{place[:60]}..."
        reason = getattr(error, "strerror", None) or str(error)
        return f"{key}={shown} cannot be looked at: {reason}; give another place"
    return None


def unusable(folder: Path) -> str | None:
    """Say why a folder can't be written to, or made where it is missing; None if it can.

    Args:
        folder: there or not; nothing is left in it.
    """
    try:
        if (reason := blocked(folder)) is not None:
            return reason
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            return None
    except OSError as error:
        return f"{error.strerror}; use a folder that can be written to"


def blocked(folder: Path) -> str | None:
    """Say that a file stands where a folder, or one around it, would be; None if none does."""
    here = _nearest(folder)
    return None if here.is_dir() else f"{here} is a file; use a folder"


def _nearest(folder: Path) -> Path:
    """Find the folder, or the nearest one around it that is there."""
    place = folder.expanduser().absolute()
    return next(each for each in (place, *place.parents) if each.exists())


def write_json(path: Path, obj: Any) -> None:
    """Write an object as indented JSON, atomically; NaN and inf are spelled as Python reads them.

    Raises:
        TypeError: if `obj` holds something JSON has no word for, such as a tensor.
        OSError: if it cannot be written.
    """
    write_atomic(path, json.dumps(obj, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON in UTF-8, or nested deeper than Python reads.
    """
    return parse_json(path.read_bytes().decode("utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Read JSON from a text.

    Raises:
        ValueError: if it is not JSON, or nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def append_line(path: Path, obj: dict[str, Any]) -> None:
    """Append an object as one line of JSON, in a single write.

    Raises:
        TypeError: if `obj` holds something JSON has no word for; nothing is written then.
        OSError: if it cannot be written in full, such as on a full disk.
    """
    line = (json.dumps(obj) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        with naming(path):
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def write_lines(path: Path, objects: list[dict[str, Any]]) -> None:
    """Write a file of one JSON object a line, atomically.

    Raises:
        TypeError: if an object holds something JSON has no word for.
        OSError: if it cannot be written.
    """
    write_atomic(path, "".join(json.dumps(obj) + "\n" for obj in objects))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line; a last line without its end is left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a whole line is not JSON, or no object.
    """
    *lines, _torn = path.read_bytes().split(b"\n")
    objects = []
    for number, line in enumerate(lines, start=1):
        try:
            objects.append(parse_json(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number} is not JSON ({error}); delete that line") from error
        if not isinstance(objects[-1], dict):
            raise ValueError(f"{path}:{number} is no object of JSON; delete that line")
    return objects


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file as Hydra does (1e-5 is a number), interpolations left alone.

    Raises:
        ConfigError: if it is not YAML, or no mapping.
        FileNotFoundError: if there is no such file.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from moe_runner.options.errors import ConfigError

    try:
        loaded = OmegaConf.load(file)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        place = file if mark is None else f"{file}:{mark.line + 1}"
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ConfigError(f"{place} is not YAML ({reason}); mend it") from error
    except OSError as error:
        if error.errno is not None:  # of the system
            raise
        loaded = None  # a single word
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"{file} is no mapping; write a line `<option>: <value>` for each option")
    tree: Any = OmegaConf.to_container(loaded)
    return dict(tree)
