//! The guardian: a small process that alone stops targets, and that outlives the engine.
//!
//! It owns what must not vanish with the engine: the userfaultfds of merged ranges, the pool and the tracing. It answers one engine over a socket and otherwise waits for its targets' events. When the engine is
//! gone it goes on guarding until the last target with merged memory has ended; then it ends. Meanwhile another engine of
//! the same user may connect, through a socket that is named after the pool, and have it give targets up.
//!
//! Each target, with its descendants, is a *ward* with a thread of its own. The thread here, the *hall*, only talks to the
//! engine and passes requests on; it touches no target, so that none can hold it up.
//!
//! Protocol: [`crate::wire`], with the numbers, records and answers of `guard/wire.rs`. The engine's end is [`Client`].

mod client;
mod door;
mod ward;
mod wire;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{changes, descriptors};
pub use client::Client;
use door::Door;
use ward::{Common, Letter};
use wire::{op, Answer, Pending, Request};

/// How long a request is waited for. Longer than any takes whose target does not hold up its ward on purpose.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long a successor of the engine may take in the midst of a request.
const REQUEST_MAX: Duration = Duration::from_secs(1);
/// Nothing is waited for longer than this.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The connection to an engine.
struct Line {
    stream: UnixStream,
    /// Came in by the door.
    successor: bool,
    received: Vec<u8>,
    /// Since when it is in the midst of a request or of a reply.
    since: Instant,
    unsent: Vec<u8>,
}

struct Hall {
    common: Arc<Common>,
    line: Option<Line>,
    pending: Option<Pending>,
    /// Wards that have not answered in time, and have not since.
    late: BTreeSet<u64>,
    serial: u64,
}

/// Makes a pool of `frames` frames and serves the engine at the other ends of `control` and `filling`, until both the
/// engine and the last guarded target have gone.
pub fn run(control: OwnedFd, filling: OwnedFd, frames: u32) -> io::Result<()> {
    changes::watch();
    // First of all: from the first descriptor of the pool on nobody is to look into this process.
    crate::hidden::hide()?;
    descriptors::raise();
    let (writer, pool) = crate::pool::make(frames)?;
    crate::filling::serve(filling, writer)?;
    let common = Arc::new(Common::new(pool));
    // Without it an engine that comes later lets the targets be.
    let mut door = Door::open(&common.pool).ok();
    let stream = UnixStream::from(control);
    stream.set_nonblocking(true)?;
    let mut hall = Hall {
        common,
        line: Some(Line::new(stream, false)),
        pending: None,
        late: BTreeSet::new(),
        serial: 0,
    };
    while hall.line.is_some() || !hall.common.is_empty() {
        let mut timeout = LOOK_EVERY;
        let mut fds = [
            hall.polled(&mut timeout),
            changes::readable(-1),
            changes::readable(-1),
        ];
        match door.as_ref().map(Door::heard) {
            // It waits until the one before has been answered.
            _ if hall.serves_successor() => {}
            Some(Ok(fd)) => fds[1].fd = fd,
            Some(Err(left)) => timeout = timeout.min(left),
            None => {}
        }
        changes::wait_watching(&mut fds, timeout);
        hall.take_replies();
        hall.on_line(fds[0].revents != 0);
        if fds[1].revents != 0 {
            let next = door.as_mut().and_then(Door::admit);
            // While its engine lives it has ears for nobody else.
            if hall.line.as_ref().is_none_or(|line| line.successor) {
                hall.line = next.map(|stream| Line::new(stream, true)).or(hall.line);
            }
        }
    }
    Ok(())
}

impl Line {
    fn new(stream: UnixStream, successor: bool) -> Self {
        Self {
            stream,
            successor,
            received: Vec::new(),
            since: Instant::now(),
            unsent: Vec::new(),
        }
    }

