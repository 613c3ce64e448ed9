"""What the kernel checks of KSM (``ksm_tests``, ``ksm_functional_tests``), asked of PageONE on live processes.

A target here is a small Python process that runs the statements it is sent. Frames are counted in the page tables
(``/proc/PID/pagemap``, so these tests need root), never by the engine's own account.
"""

import contextlib
import json
import os
import time

import numpy as np
import pytest

from pageone.engine import Engine

pytestmark = pytest.mark.needs("root", "merge")

PAGE = 4096

TARGET = """
import ctypes, json, mmap, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
areas = {}
def area(name, content, huge=False):
    "Make a private anonymous mapping with this content, small pages unless huge."
    length = len(content)
    m = mmap.mmap(-1, length + (4 << 20), flags=PRIVATE)  # room to start at a huge page
    base = ctypes.addressof(ctypes.c_char.from_buffer(m))
    start = (base + (2 << 20) - 1) & -(2 << 20)
    libc.madvise(ctypes.c_void_p(base), ctypes.c_size_t(length + (4 << 20)), 14 if huge else 15)
    m[start - base:start - base + length] = content
    areas[name] = (m, start - base, start, length)
    return start
def at(name): return areas[name][2]
def get(name, first=0, length=None):
    m, offset, _, size = areas[name]
    return m[offset + first:offset + first + (size if length is None else length)]
def put(name, first, data):
    m, offset, _, _ = areas[name]
    m[offset + first:offset + first + len(data)] = data
def digest(name):
    import hashlib
    return hashlib.sha256(get(name)).hexdigest()
def call(name, *args):
    ctypes.set_errno(0)
    r = getattr(libc, name)(*[ctypes.c_long(a) for a in args])
    return r if r != -1 else -ctypes.get_errno()
scope = globals()
for line in sys.stdin:
    code = json.loads(line)
    try:
        answer = eval(code, scope)
    except SyntaxError:
        exec(code, scope)
        answer = None
    print(json.dumps(answer, default=str), flush=True)
"""


