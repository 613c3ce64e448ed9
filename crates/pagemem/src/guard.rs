//! The guardian: a small process that alone stops targets, and that outlives the engine.
//!
//! It owns what must not vanish with the engine: the userfaultfds of merged ranges, the pool and the tracing. It answers one engine over a socket and otherwise waits for its targets' events. When the engine is
//! gone it goes on guarding until the last target with merged memory has ended; then it ends. Meanwhile another engine of
//! the same user may connect, through a socket that is named after the pool, and have it give targets up.
//!
//! Protocol, little-endian, over a stream socket. Request: `op u32, pid i32, n u32, flags u32`, then `n` records.
//! Reply: `status i32` (0, or an errno), `length u32`, then `length` bytes (on an error: a message).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crate::descriptors;
use crate::pool::Pool;
use crate::ptrace::{self, News, Tracer};
use crate::sys::{cpu_time, pairs};
use crate::target::{Code, Heir, Limits, Outcome, Run, Target, Way};

/// Requests, by number.
#[allow(missing_docs)]
mod op {
    pub const ATTACH: u32 = 1;
    pub const ARM: u32 = 2;
    pub const MERGE: u32 = 3;
    pub const ZERO: u32 = 4;
    pub const UNMERGE: u32 = 5;
    pub const DETACH: u32 = 6;
    pub const STATUS: u32 = 7;
    pub const LIMITS: u32 = 8;
    pub const FENCE: u32 = 9;
    pub const POOL: u32 = 10;
}

/// Flag of an attach request: let the kernel tell of forks (needs `CAP_SYS_PTRACE`).
const FLAG_FORKS: u32 = 1;
/// Flag of a request to unmerge: out of reach of other processes, though each run stays a mapping of its own.
const FLAG_APART: u32 = 1;

/// How often targets are checked for having replaced their program.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// While a thread is still to be released.
const TEND_EVERY: Duration = Duration::from_millis(1);
/// A child that is not found at once is looked for less often: each time all processes are gone through.
const EAGER_WAITS: u32 = 50;
const HEIR_EVERY: Duration = Duration::from_millis(20);

struct Guardian {
    pool: Pool,
    tracer: Tracer,
    targets: BTreeMap<i32, Target>,
    /// Children that are guarded but not yet known by pid.
    heirs: Vec<Heir>,
    limits: Limits,
}

/// Makes a pool of `frames` frames and serves the engine at the other ends of `control` and `filling`, until both the
/// engine and the last guarded target have gone.
pub fn run(control: OwnedFd, filling: OwnedFd, frames: u32) -> io::Result<()> {
    // First of all: from the first descriptor of the pool on nobody is to look into this process.
    crate::hidden::hide()?;
    descriptors::raise();
    let (writer, pool) = crate::pool::make(frames)?;
    crate::filling::serve(filling, writer)?;
    let mut g = Guardian {
        pool,
        tracer: Tracer::default(),
        targets: BTreeMap::new(),
        heirs: Vec::new(),
        limits: Limits::default(),
    };
    let mut control = Some(UnixStream::from(control));
    // Without it an engine that comes later lets the targets be.
    let door = listen(&g.pool).ok();
    let mut last_check = Instant::now();
    let mut waits = 0;
    let changes = ptrace::changes()?;
    loop {
        if control.is_none() && g.targets.is_empty() && g.heirs.is_empty() {
            return Ok(());
        }
        // First, for it may add targets.
        let awaited = g.tend() || g.targets.values().any(Target::has_unanswered);
        waits = if g.heirs.is_empty() { 0 } else { waits + 1 };
        let timeout = match waits {
            _ if ptrace::noted_elsewhere() => Duration::ZERO,
            _ if awaited => TEND_EVERY,
            0 => CHECK_EVERY,
            1..EAGER_WAITS => TEND_EVERY,
            _ => HEIR_EVERY,
        };
        let mut fds: Vec<libc::pollfd> = Vec::with_capacity(3 + 2 * g.targets.len());
        let mut watch = |fd: RawFd| {
            fds.push(libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            })
        };
        watch(control.as_ref().map_or(-1, |c| c.as_raw_fd()));
        watch(changes.as_raw_fd());
        watch(door.as_ref().map_or(-1, |d| d.as_raw_fd()));
        for t in g.targets.values() {
            watch(t.guard.as_raw_fd());
            watch(t.pidfd.as_raw_fd());
        }
        // SAFETY: `fds` is a live vector of the stated length.
        unsafe {
            libc::poll(
                fds.as_mut_ptr(),
                fds.len() as u64,
                timeout.as_millis() as i32,
            )
        };
        let ready = |i: usize| fds[i].revents != 0;
        if ready(1) {
            ptrace::drain(&changes);
        }
        let pids: Vec<i32> = g.targets.keys().copied().collect();
        for (k, pid) in pids.iter().enumerate() {
            // Events first: a child may have been forked just before the end.
            if let Some(t) = g.targets.get_mut(pid) {
                if ready(3 + 2 * k) || t.needs_mending() {
                    t.on_events(&mut g.tracer);
                    t.rest();
                }
            }
            if ready(4 + 2 * k) || g.targets.get(pid).is_some_and(Target::idle) {
                g.collect_heirs();
                if let Some(t) = g.targets.remove(pid) {
                    t.forget();
                }
            }
        }
        g.adopt_children();
        if last_check.elapsed() >= CHECK_EVERY {
            last_check = Instant::now();
            g.targets.retain(|_, t| {
                let there = t.still_there();
                t.rest();
                if !there {
                    t.forget();
                }
                there
            });
            for t in g.targets.values_mut() {
                t.look_for_tracers(&mut g.tracer);
            }
        }
        if ready(0) {
            if let Some(c) = control.as_mut() {
                if g.serve(c).is_err() {
                    control = None;
                    g.engine_gone();
                }
            }
        }
        if ready(2) {
            let successor = door.as_ref().and_then(admit);
            // While its engine lives it has ears for nobody else.
            if control.is_none() {
                control = successor;
            }
        }
    }
}

