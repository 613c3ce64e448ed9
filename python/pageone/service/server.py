"""The process of one engine: answers requests over its socket, follows its members, ends with the last of them.

For: ``client``, which starts it (``main``) with one JSON argument and reads from a pipe how that went. One thread,
the main one, owns the engine and the members; each connection has a thread that reads requests, has the main
thread carry them out between two steps, and sends the reply. What must outlive this process is the guardian's.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pageone import __version__, procfs
from pageone.engine.queue import BACKGROUND_CPU
from pageone.errors import BadTargetError, PageOneError, TargetError, UsageError
from pageone.service import protocol
from pageone.service.members import Member, Members, command_line, owner
from pageone.service.place import Place

if TYPE_CHECKING:
    from pageone.engine import Target

__all__ = ["Options", "Server", "main"]

#: Members and their children are checked so often, seconds; at most, for a shorter period checks with it.
CHECK_S = 0.5
#: And so often, for so long, after a command was started: programs that put themselves in the background are quick.
CHECK_NEW_S, NEW_S = 0.02, 1.0
#: A process is attached when it has been known for so long, seconds (or for a period, if that is shorter).
SETTLE_S = 1.0
#: A server that nobody has given a target ends after so many seconds.
UNUSED_S = 10.0
#: Connections at a time; a connection must send its request within so many seconds.
CONNECTIONS_MAX, REQUEST_S = 64, 10.0
#: A question for the state is answered with the last one known when the engine is busy for longer than this.
STATUS_S = 1.0
#: A server that ends waits so long for its last replies to be sent.
LAST_WORD_S = 0.2
#: Errors of ``accept`` that pass, and after how many seconds it is tried again.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED, errno.EAGAIN, errno.EINTR)
ACCEPT_AGAIN_S = 0.1
#: Processes of one request.
PIDS_MAX = 4096


@dataclass(frozen=True)
class Options:
    """What a server is started with."""

    folder: str
    name: str
    uid: int | None = None  #: whose processes it may take; None for a domain that was named
    period: float = 20.0
    cpu: str = BACKGROUND_CPU

    @property
    def place(self) -> Place:
        """Where its socket is."""
        return Place(Path(self.folder), self.name)


class Server:
    """An engine, its members and its socket. Made and run by the main thread."""

    def __init__(self, options: Options) -> None:
        from pageone.engine import Engine
        from pageone.live import LiveBackend, preflight

        preflight.check_system()
        self.options = options
        self.place = options.place
        self._backend = LiveBackend()
        self.engine = Engine(
            period=options.period,
            cpu=options.cpu,
            domain=None if options.uid is not None else options.name,
            backend=self._backend,
            owner=owner,
        )
        self.members = Members(min(SETTLE_S, options.period))
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._connections = 0
        self._urgent = 0  # requests for which somebody waits until the engine comes round to them
        self.engine.bypass_cpu_budget_when(lambda: self._urgent > 0)
        self._pending: set[int] = set()  # PIDs about to become a command
        self._launched_at = -NEW_S
        self._since = time.time()
        self._used = False
        self._ending = False
        self._removed = False
        self._last_status: dict[str, Any] = {}
        self._errors: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            self._listener.bind(os.fspath(self.place.socket))
        finally:
            os.umask(before)
        self._listener.listen(128)
        self._inode = os.stat(self.place.socket).st_ino

    # ------------------------------------------------------------------ the main thread

    def serve(self) -> None:
        """Work until the last member has ended, or until told to stop."""
        threading.Thread(target=self._accept, name="pageone-accept", daemon=True).start()
        from pageone.live.guardian import GuardianError

        check_at = step_at = time.monotonic()
        began = check_at
        steps_for = 0
        well = False
        try:
            while not self._ending:
                self._carry_out(min(check_at, step_at if self.engine.targets else check_at))
                now = time.monotonic()
                if now >= check_at:
                    self._left_out("check of members", functools.partial(self._check_members, now))
                    new = now - self._launched_at < NEW_S
                    check_at = time.monotonic() + (CHECK_NEW_S if new else min(CHECK_S, self.engine.period))
                if self.engine.targets and (now >= step_at or (not steps_for)):
                    step_at = time.monotonic() + self.engine.period
                    self._left_out("period", functools.partial(self.engine.step, until=step_at))
                steps_for = len(self.engine.targets)
                if self._idle(now - began) and self._try_to_end():
                    break
            well = True
        except GuardianError as error:
            # It holds the pool, and what guards the programs: nothing more can be done for them.
            self._note(f"the engine ends: {error}; programs go on with what they share")
        finally:
            if not self._removed:
                with self.place.lock():
                    self._unlink(keep_log=not well)
            self._listener.close()
            self.engine.close()
            self._wait_for_replies()

    def _carry_out(self, until: float) -> None:
        """Carry out requests, the next at once, others as they come, until the given time."""
        while not self._ending:
            try:
                work, future = self._calls.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            if time.monotonic() >= until:
                return

    def _left_out(self, what: str, work: Callable[[], Any]) -> None:
        """Do what is done again and again; whatever goes wrong in it is noted, and the engine goes on."""
        from pageone.live.guardian import GuardianError

        try:
            work()
        except GuardianError:
            raise
        except (PageOneError, OSError, MemoryError) as error:
            self._note(f"{what} left out: {str(error) or type(error).__name__}")
        except Exception as error:
            self._note(f"{what} left out: {type(error).__name__}: {error}", traceback.format_exc())

    def _note(self, text: str, details: str = "") -> None:
        """Write to the log, and keep for ``status``, what nobody has asked for."""
        self._errors = [*self._errors[-9:], text]
        with contextlib.suppress(OSError):  # the disk may be full
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text, details, file=sys.stderr, flush=True)

    def _check_members(self, now: float) -> None:
        """Find out who has ended, who runs another program now, and who is new; attach those that are ready."""
        members = self.members
        for member in members.ended():
            self._backend.release(member.pid)
        for member in members.by_pid.values():
            if member.target is not None and not member.target.attached:
                self._backend.release(member.pid)
                member.renewed(now + members.settle_s)
        if members.by_pid:
            try:
                guarded = self._backend.guardian.targets()
            except OSError:
                guarded = []
            members.discover(guarded, now)
        for member in list(members.by_pid.values()):
            if member.target is None and now >= member.ready_at:
                self._attach(member)
            elif member.target is not None and now >= member.ready_at:
                limit = self._backend.limited(member.pid)
                if limit is not None:
                    self._give_back(member, limit)

    def _give_back(self, member: Member, reason: str) -> None:
        """Detach a member that may be merged no more; where that cannot be done now it is tried again."""
        text = f"PID {member.pid}: {reason}"
        if member.target is not None and member.target.attached:
            try:
                self._unmerge(member.target)
            except (PageOneError, OSError) as error:
                self._note(f"{text}; its memory cannot be given back yet: {error}")
        if member.target is not None and not member.target.attached:
            member.target = None
            self._backend.release(member.pid)
        member.refused(text, time.monotonic())

    def _unmerge(self, target: Target) -> None:
        """Detach a target, if there is memory for that in the system and in its control group."""
        from pageone.live import groups

        self.engine.detach(target, available_bytes=lambda: groups.available_bytes(target.pid))

    def _attach(self, member: Member) -> None:
        try:
            self._check_domain(member.pid)
            self._backend.declared.add(member.pid)
            member.target = self.engine.attach(member.pid)
            member.reason = ""
            member.command = command_line(member.pid)
        except (PageOneError, OSError) as error:
            member.refused(str(error), time.monotonic())

    def _check_domain(self, pid: int) -> None:
        """Raise :class:`TargetError` when a process may not share with the others."""
        user = owner(pid)
        if self.options.uid is not None:
            if user != self.options.uid:
                raise TargetError(
                    f"PID {pid}: belongs to user {user}, this engine is for those of user {self.options.uid}; "
                    "as root, name a domain to group them on purpose"
                )
            return
        for member in list(self.members.by_pid.values()):
            if member.target is not None and (owner(member.pid) == 0) != (user == 0):
                raise TargetError(f"PID {pid}: processes of root and of other users never share; name another domain")

    def _idle(self, age_s: float) -> bool:
        with self._lock:
            busy = self._connections or self._pending
        return not busy and not self.members.by_pid and self._calls.empty() and (self._used or age_s > UNUSED_S)

    def _try_to_end(self) -> bool:
        """End unless somebody is about to connect: those hold the lock while they do."""
        with self.place.lock(wait=False) as had:
            if not had or select.select([self._listener], [], [], 0)[0]:
                return False
            self._unlink()
            self._removed = True
            return True

    def _unlink(self, *, keep_log: bool = False) -> None:
        """Remove socket, lock and log, unless they are another server's by now. The lock must be held."""
        try:
            ours = os.stat(self.place.socket).st_ino == self._inode
        except FileNotFoundError:
            ours = True  # nobody has started another one since, for that takes the lock
        if ours:
            self.place.remove(keep_log=keep_log)

    def _wait_for_replies(self) -> None:
        """Give replies that are under way a moment to be sent."""
        until = time.monotonic() + LAST_WORD_S
        while self._connections and time.monotonic() < until:
            time.sleep(0.005)

    def end(self) -> None:
        """Have :meth:`serve` return; targets keep what is merged. May be called from any thread and signal handler."""
        self._ending = True
        self._calls.put((lambda: None, Future()))

    # ------------------------------------------------------------------ connections

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._listener.fileno() < 0 or error.errno not in _PASSING:
                    return
                time.sleep(ACCEPT_AGAIN_S)  # no descriptor, or no memory, to be had
                continue
            with self._lock:
                full = self._connections >= CONNECTIONS_MAX
                self._connections += not full
            if full:
                connection.close()
                continue
            try:
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()
            except RuntimeError:  # no thread to be had
                connection.close()
                with self._lock:
                    self._connections -= 1

    def _talk(self, connection: socket.socket) -> None:
        """Answer the requests of one connection. A launcher's ends when it becomes its command."""
        launcher: int | None = None
        try:
            with connection:
                who = protocol.peer(connection)
                connection.settimeout(REQUEST_S)
                if not protocol.may_talk(who):
                    raise protocol.ProtocolError(f"user {who.uid} may not talk to the engine of user {os.geteuid()}")
                try:
                    while (request := protocol.receive(connection, protocol.REQUEST_MAX)) is not None:
                        reply = self._answer(request, who)
                        if request.get("do") == "launch" and reply["ok"]:
                            launcher = who.pid
                            connection.settimeout(None)
                        protocol.send(connection, reply)
                except protocol.ProtocolError as error:
                    protocol.send(connection, _refusal(error))
        except (OSError, PageOneError):
            pass  # whoever it was has gone, or is sent away without an answer
        finally:
            if launcher is not None:
                pid = launcher
                with contextlib.suppress(PageOneError):
                    self._call(lambda: self._launched(pid))
            with self._lock:
                self._connections -= 1
                if launcher is not None:
                    self._pending.discard(launcher)

    def _call(self, work: Callable[[], Any], timeout: float | None = None) -> Any:
        """Have the main thread do something, and return what it returned."""
        future: Future[Any] = Future()
        self._calls.put((work, future))
        if timeout is not None:
            try:
                return future.result(timeout)
            except FutureTimeoutError:
                future.cancel()
                raise
        with self._somebody_waits():
            while True:
                try:
                    return future.result(1.0)
                except FutureTimeoutError:
                    if self._ending:
                        raise PageOneError("the engine is ending; ask again") from None

    @contextlib.contextmanager
    def _somebody_waits(self) -> Iterator[None]:
        with self._lock:
            self._urgent += 1
        try:
            yield
        finally:
            with self._lock:
                self._urgent -= 1

    def _answer(self, request: dict[str, Any], who: protocol.Credentials) -> dict[str, Any]:
        """Carry out one request; whatever is wrong with it becomes part of the reply."""
        try:
            kind = request.get("do")
            version = request.get("version")
            if version != __version__ and kind not in ("status", "stop"):
                raise UsageError(
                    f"engine {self.options.name} is of version {__version__}, you are of {version}: pageone stop"
                )
            if kind == "launch":
                return {"ok": True, **self._launch(request, who)}
            if kind == "attach":
                pids = _pids(request)
                period, descendants = self._period(request), bool(request.get("descendants"))
                strict = bool(request.get("strict"))
                return {"ok": True, **self._call(lambda: self._attach_all(pids, descendants, strict, period, who.pid))}
            if kind == "detach":
                pids, descendants = _pids(request), bool(request.get("descendants"))
                return {"ok": True, **self._call(lambda: self._detach_all(pids, descendants))}
            if kind == "status":
                return {"ok": True, **self._status_soon()}
            if kind == "step":
                return {"ok": True, "report": self._call(self._step)}
            if kind == "stop":
                leave = bool(request.get("leave"))
                return {"ok": True, **self._call(lambda: self._stop(leave))}
            raise UsageError(f"request {kind!r}: not known")
        except Exception as error:
            if not isinstance(error, PageOneError):
                self._note(f"request failed: {type(error).__name__}: {error}", traceback.format_exc())
            return _refusal(error)

    # ------------------------------------------------------------------ requests

    def _period(self, request: dict[str, Any]) -> float | None:
        """Return the period asked for, checked. Raises :class:`UsageError`."""
        period, cpu = request.get("period"), request.get("cpu")
        if cpu is not None and cpu != self.options.cpu:
            raise UsageError(
                f"--cpu {cpu}: engine {self.options.name} runs already with {self.options.cpu}; "
                "end it with `pageone stop`, or give --private"
            )
        if period is None:
            return None
        if not isinstance(period, (int, float)) or not 0.001 <= period <= 1e6:
            raise UsageError(f"period: {period!r}: give seconds, at least 0.001")
        return float(period)

    def _set_period(self, period: float | None) -> None:
        self._used = True
        if period is not None:
            self.engine.period = period
            self.members.settle_s = min(SETTLE_S, period)

    def _launch(self, request: dict[str, Any], who: protocol.Credentials) -> dict[str, Any]:
        """Await that the process that asks becomes a command; it does so by closing its connection."""
        period = self._period(request)
        if who.pid <= 0:
            raise UsageError("run: the engine cannot see this process (another PID namespace)")
        self._check_domain(who.pid)
        with self._lock:
            self._pending.add(who.pid)
        if period is not None:
            self._call(lambda: self._set_period(period))
        return {"pid": os.getpid()}

    def _launched(self, pid: int) -> None:
        self._used = True
        self._launched_at = time.monotonic()
        self.members.add(pid, descendants=True, now=self._launched_at)

    def _attach_all(
        self, pids: list[int], descendants: bool, strict: bool, period: float | None, asked_by: int
    ) -> dict[str, Any]:
        """Attach processes. ``strict``: none unless all can be. ``asked_by``: who may name us its tracer by itself."""
        from pageone.live import preflight

        refused: dict[str, str] = {}
        good: list[int] = []
        ours = (os.getpid(), self._backend.guardian.pid)
        pool = (self._backend.pool.device, self._backend.pool.inode)
        for pid in pids:
            known = self.members.by_pid.get(pid)
            if known is not None and known.target is not None and known.start == procfs.identity(pid):
                good.append(pid)
                continue
            try:
                self._check_domain(pid)
                self._backend.take_over(pid)
                declared = pid == asked_by
                preflight.check(pid, ours=ours, pool=pool, charged=self._backend.guardian.pid, declared=declared)
                good.append(pid)
            except PageOneError as error:
                if strict:
                    raise
                refused[str(pid)] = str(error)
        self._set_period(period)
        attached: list[int] = []
        for pid in good:
            member = self.members.add(pid, descendants=descendants, now=time.monotonic(), at_once=True)
            if member is not None and member.target is None:
                self._attach(member)
            if member is None or member.target is None:
                refused[str(pid)] = member.reason if member else f"PID {pid}: has ended"
                self.members.by_pid.pop(pid, None)
            else:
                attached.append(pid)
        if descendants:
            self.members.discover((), time.monotonic())
        return {"attached": attached, "refused": refused, "period": self.engine.period}

    def _detach_all(self, pids: list[int], descendants: bool) -> dict[str, Any]:
        """Give processes memory of their own again and follow them no more. All are known, or none is touched."""
        if descendants:
            pids = list(dict.fromkeys([*pids, *(c for pid in pids for c in self.members.descendants(pid))]))
        for pid in pids:
            if pid not in self.members.by_pid:
                raise BadTargetError(f"PID {pid}: is not attached to engine {self.options.name}")
        return self._detach_each(pids)

    def _detach_each(self, pids: list[int]) -> dict[str, Any]:
        """Detach members; returns which were, why others were not, and how many pages were left merged."""
        detached: list[int] = []
        failed: dict[str, str] = {}
        left = 0
        for pid in pids:
            target = self.members.by_pid[pid].target
            error = self._detach(pid, target)
            if error:
                failed[str(pid)] = error
            else:
                detached.append(pid)
                left += target.left_pages if target is not None else 0
        return {"detached": detached, "failed": failed, "left_pages": left}

    def _detach(self, pid: int, target: Target | None) -> str:
        """Detach one member, with the target that it is; returns what went wrong."""
        if target is not None and target.attached:
            try:
                self._unmerge(target)
            except (PageOneError, OSError) as error:
                if target.attached:
                    return str(error)
        self._backend.release(pid)
        self.members.detach(pid)
        return ""

    def _stop(self, leave: bool) -> dict[str, Any]:
        done = self._detach_each([] if leave else list(self.members.by_pid))
        if not done["failed"]:
            self._ending = True
        return {**done, "ended": self._ending}

    def _step(self) -> dict[str, Any]:
        """Do a period at once."""
        from pageone.engine import as_dict

        return as_dict(self.engine.step())

    def _status_soon(self) -> dict[str, Any]:
        """Return the state now or, while the engine is busy, the last one known."""
        try:
            return dict(self._call(self._status, None if not self._last_status else STATUS_S))
        except FutureTimeoutError:
            return self._last_status | {"busy": True}

    def _status(self) -> dict[str, Any]:
        from pageone.engine import as_dict

        targets = []
        for member in self.members.by_pid.values():
            entry: dict[str, Any] = {
                "pid": member.pid,
                "command": member.command,
                "state": member.state,
                "descendants": member.descendants,
                "reason": member.reason,
            }
            if member.target is not None and member.target.attached:
                entry["stats"] = as_dict(member.target.stats)
            targets.append(entry)
        self._last_status = {
            "name": self.options.name,
            "pid": os.getpid(),
            "guardian": self._backend.guardian.pid,
            "version": __version__,
            "since": self._since,
            "period": self.engine.period,
            "busy": False,
            "errors": self._errors,
            "targets": targets,
            "stats": as_dict(self.engine.stats),
        }
        return self._last_status


