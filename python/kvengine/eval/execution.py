"""Running programs that a model wrote: a process of its own, with limits, away from everything.

The process has no environment, an empty folder that it cannot write to, no site packages, limited
time and memory, no network (where the system lets it leave the network's namespace), and a hook that
refuses to open files but those of Python's library, to start processes, and to reach for sockets.
This keeps mistakes of a model from doing harm; it is no wall against an attacker who knows Python's
insides: run what you do not trust at all in a virtual machine.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from kvengine._core import UnsupportedError

_MOST_SECONDS = 10.0
_MOST_BYTES = 512 << 20

_GUARD = r"""
import ctypes, os, resource, sys
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
word, program = sys.stdin.read().split("\n", 1)
try:
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # new user and network namespaces
except Exception:
    pass
for limit, value in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory),
                     (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0),
                     (resource.RLIMIT_NOFILE, 32)):
    resource.setrlimit(limit, (value, value))
out, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
for descriptor in (0, 1, 2):
    os.dup2(nowhere, descriptor)
library = tuple(os.path.realpath(path) + os.sep for path in sys.path if path)
refused = ("socket.", "subprocess.", "shutil.", "ctypes.", "pty.", "os.system", "os.exec", "os.fork",
           "os.posix_spawn", "os.spawn", "os.kill", "os.putenv", "os.unsetenv", "os.remove",
           "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink",
           "os.truncate", "os.utime", "os.setxattr", "os.chdir", "signal.",
           "webbrowser.", "urllib.", "http.", "ftplib.", "smtplib.", "sqlite3.", "syslog.",
           "resource.", "fcntl.", "mmap.")
writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
def guard(event, arguments, realpath=os.path.realpath, fsdecode=os.fsdecode):
    if event == "open":
        path, _, flags = arguments
        inside = isinstance(path, (str, bytes)) and realpath(fsdecode(path)).startswith(library)
        if not inside or (flags or 0) & writes:
            raise PermissionError("files are out of reach")
    elif event in ("os.listdir", "os.scandir"):
        path = arguments[0]  # imports list the folders of the library
        if not (isinstance(path, str) and (realpath(path) + os.sep).startswith(library)):
            raise PermissionError("folders are out of reach")
    elif event.startswith(refused):
        raise PermissionError(event + " is out of reach")
sys.addaudithook(guard)
del ctypes, resource, guard
exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
os.write(out, word.encode())
"""


@dataclass(frozen=True)
class Outcome:
    """Whether a program ran to its end; if not, "failed" (it raised or left) or "timed out"."""

    passed: bool
    reason: str = ""


def run_program(program: str, seconds: float = _MOST_SECONDS, memory: int = _MOST_BYTES) -> Outcome:
    """Run a program to its end, which it has to reach: leaving early is failing.

    Args:
        seconds: of the clock and of the processor.
        memory: bytes of address space.

    Raises:
        UnsupportedError: the system has no such limits.
    """
    if os.name != "posix":
        raise UnsupportedError("execution: expected a POSIX system, whose limits it needs")
    word = secrets.token_hex(16)  # said at the end, so that an early exit is no success
    limits = [str(max(int(seconds), 1)), str(memory)]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _GUARD, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            text = f"{word}\n{program}".encode("utf-8", "replace")
            said, _ = process.communicate(text, timeout=seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, "timed out")
        finally:
            _end(process)
    if process.returncode == -signal.SIGXCPU or process.returncode == -signal.SIGKILL:
        return Outcome(False, "timed out")
    passed = process.returncode == 0 and said == word.encode()
    return Outcome(passed, "" if passed else "failed")


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
