"""What all tests share: needs that are skipped with a reason, processes that never outlive a test, ordinary users.

A test says what it needs of the machine with ``@pytest.mark.needs("root", "ksm")``; where that is not there it is
skipped and the reason shown. Processes are started with the fixture ``spawn`` (or ``worker``, a process that builds
known memory and checks it) and are killed by their own process group when the test ends, whatever happened. The
fixture ``as_user`` runs Python as an ordinary user, also when this checkout and its interpreter lie under a folder
that no ordinary user can enter.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "pageone"

# A user id of nobody's: tests of an ordinary user must not meet that user's other processes.
ORDINARY_UID = 54321


# --- what whoever starts the suite may have set otherwise -------------------------------------------------------

#: A script that starts the suite in the background has these ignored, which every process below would inherit.
_SIGNALS = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT),
)
#: Files that tests make for other users are to be read by them.
_UMASK = 0o022
#: Open files of a process: what most systems allow one, so that nothing passes here that would not there.
_FILES = 1024


def pytest_configure(config: pytest.Config) -> None:
    """Set what this process, and so all that tests start, may have inherited: signals, limits, a mask of files."""
    for number in _SIGNALS:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(_UMASK)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, hard) if hard >= 0 else _FILES, hard))


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Whatever a test calls leaves no signal blocked: all that later tests start would inherit it."""
    yield
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, [])
    assert not blocked


# --- needs ----------------------------------------------------------------------------------------------------


def _finding_missing(name: str) -> str | None:
    from pageone.doctor import diagnose

    finding = _diagnosis_cache.setdefault("diagnosis", diagnose()).finding(name)
    return None if finding.state != "missing" else f"{name}: {finding.value}; {finding.enable}"


_diagnosis_cache: dict[str, Any] = {}


def _merge_missing() -> str | None:
    from pageone.doctor import diagnose

    diagnosis = _diagnosis_cache.setdefault("diagnosis", diagnose())
    lacking = [f"{f.name}: {f.value}" for f in diagnosis.findings if f.needed and f.state == "missing"]
    return f"merging is not possible here ({'; '.join(lacking)})" if lacking else None


def _root_missing() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _ksm_missing() -> str | None:
    if not os.path.exists("/sys/kernel/mm/ksm/run"):
        return "needs a kernel with KSM"
    return None if os.access("/sys/kernel/mm/ksm/run", os.W_OK) else "needs root to drive KSM"


def _thp_missing() -> str | None:
    try:
        mode = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "needs a kernel with transparent huge pages"
    return "transparent huge pages are switched off" if "[never]" in mode else None


def _swap_missing() -> str | None:
    return None if len(Path("/proc/swaps").read_text().splitlines()) > 1 else "needs swap space"


def _numa_missing() -> str | None:
    return None if os.path.exists("/sys/devices/system/node/node1") else "needs a second NUMA node"


#: The native core with failpoints, and where `make` notes when it has built it and the other one.
FAILPOINTS = ROOT / "target" / "release" / "examples" / "libnative_with_failpoints.so"
_STAMPS = ROOT / ".stamps"


def _failpoints_missing() -> str | None:
    try:
        old = (_STAMPS / "failpoints").stat().st_mtime < (_STAMPS / "native").stat().st_mtime
    except FileNotFoundError:
        old = True
    return "needs `make failpoints`, newer than the native core" if old or not FAILPOINTS.exists() else None


def _program_missing(program: str) -> str | None:
    return None if shutil.which(program) else f"needs the program {program}"