def _pids(request: dict[str, Any]) -> list[int]:
    """Return the PIDs of a request. Raises :class:`UsageError` for anything else."""
    pids = request.get("pids")
    if not isinstance(pids, list) or not all(type(p) is int and 0 < p < 2**31 for p in pids):
        raise UsageError("pids: give a list of process ids")
    if not 0 < len(pids) <= PIDS_MAX:
        raise UsageError(f"pids: {len(pids)}: give 1 to {PIDS_MAX}")
    return list(dict.fromkeys(pids))


def _refusal(error: BaseException) -> dict[str, Any]:
    known = isinstance(error, PageOneError)
    code = error.exit_code if isinstance(error, PageOneError) else 1
    return {"ok": False, "error": str(error) if known else f"{type(error).__name__}: {error}", "exit_code": code}


def main() -> None:
    """Serve in the background: ``server OPTIONS-AS-JSON PIPE``; the pipe gets ``ok`` or what went wrong, as JSON.

    Forks once, so that the server is no child of the process that started it, which is to become a command: a child
    that it does not know of could confuse it.
    """
    options = Options(**json.loads(sys.argv[1]))
    pipe = int(sys.argv[2])
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    try:
        server = Server(options)
    except (PageOneError, OSError) as error:
        os.write(pipe, json.dumps(_refusal(error)).encode())
        sys.exit(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.end())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.write(pipe, b'{"ok": true}')
    os.close(pipe)
    server.serve()