class Target:
    def __init__(self, spawn):
        self.process = spawn.python(TARGET, stderr=None)
        self.pid = self.process.pid

    def do(self, code):
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the target has ended with {self.process.wait()}"
        return json.loads(line)

    def frames(self, name, pid=None):
        """The physical frame of every page of an area, each read first.

        Asked again where a page is not there just then: the kernel is moving it, or has paged it out.
        """
        for _ in range(50):
            if pid is None:
                self.do(f"sum(get({name!r})[::{PAGE}])")
            start, length = self.do(f"list(areas[{name!r}][2:4])")
            with open(f"/proc/{pid or self.pid}/pagemap", "rb") as file:
                file.seek(start // PAGE * 8)
                entries = np.frombuffer(file.read(length // PAGE * 8), np.uint64)
            present = (entries >> np.uint64(63)).astype(bool)
            if present.all():
                break
            time.sleep(0.01)
        assert present.all(), f"pages are not present: {[hex(e) for e in entries[~present]]}"
        return entries & np.uint64((1 << 55) - 1)

    def zero_frame(self):
        """The kernel's zero page: what a page that was only read maps."""
        self.do("z = mmap.mmap(-1, 4096, flags=PRIVATE); z[0]; za = ctypes.addressof(ctypes.c_char.from_buffer(z))")
        self.do("libc.madvise(ctypes.c_void_p(za), ctypes.c_size_t(4096), 4)")
        address = self.do("[za, z[0]][0]")
        with open(f"/proc/{self.pid}/pagemap", "rb") as file:
            file.seek(address // PAGE * 8)
            return np.frombuffer(file.read(8), np.uint64)[0] & np.uint64((1 << 55) - 1)


@pytest.fixture
def target(spawn):
    return Target(spawn)


@contextlib.contextmanager
def engine_on(*targets, **settings):
    with Engine(period=0.05, **settings) as engine:
        for target in targets:
            engine.attach(target.pid)
        yield engine
        for target in engine.targets:
            detach(engine, target)


def detach(engine, target, tries=30):
    """Detach; on a busy machine a target may not stop in time, and is asked again."""
    from pageone.errors import TargetError

    for attempt in range(tries):
        try:
            return engine.detach(target)
        except TargetError:
            if attempt == tries - 1 or not target.attached:
                raise
            time.sleep(0.05)
    raise AssertionError("unreachable")


def settle(engine, done, steps=40):
    """Do periods until ``done()`` holds."""
    for _ in range(steps):
        engine.step()
        if done():
            return
        time.sleep(0.01)
    pytest.fail(f"not within {steps} periods; {engine.stats.states}, refused: {engine.stats.refused}")


def random_pages(count, seed=1):
    return np.random.default_rng(seed).integers(1, 256, (count, PAGE), np.uint8)


def fill(target, name, pages, **options):
    """Give a target an area with these pages, through a file that is gone afterwards."""
    fd = os.memfd_create("content")
    try:
        os.write(fd, np.ascontiguousarray(pages).tobytes())
        target.do(f"area({name!r}, open('/proc/{os.getpid()}/fd/{fd}', 'rb').read(), **{options!r})")
    finally:
        os.close(fd)


def content(target, name):
    return target.do(f"digest({name!r})")


def distinct(frames):
    return len(np.unique(frames))


# --- merging ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [2, 7, 256])
def test_equal_pages_use_exactly_the_frames_that_the_sharer_cap_predicts(target, cap):
    pages = np.repeat(random_pages(1), 600, axis=0)
    fill(target, "a", pages)
    before = content(target, "a")
    with engine_on(target, max_sharing=cap, repeat_share=0.0) as engine:
        settle(engine, lambda: distinct(target.frames("a")) == -(-600 // cap))
        assert content(target, "a") == before


def test_pages_of_two_processes_share_frames_and_distinct_pages_do_not(spawn):
    one, two = Target(spawn), Target(spawn)
    pages = random_pages(200)
    own = random_pages(50, seed=2)
    fill(one, "a", pages)
    fill(two, "a", pages)
    fill(two, "b", own)
    with engine_on(one, two) as engine:
        settle(engine, lambda: (one.frames("a") == two.frames("a")).all())
        assert distinct(one.frames("a")) == 200
        assert distinct(np.concatenate([one.frames("a"), two.frames("b")])) == 250


def test_one_byte_changed_in_each_of_two_pages_leaves_nothing_shared(target):
    fill(target, "a", np.repeat(random_pages(1), 2, axis=0))
    with engine_on(target) as engine:
        settle(engine, lambda: distinct(target.frames("a")) == 1)
        shared = engine.stats.sharers
        target.do(f"[put('a', 0, b'\\x01'), put('a', {PAGE}, b'\\x02')]")
        assert distinct(target.frames("a")) == 2
        for _ in range(4):
            engine.step()
        assert distinct(target.frames("a")) == 2
        assert engine.stats.sharers <= shared - 2
        assert target.do(f"[get('a')[0], get('a')[{PAGE}]]") == [1, 2]


@pytest.mark.needs("thp")
def test_equal_pages_inside_huge_pages_are_merged(target):
    pages = np.repeat(random_pages(4), 256, axis=0)
    fill(target, "a", pages, huge=True)
    before = content(target, "a")
    with engine_on(target) as engine:
        settle(engine, lambda: distinct(target.frames("a")) <= 64)
        assert content(target, "a") == before


@pytest.mark.needs("numa")
def test_equal_pages_on_different_nodes_share_one_frame(target):
    one = random_pages(1)
    for node in (0, 1):
        target.do(f"node = ctypes.c_ulong(1 << {node}); libc.syscall(238, 2, ctypes.byref(node), ctypes.c_ulong(64))")
        fill(target, f"node{node}", np.repeat(one, 20, axis=0))
    with engine_on(target) as engine:
        settle(engine, lambda: distinct(np.concatenate([target.frames("node0"), target.frames("node1")])) == 1)


def test_counters_agree_with_the_page_tables(spawn):
    one, two = Target(spawn), Target(spawn)
    pages = np.concatenate([random_pages(100), np.zeros((50, PAGE), np.uint8)])
    for target in (one, two):
        fill(target, "a", pages)
    with engine_on(one, two) as engine:
        before = engine.stats
        settle(engine, lambda: distinct(np.concatenate([one.frames("a"), two.frames("a")])) == 101)
        stats = engine.stats
        assert before.sharers == before.frames == 0
        # At least what was put there; the interpreters of the two have equal pages too.
        assert stats.sharers >= 200
        assert stats.frames >= 100
        assert stats.pages_merged >= 200
        assert stats.pages_dropped >= 100
        assert sum(stats.states.values()) == stats.tracked
        assert 0 < stats.saved_bytes <= (stats.sharers - stats.frames + stats.pages_dropped) * PAGE


# --- zero pages ------------------------------------------------------------------------------------------------


def test_empty_pages_map_the_kernels_zero_page_and_a_write_gives_them_memory_again(target):
    fill(target, "a", np.zeros((100, PAGE), np.uint8))
    zero = target.zero_frame()
    with engine_on(target) as engine:
        assert distinct(target.frames("a")) == 100
        settle(engine, lambda: (target.frames("a") == zero).all())
        dropped = engine.stats.pages_dropped
        assert dropped >= 100
        target.do(f"[put('a', page * {PAGE}, b'\\x05') for page in range(0, 100, 2)]")
        frames = target.frames("a")
        assert distinct(frames[::2]) == 50
        assert zero not in frames[::2]
        assert (frames[1::2] == zero).all()
        assert target.do("get('a')[0]") == 5
        assert target.do(f"sum(get('a', {PAGE}, {PAGE}))") == 0


def test_half_of_the_empty_pages_unmapped_leaves_the_other_half_empty_and_the_process_well(target):
    fill(target, "a", np.zeros((64, PAGE), np.uint8))
    zero = target.zero_frame()
    with engine_on(target) as engine:
        settle(engine, lambda: (target.frames("a") == zero).all())
        assert target.do(f"call('munmap', at('a'), {32 * PAGE})") == 0
        for _ in range(3):
            engine.step()
        assert target.do(f"sum(get('a', {32 * PAGE}))") == 0


# --- unmerging -------------------------------------------------------------------------------------------------


def test_detaching_gives_every_page_memory_of_its_own_and_the_same_bytes(target):
    fill(target, "a", np.repeat(random_pages(3), 40, axis=0))
    before = content(target, "a")
    with engine_on(target) as engine:
        settle(engine, lambda: distinct(target.frames("a")) < 12)
        detach(engine, engine.targets[0])
        assert distinct(target.frames("a")) == 120
        assert content(target, "a") == before
        # And once more: attached again, merged again.
        engine.attach(target.pid)
        settle(engine, lambda: distinct(target.frames("a")) < 12)
        assert content(target, "a") == before
    assert distinct(target.frames("a")) == 120


def test_discarded_pages_are_empty_and_stay_so_through_unmerging(target):
    fill(target, "a", np.repeat(random_pages(1), 64, axis=0))
    with engine_on(target) as engine:
        settle(engine, lambda: distinct(target.frames("a")) < 4)
        for page in range(0, 64, 4):
            assert target.do(f"call('madvise', at('a') + {page * PAGE}, {PAGE}, 4)") == 0
        empty = f"[sum(get('a', p * {PAGE}, {PAGE})) for p in range(0, 64, 4)]"
        assert target.do(empty) == [0] * 16
        kept = target.do(f"get('a', {PAGE}, {3 * PAGE}).hex()")
        detach(engine, engine.targets[0])
        assert target.do(empty) == [0] * 16
        assert target.do(f"get('a', {PAGE}, {3 * PAGE}).hex()") == kept
        frames = target.frames("a").reshape(16, 4)[:, 1:]
        assert distinct(frames) == 48


def test_memory_that_a_process_watches_itself_with_userfaultfd_is_left_alone_and_unharmed(target):
    fill(target, "a", np.repeat(random_pages(1), 32, axis=0))
    fill(target, "b", np.repeat(random_pages(1), 32, axis=0))
    # userfaultfd, UFFDIO_API with write-protection, UFFDIO_REGISTER in that mode, UFFDIO_WRITEPROTECT.
    protect = f"""
import fcntl, struct
fd = libc.syscall(323, os.O_NONBLOCK)
api = bytearray(struct.pack('QQQ', 0xAA, 1, 0)); fcntl.ioctl(fd, 0xC018AA3F, api)
reg = bytearray(struct.pack('QQQQ', at('a'), {32 * PAGE}, 2, 0)); fcntl.ioctl(fd, 0xC020AA00, reg)
wp = bytearray(struct.pack('QQQ', at('a'), {32 * PAGE}, 1)); fcntl.ioctl(fd, 0xC018AA06, wp)
"""
    target.do(protect)
    before = content(target, "a")
    with engine_on(target) as engine:
        settle(engine, lambda: distinct(target.frames("b")) == 1)
        assert distinct(target.frames("a")) == 32
    assert content(target, "a") == before
    # Its own protection stands: a write waits for the process's own handler, which lifts it.
    # (memset through ctypes: it waits without holding the interpreter's lock)
    target.do("import threading; t = threading.Thread(target=libc.memset, args=(ctypes.c_void_p(at('a')), 7, 1))")
    target.do("t.start()")
    event = "[time.sleep(0.1), struct.unpack_from('B', os.read(fd, 32))[0]][1]"
    assert target.do(event) == 0x12
    target.do(f"fcntl.ioctl(fd, 0xC018AA06, bytearray(struct.pack('QQQ', at('a'), {32 * PAGE}, 0)))")
    assert target.do("[t.join(), get('a')[0]][1]") == 7


def test_a_merged_page_without_access_can_be_written_through_proc_mem_and_only_it_changes(target):
    fill(target, "a", np.repeat(random_pages(1), 16, axis=0))
    with engine_on(target) as engine:
        settle(engine, lambda: distinct(target.frames("a")) == 1)
        other = target.do(f"get('a', {PAGE}, {PAGE}).hex()")
        assert target.do(f"call('mprotect', at('a'), {16 * PAGE}, 0)") == 0
        target.do("m = os.open('/proc/self/mem', os.O_RDWR); os.pwrite(m, b'\\x09', at('a') + 5)")
        assert target.do(f"call('mprotect', at('a'), {16 * PAGE}, 3)") == 0
        assert target.do("get('a')[5]") == 9
        assert target.do(f"get('a', {PAGE}, {PAGE}).hex()") == other
        frames = target.frames("a")
        assert distinct(frames) == 2
        assert distinct(frames[1:]) == 1
        detach(engine, engine.targets[0])
    assert target.do("get('a')[5]") == 9
    assert distinct(target.frames("a")) == 16


# --- fork and exec ---------------------------------------------------------------------------------------------


def test_a_forked_child_has_the_bytes_and_its_writes_are_its_own(target):
    fill(target, "a", np.repeat(random_pages(1), 32, axis=0))
    before = content(target, "a")
    with engine_on(target) as engine:
        settle(engine, lambda: distinct(target.frames("a")) == 1)
        shared = engine.stats.sharers
        child = """
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    same = digest('a') == before
    put('a', 0, bytes([get('a')[0] ^ 255]))
    changed = digest('a') != before
    call('madvise', at('a') + 4096, 4096, 4)
    empty = sum(get('a', 4096, 4096)) == 0
    os.write(w, bytes([same, changed, empty]))
    os._exit(0)
os.close(w)
seen = list(os.read(r, 3))
os.waitpid(pid, 0)
"""
        target.do(f"before = {before!r}")
        target.do(child)
        assert target.do("seen") == [1, 1, 1]
        assert content(target, "a") == before
        for _ in range(3):
            engine.step()
        # The frames of the parent are where they were: the end of a child frees nothing of its.
        assert engine.stats.sharers >= shared - 1
        assert distinct(target.frames("a")) == 1


def test_a_forked_child_keeps_its_bytes_when_its_parent_unmerges_and_ends(spawn):
    parent = Target(spawn)
    fill(parent, "a", np.repeat(random_pages(1), 32, axis=0))
    before = content(parent, "a")
    with engine_on(parent) as engine:
        settle(engine, lambda: distinct(parent.frames("a")) == 1)
        child = """
r, w = os.pipe(); go_r, go_w = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(go_r, 1)
    os.write(w, digest('a').encode())
    os._exit(0)
"""
        parent.do(child)
        detach(engine, engine.targets[0])
        for _ in range(4):
            engine.step()
        assert parent.do("[os.write(go_w, b'x'), os.read(r, 64).decode(), os.waitpid(pid, 0)][1]") == before


def test_a_child_that_execs_runs_its_program_and_the_parent_stays_merged(target):
    fill(target, "a", np.repeat(random_pages(1), 32, axis=0))
    before = content(target, "a")
    with engine_on(target) as engine:
        settle(engine, lambda: distinct(target.frames("a")) == 1)
        run = (
            "__import__('subprocess').run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True).stdout.decode()"
        )
        assert target.do(run) == "42\n"
        engine.step()
        assert content(target, "a") == before
        assert distinct(target.frames("a")) == 1


def test_a_target_that_execs_is_untracked_and_its_new_program_runs(spawn, target):
    fill(target, "a", np.repeat(random_pages(1), 32, axis=0))
    other = Target(spawn)
    fill(other, "a", np.repeat(random_pages(1), 32, axis=0))
    with engine_on(target, other) as engine:
        settle(engine, lambda: (target.frames("a") == other.frames("a")).all())
        target.process.stdin.write(json.dumps("os.execv(sys.executable, [sys.executable, '-c', 'print(42)'])") + "\n")
        target.process.stdin.flush()
        assert target.process.stdout.readline() == "42\n"
        assert target.process.wait(20) == 0
        for _ in range(3):
            engine.step()
        assert [t.pid for t in engine.targets] == [other.pid]
        assert distinct(other.frames("a")) == 1