def _module_missing(module: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"needs the Python module {module}"


NEEDS: dict[str, Callable[[], str | None]] = {
    "root": _root_missing,
    "merge": _merge_missing,
    "pagemap_scan": functools.partial(_finding_missing, "PAGEMAP_SCAN"),
    "userfaultfd": functools.partial(_finding_missing, "userfaultfd"),
    "ptrace": functools.partial(_finding_missing, "stop and read"),
    "ksm": _ksm_missing,
    "thp": _thp_missing,
    "swap": _swap_missing,
    "numa": _numa_missing,
    "gcc": functools.partial(_program_missing, "gcc"),
    "failpoints": _failpoints_missing,
}


def lacking(what: str) -> str | None:
    """Return why ``what`` (a key of ``NEEDS``, ``program:NAME`` or ``module:NAME``) is not there; None if it is."""
    if what.startswith("program:"):
        return _program_missing(what.removeprefix("program:"))
    if what.startswith("module:"):
        return _module_missing(what.removeprefix("module:"))
    return NEEDS[what]()


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that set the whole machine (KSM's knobs, swap), or rely on it, apart when several run at once."""
    # Where there is swap, frames are not watched for who gave up rights.
    files = ("_ksm.py", "test_truth.py", "test_pressure.py", "test_engine_bench.py", "test_rights.py")
    for item in items:
        path = item.path.as_posix()
        wanted = [what for marker in item.iter_markers("needs") for what in marker.args]
        if "ksm" in wanted or "/ksm/" in path or path.endswith(files):
            item.add_marker(pytest.mark.xdist_group("machine"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = [what for marker in item.iter_markers("needs") for what in marker.args]
    if item.get_closest_marker("root"):
        wanted.append("root")
    for what in wanted:
        reason = lacking(what)
        if reason:
            pytest.skip(reason)


@pytest.fixture
def needs_root() -> None:
    if reason := lacking("root"):
        pytest.skip(reason)


@pytest.fixture
def needs_ksm() -> None:
    if reason := lacking("ksm"):
        pytest.skip(reason)


@pytest.fixture
def needs_merge() -> None:
    if reason := lacking("merge"):
        pytest.skip(reason)


@pytest.fixture
def failpoints() -> Path:
    """Return the native core with failpoints, and that dies where it is told to."""
    if reason := lacking("failpoints"):
        pytest.skip(reason)
    return FAILPOINTS


@pytest.fixture
def activate(failpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Activate failpoints, by their names with commas between, in guardians that the test starts from then on.

    These run the native core that is built for it; this process, and whatever else it starts, keep what users get.
    """

    def switch_on(names: str) -> None:
        monkeypatch.setattr("pageone._native.__file__", str(failpoints))  # what a guardian is told to load
        monkeypatch.setenv("PAGEONE_FAILPOINTS", names)

    return switch_on


# --- processes ------------------------------------------------------------------------------------------------


#: Begins a program that maps memory as it likes: calls of the C library with their types, and pages that all differ.
WITH_LIBC = """
import ctypes, mmap, os, signal, sys
SIZE = 4096
libc = ctypes.CDLL(None, use_errno=True)
word = ctypes.c_size_t
libc.mmap.restype = libc.mremap.restype = word
libc.mmap.argtypes = [word, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, word]
libc.mremap.argtypes = [word, word, word, ctypes.c_int, word]
libc.munmap.argtypes = [word, word]
libc.madvise.argtypes = [word, word, ctypes.c_int]
some = bytes(range(1, 252)) * 20
def page(k):
    return k.to_bytes(4, "little") + some[k % 251 : k % 251 + 4092]
"""


class Spawner:
    """Starts processes, each in a session of its own, and ends all of them, with their descendants, by id."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def __call__(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[str]:
        """Start a process with text pipes (``options`` go to ``Popen``); it dies with the test."""
        settings: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "start_new_session": True,
        } | options
        process: subprocess.Popen[str] = subprocess.Popen([os.fspath(a) for a in argv], **settings)
        self.processes.append(process)
        return process

    def python(self, code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
        """Start this interpreter on ``code``, with unbuffered output."""
        return self([sys.executable, "-u", "-c", code, *args], **options)

    def mapper(self, code: str) -> subprocess.Popen[str]:
        """Start this interpreter on ``WITH_LIBC`` and ``code``."""
        return self.python(WITH_LIBC + code)

    def close(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # the leader of its session: the group has its id
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(timeout=20)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()


@pytest.fixture
def spawn() -> Iterator[Spawner]:
    spawner = Spawner()
    try:
        yield spawner
    finally:
        spawner.close()


# --- an ordinary user -----------------------------------------------------------------------------------------


def _enterable(path: Path) -> bool:
    """Whether everybody can read what is at ``path``: every folder above it can be entered."""
    path = path.resolve()
    for folder in (path, *path.parents):
        mode = folder.stat().st_mode
        if stat.S_ISDIR(mode) and not mode & stat.S_IXOTH:
            return False
    return bool(path.stat().st_mode & stat.S_IROTH)


def folder_for_all(prefix: str) -> Path:
    """Make a folder that every user can enter, with a short path: not every TMPDIR is such a place."""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
        if len(place) <= 40 and os.access(place, os.W_OK) and _enterable(Path(place)):
            made = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
            made.chmod(0o755)
            return made
    pytest.skip("needs a folder for temporary files that every user can enter")


def _distributions(names: Sequence[str]) -> set[str]:
    """Return the installed distributions that ``names`` need, themselves included."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found.add(name)
        for line in requires:
            if "extra ==" not in line:
                match = re.match(r"[A-Za-z0-9._-]+", line)
                assert match, line
                todo.append(match.group())
    return found


class OrdinaryUser:
    """Runs Python with this package as an ordinary user: in a test of root another id, else the user's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_other = os.geteuid() == 0
        self.uid = ORDINARY_UID if self.is_other else os.geteuid()
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "200",
        }
        self.python = sys.executable
        for name in ("home", "run"):
            (folder / name).mkdir(mode=0o700)
            if self.is_other:
                os.chown(folder / name, self.uid, self.uid)
        if self.is_other:
            self._settle()

    def _settle(self) -> None:
        """Bring interpreter and packages where the user can read them; copied only if they are not there yet."""
        library = self.folder / "library"
        library.mkdir()
        for name in sorted(_distributions(["numpy", "typer", "rich", "psutil"])):
            for file in importlib.metadata.files(name) or []:
                if file.parts[0] != ".." and file.suffix != ".pyc" and "tests" not in file.parts:
                    target = library / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(str(file.locate()), target)
        shutil.copytree(PACKAGE, library / "pageone", ignore=shutil.ignore_patterns("__pycache__"))
        self.environment["PYTHONPATH"] = str(library)
        real = Path(sys.executable).resolve()
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        if _enterable(real) and _enterable(Path(os.__file__)):
            self.python = str(real)
        else:
            home = self.folder / "python"
            standard = Path(os.__file__).parent
            skip = shutil.ignore_patterns("__pycache__", "test", "tests", "site-packages", "idlelib", "config-*")
            shutil.copytree(standard, home / "lib" / f"python{version}", ignore=skip)
            for shared in (standard.parent).glob("libpython*.so*"):
                shutil.copy2(shared, home / "lib" / shared.name)
            (home / "bin").mkdir()
            shutil.copy2(real, home / "bin" / "python3")
            self.python = str(home / "bin" / "python3")
            self.environment |= {"PYTHONHOME": str(home), "LD_LIBRARY_PATH": str(home / "lib")}
        subprocess.run(["chmod", "-R", "a+rX", str(library), *map(str, self.folder.glob("python"))], check=True)

    @property
    def identity(self) -> dict[str, Any]:
        """Options of ``Popen`` that make a child this user."""
        options: dict[str, Any] = {"env": self.environment, "cwd": "/"}
        if self.is_other:
            options |= {"user": self.uid, "group": self.uid, "extra_groups": []}
        return options

    def run(self, *args: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``python *args`` as the user and return what it printed; the exit code is the caller's to check."""
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": timeout} | options
        return subprocess.run([self.python, *args], **(self.identity | settings))

    def pageone(self, *args: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line of this package as the user."""
        return self.run("-c", "from pageone.cli import main; main()", *args, timeout=timeout, **options)


@pytest.fixture(scope="session")
def distributions() -> Callable[[Sequence[str]], set[str]]:
    """Return the installed distributions that those of these names need, themselves included."""
    return _distributions


@pytest.fixture(scope="session")
def compiled() -> Iterator[Callable[..., Path]]:
    """Compile a C program of the tests, ``compiled(source, *options)``, once; every user can run what it returns."""
    folder: Path | None = None
    made: dict[tuple[Path, tuple[str, ...]], Path] = {}

    def compile_it(source: Path, *options: str) -> Path:
        nonlocal folder
        # Not tmp_path: pytest's folders are closed to other users.
        folder = folder or folder_for_all("pageone-programs-")
        if (source, options) not in made:
            program = folder / f"{len(made)}-{source.stem}"
            subprocess.run(["gcc", "-O2", "-pthread", "-w", *options, "-o", program, source], check=True)
            program.chmod(0o755)
            made[source, options] = program
        return made[source, options]

    try:
        yield compile_it
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def as_user() -> Iterator[OrdinaryUser]:
    # Not tmp_path: pytest's folders are closed to other users.
    folder = folder_for_all("pageone-user-")
    try:
        yield OrdinaryUser(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- control groups -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _group(groups: Path) -> Iterator[Path]:
    group = groups / f"pageone-test-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        yield group
    finally:
        deadline = time.monotonic() + 10
        while group.exists() and time.monotonic() < deadline:
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                group.rmdir()
            time.sleep(0.02)


@pytest.fixture
def control_group() -> Callable[[Path], contextlib.AbstractContextManager[Path]]:
    """Make a new control group below a folder for the length of a ``with``; what runs in it at the end is killed."""
    return _group


class MemoryGroup:
    """The control groups that limit memory on this machine, of whichever version."""

    def __init__(self) -> None:
        from pageone.live.groups import Groups

        here = Groups()
        self.version, group = here.of(os.getpid())
        folders = [h.folder(group) for h in here._hierarchies if h.version == self.version]
        self.folder = next((f for f in folders if f is not None), Path("/nowhere"))
        self.limit = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        self.group = self.folder
        self.usage = "memory.usage_in_bytes" if self.version == 1 else "memory.current"


@pytest.fixture
def memory() -> Iterator[MemoryGroup]:
    """A new control group, and the names of its files; skipped where none with a limit can be made."""
    found = MemoryGroup()
    try:
        with _group(found.folder) as group:
            if not (group / found.limit).exists():
                pytest.skip(f"{found.folder}: no memory control in the groups below it")
            found.group = group
            yield found
    except OSError as error:
        pytest.skip(f"needs a memory control group of its own: {error}")


@pytest.fixture(scope="session")
def make_folder_for_all() -> Callable[[str], Path]:
    """Make a folder that every user can enter; whoever asked removes it."""
    return folder_for_all


@pytest.fixture
def mount_folder(make_folder_for_all: Callable[[str], Path]) -> Iterator[Path]:
    """A folder in which every user may mount a file system, and on which none is left mounted."""
    made = make_folder_for_all("pageone-holds-")
    made.chmod(0o777)
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(made)], capture_output=True, check=False)
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python ARGS`` as this user and return what it printed, as :meth:`OrdinaryUser.run` does for another."""

    def run(*args: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": timeout} | options
        return subprocess.run([sys.executable, *args], **settings)

    return run


# --- the command line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pageone() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``pageone ARGS`` as this user and return what it printed."""

    def run(*args: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": timeout} | options
        argv = [sys.executable, "-c", "from pageone.cli import main; main()", *args]
        return subprocess.run(argv, **settings)

    return run
