"""Two virtual machines that boot the same kernel and sum their memory, merged meanwhile: by PageONE, then by KSM.

QEMU emulates them (no KVM needed). The kernel is Debian's, the rest of a guest is one static program, ``guest.c``. It
fills memory with known pages, sums all of it again and again while it changes some, and prints each sum on the serial
line; run on the host, the same program says what is right. Then fresh guests are merged by KSM. What both have saved
and spent is printed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pageone import ksm

from .conftest import MIB, Domain

pytestmark = [
    pytest.mark.realworld,
    pytest.mark.needs("merge", "gcc", "program:qemu-system-x86_64"),
    pytest.mark.xdist_group("machine"),
]

QEMU = "qemu-system-x86_64"
MEMORY_MIB = 192
DATA_MIB = 64
SEEDS = (1, 2)
ROUNDS = 100_000
PAUSE_MS = 200
REFERENCE_ROUNDS = 2_000
SUMS_AFTER = 5  #: sums that each guest must print after merging has settled, and after detaching
BOOT_S = 90.0
#: What is saved has settled when it has not grown by a hundredth for so long, and in so many scans.
SETTLED_S, SETTLED_READINGS, SETTLE_MOST_S = 4.0, 4, 120.0
PAGE = 4096


# --- what a guest boots ----------------------------------------------------------------------------------------


def _kernel(folder: Path) -> Path:
    """Return a Debian kernel: the one installed, else one fetched into ``folder``; skips the test without either."""
    installed = sorted(Path("/boot").glob("vmlinuz-*"))
    if installed:
        return installed[-1]
    if shutil.which("apt-get") is None:
        pytest.skip("needs a kernel image in /boot (Debian: linux-image-cloud-amd64)")
    depends = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True, check=False
    ).stdout
    names = re.findall(r"Depends: (linux-image-\S+)", depends)
    got = subprocess.run(["apt-get", "download", *names], cwd=folder, capture_output=True, text=True, check=False)
    packages = list(folder.glob("linux-image-*.deb"))
    if not names or got.returncode or not packages:
        pytest.skip(f"needs a kernel image: none in /boot, and none could be fetched: {got.stderr.strip()[-200:]}")
    subprocess.run(["dpkg-deb", "-x", packages[0], folder / "kernel"], check=True)
    return next((folder / "kernel" / "boot").glob("vmlinuz-*"))


def _archive(program: bytes) -> bytes:
    """Return a file system to boot from: a console and the program, in the format "newc" of cpio(5)."""

    def entry(number: int, name: bytes, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
        return b"".join(part + b"\0" * (-len(part) % 4) for part in (head, data))

    return b"".join(
        (
            entry(1, b"dev", 0o040755),
            entry(2, b"dev/console", 0o020600, device=(5, 1)),
            entry(3, b"init", 0o100755, program),
            entry(0, b"TRAILER!!!", 0),
        )
    )


class Image:
    """Kernel, file system and the sums that are right."""

    def __init__(self, folder: Path) -> None:
        self.kernel = _kernel(folder)
        self.program, self.archive = folder / "guest", folder / "guest.cpio"
        source = Path(__file__).with_name("guest.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-static", "-o", self.program, source], check=True)
        self.archive.write_bytes(_archive(self.program.read_bytes()))
        self._right: dict[int, list[str]] = {}

    def command(self, seed: int, *, mergeable: bool) -> list[str]:
        words = f"{DATA_MIB} {seed} {ROUNDS} {PAUSE_MS}"
        options = {
            "-machine": f"pc,accel=tcg,mem-merge={'on' if mergeable else 'off'}",
            "-m": f"{MEMORY_MIB}M",
            "-kernel": str(self.kernel),
            "-initrd": str(self.archive),
            "-append": f"console=ttyS0 quiet panic=-1 -- {words}",
            "-serial": "stdio",
            "-display": "none",
        }
        return [QEMU, "-nodefaults", "-no-reboot", *(word for pair in options.items() for word in pair)]

    def right(self, seed: int) -> list[str]:
        """Return the sums of a guest, by running its program here."""
        if seed not in self._right:
            argv = [self.program, str(DATA_MIB), str(seed), str(REFERENCE_ROUNDS), "0"]
            told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
            self._right[seed] = re.findall(r"^SUM \d+ (\w+)$", told, re.MULTILINE)
        return self._right[seed]


class Guest:
    """A running guest; its serial line is read by a thread."""

    def __init__(self, process: subprocess.Popen[str], right: list[str]) -> None:
        self.process, self._right = process, right
        self.sums: list[str] = []
        self._lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.append(line)
            if match := re.search(r"SUM (\d+) (\w{16})$", line.rstrip()):
                assert int(match[1]) == len(self.sums)
                self.sums.append(match[2])

    def wait_sums(self, count: int, seconds: float = BOOT_S) -> None:
        def there() -> bool:
            assert self.process.poll() is None, "".join(self._lines[-30:])
            return len(self.sums) >= count

        Domain.until(there, f"{count} sums of a guest; it said: {''.join(self._lines[-5:])}", seconds)

    def check(self) -> None:
        """Compare every sum so far."""
        assert self.sums
        assert self.sums == self._right[: len(self.sums)]

    def anonymous_bytes(self) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"RssAnon:\s+(\d+) kB", text)[0]) * 1024


def _settle(saved: Callable[[], tuple[float, int]]) -> tuple[float, float]:
    """Wait until no more is saved; return how much is, and how long that took.

    ``saved`` tells how many bytes are, and how many scans have been made.
    """
    began = best_at = now = time.monotonic()
    best, best_reading = saved()
    reading = best_reading
    while (now - best_at < SETTLED_S or reading - best_reading < SETTLED_READINGS) and now - began < SETTLE_MOST_S:
        time.sleep(0.5)
        found, reading = saved()
        now = time.monotonic()
        if found > best * 1.01 + MIB:
            best, best_at, best_reading = found, now, reading
    return saved()[0], best_at - began


def _cpu_s(*pids: int) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def _boot(spawn: Any, image: Image, domain: Domain | None) -> list[Guest]:
    guests = []
    for seed in SEEDS:
        command = image.command(seed, mergeable=domain is None)
        environment = domain.environment if domain else None
        process = spawn(domain.run(*command) if domain else command, env=environment, stdin=subprocess.DEVNULL)
        guests.append(Guest(process, image.right(seed)))
    for guest in guests:
        guest.wait_sums(1)
    return guests


def _go_on(guests: list[Guest]) -> None:
    """Have every guest print some more sums, and compare all."""
    for guest in guests:
        guest.wait_sums(len(guest.sums) + SUMS_AFTER)
        guest.check()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    made = Image(tmp_path_factory.mktemp("guest"))
    for seed in SEEDS:
        made.right(seed)
    return made


def _tell(name: str, guests: list[Guest], **figures: Any) -> None:
    rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in figures.items()}
    sums = [len(guest.sums) for guest in guests]
    print(json.dumps({"test": f"guests, {name}", "right_sums": sums} | rounded), flush=True)


# --- the tests -------------------------------------------------------------------------------------------------


@pytest.mark.timeout(400)
def test_guests_sum_their_memory_right_while_pageone_merges_them(spawn: Any, domain: Domain, image: Image) -> None:
    guests = _boot(spawn, image, domain)
    pids = [guest.process.pid for guest in guests]

    def saved() -> tuple[float, int]:
        stats = domain.state()["stats"]
        return float(stats["saved_bytes"]), int(stats["period"])

    all_saved, seconds = _settle(saved)
    state = domain.state()
    cpu = _cpu_s(state["pid"], state["guardian"])
    stats = state["stats"]
    used = sum(guest.anonymous_bytes() for guest in guests)
    _go_on(guests)
    _tell(
        "PageONE",
        guests,
        saved_mib=all_saved / MIB,
        anonymous_mib=used / MIB,
        frames_mib=stats["frames"] * PAGE / MIB,
        settled_s=seconds,
        cpu_s=cpu,
        cpu_with_that_inside_guests_s=sum(stats["cpu_s"].values()),
        merged_pages=stats["pages_merged"],
        dropped_zero_pages=stats["pages_dropped"],
        wasted_merges=stats["wasted_merges"],
        mappings=[target["stats"]["mappings"] for target in state["targets"]],
        left_huge=stats["left_huge"],
        left_for_budget=stats["left_for_budget"],
        pause_p99_ms=stats["pauses"]["p99_ms"],
        pause_max_ms=stats["pauses"]["max_ms"],
    )
    assert stats["pages_merged"] > 5_000
    domain.detach(*pids)
    _go_on(guests)


@pytest.mark.needs("ksm")
@pytest.mark.timeout(400)
def test_guests_sum_their_memory_right_while_ksm_merges_them(spawn: Any, image: Image) -> None:
    if ksm.read_counters().pages_shared:
        pytest.skip("KSM is in use on this machine")
    with ksm.driven(run=1, sleep_millisecs=20, pages_to_scan=5000):
        before = ksm.ksmd_cpu_s()
        guests = _boot(spawn, image, None)

        def saved() -> tuple[float, int]:
            counters = ksm.read_counters()
            pages = (counters.pages_sharing or 0) + (counters.ksm_zero_pages or 0)
            return float(pages * PAGE - (ksm.metadata_bytes() or 0)), counters.full_scans or 0

        all_saved, seconds = _settle(saved)
        cpu = ksm.ksmd_cpu_s() - before
        counters = ksm.read_counters()
        _go_on(guests)
        _tell(
            "KSM",
            guests,
            saved_mib=all_saved / MIB,
            anonymous_mib=sum(guest.anonymous_bytes() for guest in guests) / MIB,
            settled_s=seconds,
            cpu_s=cpu,
            pages_sharing=counters.pages_sharing,
            pages_shared=counters.pages_shared,
        )
        for guest in guests:
            guest.process.kill()