impl Guardian {
    /// Looks after traced threads and acts on what followed processes did.
    fn tend(&mut self) -> bool {
        let awaited = self.tracer.tend();
        for news in self.tracer.take_news() {
            match news {
                News::Executed { pid } => {
                    if let Some(t) = self.targets.remove(&pid) {
                        t.forget();
                    }
                }
                News::Forked { parent, child } => {
                    let guarded = self
                        .targets
                        .get(&parent)
                        .map(|t| t.guard_child(&mut self.tracer, child, &self.pool));
                    if let Some(Ok(t)) = guarded {
                        if let Some(parent) = self.targets.get_mut(&parent) {
                            if t.guard.is_kept_back() {
                                parent.shed_soon();
                            }
                        }
                        self.targets.insert(child, t);
                    } else {
                        // The child has ended or cannot be guarded, or its parent is a target no more.
                        self.tracer.unfollow(child);
                        self.tracer.start_child(child, false);
                    }
                }
            }
        }
        awaited
    }

    /// Answers one request; an error means that the engine has gone.
    fn serve(&mut self, c: &mut UnixStream) -> io::Result<()> {
        let mut h = [0u8; 16];
        c.read_exact(&mut h)?;
        let word = |i: usize| u32::from_le_bytes(h[4 * i..4 * i + 4].try_into().expect("4 bytes"));
        let (number, pid, n, flags) = (word(0), word(1) as i32, word(2), word(3));
        let mut records = vec![0u8; n as usize * 16];
        c.read_exact(&mut records)?;
        let before = cpu_time();
        let (status, body) = match self.answer(number, pid, flags, &records) {
            Ok(Answer::Bytes(b)) => (0, b),
            Ok(Answer::Outcome(o)) => (0, encode(&o, cpu_time() - before)),
            Err(e) => (
                e.raw_os_error().unwrap_or(libc::EIO),
                e.to_string().into_bytes(),
            ),
        };
        let mut reply = Vec::with_capacity(8 + body.len());
        reply.extend_from_slice(&(status as u32).to_le_bytes());
        reply.extend_from_slice(&(body.len() as u32).to_le_bytes());
        reply.extend_from_slice(&body);
        c.write_all(&reply)
    }