    /// Reads what is there; an error means that the engine has gone.
    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0u8; 1 << 16];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                if self.received.is_empty() {
                    self.since = Instant::now();
                }
                self.received.extend_from_slice(&buffer[..n]);
                Ok(())
            }
            Err(e) if is_later(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Sends as much as is taken.
    fn send(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(e) if is_later(&e) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Whether a successor takes too long.
    fn dawdles(&self) -> bool {
        let midst = !self.received.is_empty() || !self.unsent.is_empty();
        self.successor && midst && self.since.elapsed() > REQUEST_MAX
    }
}

fn is_later(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl Hall {
    /// What is polled of the engine's line. Requests come one by one: with one pending nothing is read.
    fn polled(&self, timeout: &mut Duration) -> libc::pollfd {
        let mut polled = changes::readable(-1);
        if let Some(line) = &self.line {
            polled.fd = line.stream.as_raw_fd();
            polled.events = if !line.unsent.is_empty() {
                libc::POLLOUT
            } else if self.pending.is_none() {
                libc::POLLIN
            } else {
                0 // told of its end all the same
            };
            if line.successor {
                *timeout = (*timeout).min(REQUEST_MAX);
            }
        }
        if let Some(pending) = &self.pending {
            let left = pending.until.saturating_duration_since(Instant::now());
            *timeout = (*timeout).min(left);
        }
        polled
    }

    /// Whether a successor of the engine is being served, or was a moment ago.
    fn serves_successor(&self) -> bool {
        let busy = |line: &Line| self.pending.is_some() || line.since.elapsed() < REQUEST_MAX;
        self.line.as_ref().is_some_and(|l| l.successor && busy(l))
    }

    /// Passes on what wards have answered.
    fn take_replies(&mut self) {
        // Asked before: the last that a ward does is to answer.
        let ended = self
            .pending
            .as_ref()
            .is_some_and(|p| self.common.has_ended(p.ward));
        for (ward, serial, answer) in self.common.take_replies() {
            if self.pending.as_ref().is_some_and(|p| p.serial == serial) {
                self.pending = None;
                self.answer(answer);
            } else {
                self.late.remove(&ward);
            }
        }
        let over = |p: &Pending| ended || p.until <= Instant::now();
        if self.pending.as_ref().is_some_and(over) {
            if let Some(p) = self.pending.take() {
                self.late.insert(p.ward);
                self.answer(wire::too_late(&p.request, p.pages));
            }
        }
    }

    fn answer(&mut self, answer: io::Result<Answer>) {
        if let Some(line) = &mut self.line {
            line.unsent.extend(wire::reply(answer));
            line.since = Instant::now();
        }
    }

    /// Reads, carries out and answers, as far as that goes without waiting.
    fn on_line(&mut self, ready: bool) {
        let Some(mut line) = self.line.take() else {
            return;
        };
        let talked = || -> io::Result<()> {
            if ready && line.unsent.is_empty() {
                line.receive()?;
            }
            Ok(())
        };
        let talked = { talked }();
        self.line = Some(line);
        let done = talked.and_then(|()| {
            while self.pending.is_none() {
                let received = self.line.as_mut().map(|l| &mut l.received);
                let Some(request) = received.map(Request::take).transpose()?.flatten() else {
                    break;
                };
                self.begin(request);
            }
            self.line.as_mut().map_or(Ok(()), Line::send)
        });
        if done.is_err() || self.line.as_ref().is_some_and(Line::dawdles) {
            self.line = None;
            self.pending = None;
            self.common.engine_gone();
        }
    }

    /// Answers a request, or has a ward do it.
    fn begin(&mut self, request: Request) {
        match request.number {
            op::STATUS => {
                let pids = self.common.pids();
                let bytes = pids.iter().flat_map(|p| p.to_le_bytes()).collect();
                return self.answer(Ok(Answer::Bytes(bytes)));
            }
            op::POOL => {
                let bytes = self.common.pool_words();
                let bytes = bytes.iter().flat_map(|w| w.to_le_bytes()).collect();
                return self.answer(Ok(Answer::Bytes(bytes)));
            }
            op::LIMITS => {
                let limits = request.limits();
                let done = limits.map(|limits| self.common.set_limits(limits));
                return self.answer(done.map(|()| Answer::Bytes(Vec::new())));
            }
            _ => {}
        }
        self.serial += 1;
        let pages = request.runs().iter().map(|r| r.pages as usize).sum();
        let attach = request.number == op::ATTACH;
        let known = self.common.ward_of(request.pid);
        let known = known.or_else(|| attach.then(|| self.common.family_of(request.pid)).flatten());
        if known.is_some_and(|ward| self.late.contains(&ward)) {
            return self.answer(wire::too_late(&request, pages));
        }
        let (pid, serial) = (request.pid, self.serial);
        let kept = Request {
            records: Vec::new(),
            ..request
        };
        let letter = Letter::Request(serial, request);
        let sent = match known {
            Some(ward) => self
                .common
                .send(ward, letter)
                .then_some(ward)
                .ok_or(libc::ESRCH),
            None if attach => {
                let begun = self.common.begin(serial, pid, letter);
                begun.map(|()| serial).map_err(|_| libc::EAGAIN)
            }
            None => Err(libc::ESRCH),
        };
        let ward = match sent {
            Ok(ward) => ward,
            Err(e) => return self.answer(Err(io::Error::from_raw_os_error(e))),
        };
        self.pending = Some(Pending {
            serial,
            request: kept,
            pages,
            ward,
            until: Instant::now() + ANSWER_MAX,
        });
    }
}
