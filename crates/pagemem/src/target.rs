//! One target process: attach, arm, merge, drop zero pages, unmerge, zero-fill after a discard, detach.
//!
//! Runs in the guardian, the only process that stops targets. Whatever is asked, a page is changed only after all
//! its bytes have been compared inside the stop; a page in doubt is left alone and its code says why.
//!
//! This file has the types that the guardian's wards ([`crate::guard`]) see, and what is known of a target; each of its
//! modules is one thing that is done with it.

mod advice;
mod attach;
mod births;
mod changeable;
mod close;
mod descriptor;
mod dumps;
mod events;
mod exchange;
mod merge;
mod rights;
mod runs;
mod shared;
mod shed;
mod stops;
mod unmerge;
mod unstopped;
mod zero_fill;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::inject::InjectedRegion;
use crate::kinds::Kinds;
use crate::process::Process;
use crate::processes;
use crate::sys::FileId;
use crate::uffd::Uffd;
use advice::Advised;
pub use births::{Born, PendingChild};
use close::Close;
use dumps::CoreDumps;
use rights::Rights;
use stops::FIRST_BATCH;

/// What became of a page; the values are `PageOutcome` of `pageone.engine.backend`.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageOutcome {
    Done = 0,
    Differs = 1,
    Written = 2,
    Gone = 3,
    Refused = 4,
    Timeout = 5,
    Shared = 6,
}

/// A run of pages and, for a merge, its first frame.
#[derive(Clone, Copy, Debug)]
pub struct PageRun {
    /// First byte.
    pub addr: u64,
    /// Number of pages.
    pub pages: u32,
    /// Frame of the first page.
    pub frame: u32,
}

/// What a request did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One code a page, in the order of the request.
    pub codes: Vec<u8>,
    /// Seconds that the target stood still, one a stop.
    pub pauses: Vec<f64>,
    /// Seconds that the target's own threads ran injected code.
    pub injected: f64,
}

/// Settings of a target.
#[derive(Clone, Copy, Debug)]
pub struct StopLimits {
    /// A stop aims to be no longer than this.
    pub pause: Duration,
    /// A target that has not stopped by then is left alone.
    pub stop_timeout: Duration,
}

impl Default for StopLimits {
    fn default() -> Self {
        Self {
            pause: Duration::from_micros(1500),
            stop_timeout: Duration::from_millis(20),
        }
    }
}

/// How frames are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// So that the kernel joins the memory with its neighbours again.
    Joined,
    /// So that nobody outside of the target can come in between. Each run stays a mapping of its own.
    Apart,
}

/// A process whose memory is merged.
pub struct Target {
    /// Process id.
    pub pid: i32,
    /// Handle that cannot come to mean another process.
    pub pidfd: Arc<OwnedFd>,
    process: Process,
    region: InjectedRegion,
    track: Option<Uffd>,
    /// Watches merged ranges.
    pub guard: Uffd,
    limits: StopLimits,
    /// Pages of the next stop, for each kind of work.
    batch: [f64; 4],
    discarded: Vec<(u64, u64)>,
    /// Ranges that the program has moved, not handled yet: from, to, bytes.
    moved: Vec<(u64, u64, u64)>,
    /// Where the program has unmapped frames, not handled yet: those before may lie open now.
    opened: Vec<u64>,
    /// Pages without access behind mappings of frames.
    guard_pages: BTreeSet<u64>,
    /// What merged mappings are given advice.
    advised: Advised,
    /// Those of this batch that have been found to be hidden still, from children or from core dumps.
    hidden: Vec<(u64, u64, u64)>,
    /// Mappings that the program had locked in memory when something was to be given back: start and end.
    locked: Vec<(u64, u64)>,
    /// Children's address spaces, from fork events, not yet known by pid.
    born: Vec<Born>,
    /// Inode of the pool whose frames it maps.
    pool_file: FileId,
    /// What is known of its frames, while they are watched closely.
    close: Option<Close>,
    /// Whether they are for as long as it lives.
    for_life: bool,
    rights: Rights,
    /// Set while it cannot be stopped.
    unstopped: bool,
    core_dumps: CoreDumps,
    /// Whether the kernel tells of its forks; where it does not this user may not be able to open its files again.
    told_of_forks: bool,
    /// Whether its merged memory has been given back, and none has come since.
    bare: bool,
    must_shed: bool,
    /// What calls of its threads have returned when it forked: the pids of its children, perhaps.
    hints: Vec<i32>,
    kinds: Kinds,
}

const PROT_RW: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const ANON: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
const FIXED: u64 = libc::MAP_FIXED as u64;

impl Target {
    /// A target of which nothing is known yet but where it is and how it is guarded; its writes are not tracked.
    fn new(
        process: Process,
        region: InjectedRegion,
        guard: Uffd,
        limits: StopLimits,
        pool_file: FileId,
        told_of_forks: bool,
    ) -> Self {
        Self {
            pid: process.pid,
            pidfd: Arc::clone(&process.pidfd),
            process,
            region,
            track: None,
            guard,
            limits,
            batch: [FIRST_BATCH; 4],
            discarded: Vec::new(),
            moved: Vec::new(),
            opened: Vec::new(),
            locked: Vec::new(),
            guard_pages: BTreeSet::new(),
            advised: Advised::default(),
            hidden: Vec::new(),
            born: Vec::new(),
            pool_file,
            close: None,
            for_life: false,
            rights: Rights::default(),
            unstopped: false,
            core_dumps: CoreDumps::default(),
            told_of_forks,
            bare: false,
            must_shed: false,
            hints: Vec::new(),
            kinds: Kinds::default(),
        }
    }

    /// Address range of the injected region in the target.
    pub fn region_range(&self) -> (u64, u64) {
        (
            self.region.base,
            self.region.base + crate::inject::REGION_SIZE,
        )
    }

    fn retrack(&self, start: u64, end: u64) -> io::Result<()> {
        self.track
            .as_ref()
            .map_or(Err(io::Error::from_raw_os_error(libc::EBADF)), |u| {
                u.register(start, end)
            })
    }

    /// Whether writes of this target are tracked: not so for a child that is only guarded.
    pub fn tracks(&self) -> bool {
        self.track.is_some()
    }

    /// Stops tracking writes; merged ranges stay guarded.
    pub fn end_tracking(&mut self) {
        self.track = None;
    }

    /// New limits for stops from now on.
    pub fn set_limits(&mut self, limits: StopLimits) {
        self.limits = limits;
    }

    /// Whether the process still has the address space that was attached (it may have called `exec`), and there is
    /// something to do in it.
    pub fn still_there(&self) -> bool {
        match self.region.found(processes::memory_tid(self.pid)) {
            Ok(true) => true,
            // It hides. What it maps is guarded on: for that nothing of it need be read.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                self.guard.alive(self.region.base)
            }
            // The same for a program that has unmapped the injected region, or a part of it.
            _ => self.guard.alive(self.region.base) && self.maps_frames(),
        }
    }

    /// Whether it maps frames, or that cannot be told.
    pub fn maps_frames(&self) -> bool {
        let first = self
            .process
            .with_maps(|maps| maps.next_of(self.pool_file, 0, u64::MAX));
        first.map_or(true, |v| v.is_some())
    }

    /// Has no more descriptors open for a process that is only guarded than that takes.
    pub fn rest(&self) {
        if !self.tracks() {
            self.process.rest(!self.told_of_forks);
        }
    }
}