    fn answer(&mut self, number: u32, pid: i32, flags: u32, records: &[u8]) -> io::Result<Answer> {
        if number == op::STATUS {
            return Ok(Answer::Bytes(
                self.targets.keys().flat_map(|p| p.to_le_bytes()).collect(),
            ));
        }
        if number == op::POOL {
            let file = self.pool.file();
            let apart = u64::from(self.pool.is_apart());
            let words = [file.device, file.inode, apart];
            return Ok(Answer::Bytes(
                words.iter().flat_map(|w| w.to_le_bytes()).collect(),
            ));
        }
        if number == op::LIMITS {
            let (pause, timeout) = pairs(records).next().ok_or_else(invalid)?;
            self.limits = Limits {
                pause: Duration::from_micros(pause),
                stop_timeout: Duration::from_micros(timeout),
            };
            for t in self.targets.values_mut() {
                t.set_limits(self.limits);
            }
            return Ok(Answer::Bytes(Vec::new()));
        }
        if number == op::ATTACH {
            let forks = flags & FLAG_FORKS != 0;
            // It may have replaced its program since it was attached.
            if self.targets.get(&pid).is_some_and(|t| !t.still_there()) {
                self.targets.remove(&pid);
            }
            match self.targets.get_mut(&pid) {
                Some(t) if t.tracks() => return Err(io::Error::from_raw_os_error(libc::EEXIST)),
                _ if descriptors::are_few(self.pool.for_targets()) => {
                    return Err(io::Error::from_raw_os_error(libc::EMFILE))
                }
                Some(t) => t.complete(&mut self.tracer)?,
                None => {
                    let t = Target::attach(
                        &mut self.tracer,
                        pid,
                        self.limits,
                        forks,
                        self.pool.file(),
                    )?;
                    self.targets.insert(pid, t);
                }
            }
            let (start, end) = self.targets[&pid].workshop_range();
            return Ok(Answer::Bytes(
                [start.to_le_bytes(), end.to_le_bytes()].concat(),
            ));
        }
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        if number == op::DETACH {
            let t = self.targets.get_mut(&pid).ok_or_else(gone)?;
            if t.maps_frames() {
                // What is left merged on purpose is guarded on, as when an engine ends.
                t.end_tracking();
                return Ok(Answer::Bytes(Vec::new()));
            }
            t.detach(&mut self.tracer)?;
            self.collect_heirs();
            self.targets.remove(&pid);
            return Ok(Answer::Bytes(Vec::new()));
        }
        let t = self.targets.get_mut(&pid).ok_or_else(gone)?;
        if number == op::ARM {
            let ranges: Vec<(u64, u64)> = pairs(records).collect();
            return Ok(Answer::Bytes(
                t.arm(&ranges)
                    .iter()
                    .flat_map(|e| e.to_le_bytes())
                    .collect(),
            ));
        }
        let runs: Vec<Run> = pairs(records)
            .map(|(addr, b)| Run {
                addr,
                pages: b as u32,
                frame: (b >> 32) as u32,
            })
            .collect();
        let frames_end = |r: &Run| u64::from(r.frame) + u64::from(r.pages);
        Ok(Answer::Outcome(match number {
            // Each merged process may have many children, each of which takes a descriptor.
            op::MERGE if descriptors::are_few(self.pool.for_targets()) => {
                let pages = runs.iter().map(|r| r.pages as usize).sum();
                Outcome {
                    codes: vec![Code::Refused as u8; pages],
                    ..Outcome::default()
                }
            }
            op::MERGE
                if runs
                    .iter()
                    .all(|r| frames_end(r) <= u64::from(self.pool.frames())) =>
            {
                t.merge(&mut self.tracer, &self.pool, &runs)
            }
            op::ZERO => t.drop_zero(&mut self.tracer, &runs),
            op::UNMERGE => {
                let way = if flags & FLAG_APART != 0 {
                    Way::Apart
                } else {
                    Way::Joined
                };
                t.unmerge(&mut self.tracer, &self.pool, &runs, way)
            }
            op::FENCE => t.close_ends(&mut self.tracer, &self.pool, &runs),
            _ => return Err(invalid()),
        }))
    }

    /// Takes over the children that targets have announced: they may outlive them.
    fn collect_heirs(&mut self) {
        for t in self.targets.values_mut() {
            for born in t.take_born() {
                let heir = t.heir(born);
                self.heirs.push(heir);
            }
        }
    }

    /// Children announced by fork events become targets of their own as soon as their pid is known.
    fn adopt_children(&mut self) {
        self.collect_heirs();
        if self.heirs.is_empty() {
            return;
        }
        let hints: Vec<i32> = self
            .targets
            .values_mut()
            .flat_map(Target::take_hints)
            .collect();
        self.adopt_among(&hints);
        if self.heirs.is_empty() {
            return;
        }
        // Mostly it is a child of its parent; not so if the parent has ended or has given it to its own parent.
        let parents: BTreeSet<i32> = self.heirs.iter().map(|h| h.parent).collect();
        let near: Vec<i32> = parents.into_iter().flat_map(children_of).collect();
        self.adopt_among(&near);
        if !self.heirs.is_empty() {
            let (living, gone) = std::mem::take(&mut self.heirs)
                .into_iter()
                .partition(Heir::alive);
            self.heirs = living;
            for heir in gone {
                // It has ended, or runs another program by now.
                let others = children_of(heir.parent).into_iter();
                others
                    .filter(|pid| !self.targets.contains_key(pid))
                    .for_each(|pid| heir.forget(pid));
            }
            self.adopt_among(&crate::sys::all_processes());
        }
    }

    fn adopt_among(&mut self, pids: &[i32]) {
        for &pid in pids {
            if self.heirs.is_empty() {
                return;
            }
            if self.targets.contains_key(&pid) {
                continue;
            }
            let adopted = self
                .heirs
                .iter_mut()
                .enumerate()
                .find_map(|(i, h)| Some((i, h.adopt(pid)?)));
            if let Some((i, target)) = adopted {
                self.heirs.swap_remove(i);
                target.rest();
                self.targets.insert(pid, target);
            }
        }
    }

    /// Targets without merged memory are let go; the others are guarded on.
    fn engine_gone(&mut self) {
        let pids: Vec<i32> = self.targets.keys().copied().collect();
        for pid in pids {
            let Some(t) = self.targets.get_mut(&pid) else {
                continue;
            };
            if t.maps_frames() {
                t.end_tracking();
            } else {
                let _ = t.detach(&mut self.tracer);
                self.targets.remove(&pid);
            }
        }
    }
}

/// How long an engine that has connected may keep the guardian waiting in the midst of a request.
const REQUEST_MAX: Duration = Duration::from_secs(1);

/// The socket for engines to come: an abstract name, made of what tells the pool from all other files.
fn listen(pool: &Pool) -> io::Result<UnixListener> {
    let file = pool.file();
    let name = format!("pageone-guardian-{}-{}", file.device, file.inode);
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The next engine at the door, if it is this user's or root's.
fn admit(door: &UnixListener) -> Option<UnixStream> {
    let (stream, _) = door.accept().ok()?;
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(REQUEST_MAX)).ok()?;
    stream.set_write_timeout(Some(REQUEST_MAX)).ok()?;
    crate::sys::is_of_our_user(&stream).then_some(stream)
}

enum Answer {
    Bytes(Vec<u8>),
    Outcome(Outcome),
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// `codes u32, pauses u32, mappings u32, 0 u32, injected f64, cpu f64`, the codes, the pauses as f64.
fn encode(o: &Outcome, cpu: Duration) -> Vec<u8> {
    let mut b = Vec::with_capacity(32 + o.codes.len() + 8 * o.pauses.len());
    for v in [o.codes.len() as u32, o.pauses.len() as u32, o.mappings, 0] {
        b.extend_from_slice(&v.to_le_bytes());
    }
    b.extend_from_slice(&o.injected.to_le_bytes());
    b.extend_from_slice(&cpu.as_secs_f64().to_le_bytes());
    b.extend_from_slice(&o.codes);
    for p in &o.pauses {
        b.extend_from_slice(&p.to_le_bytes());
    }
    b
}

/// The children of all threads of `pid`.
fn children_of(pid: i32) -> Vec<i32> {
    let mut out = Vec::new();
    for tid in crate::sys::numbers_in(&format!("/proc/{pid}/task")) {
        let text =
            std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
        out.extend(
            text.split_ascii_whitespace()
                .filter_map(|w| w.parse::<i32>().ok()),
        );
    }
    out
}
