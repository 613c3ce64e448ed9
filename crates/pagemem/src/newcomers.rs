//! Which processes are born, and to whom, as the kernel notes it: for those who must ask all who are new and cannot tell
//! them by their ids, because a storm of threads uses ids up faster than anybody can ask.
//!
//! An event of the performance counters on each processor has the kernel write a record of each birth into memory of this
//! process (`PERF_RECORD_FORK`): inside the call that gives birth, after the child can be found by its id, and before
//! child or parent go on. It names who made the call, also where the child gets another parent. So the record of whoever a
//! stopped process has given birth to is there.
//!
//! Nothing is said where one may be missing. Nothing is allocated for a record: the kernel leaves out what does not fit,
//! and counts it. A processor that goes takes its event off for good, and the event's clock stands still. One that comes
//! would have none, so there are records only where every processor that there can be has an event.
//!
//! The kernel allows it to root, or to everybody where `perf_event_paranoid` is 0 or less. It ends with this process.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::changes::lock;
use crate::failpoints;
use crate::status::filtered;
use crate::sys::{check, PAGE};

/// A moment in the order of births as they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    era: u64,
    place: u64,
}

/// A process born, and its place in that order.
pub type Newcomer = (u64, i32);

/// Bytes of records for all processors, and at most and at least for each. A thread takes 64 from birth to end.
const ALL_BYTES: usize = 8 << 20;
const MOST_BYTES: usize = 1 << 20;
const LEAST_BYTES: usize = 1 << 16;
/// With more processors than this, asking each of them whether its event is still there would take too long.
const PROCESSORS: usize = 64;
/// Births that are kept: to find a family among more takes longer than asking all.
const BIRTHS: usize = 1 << 13;
/// Where events were refused, or one has gone, none are asked for sooner than this.
const AGAIN: Duration = Duration::from_secs(60);

/// The births that have been read.
#[derive(Debug, Default)]
struct Births {
    /// Changes where one may have been missed.
    era: u64,
    /// Who gave birth, and to whom.
    known: VecDeque<(i32, i32)>,
    /// The place of the first of them.
    first: u64,
}

impl Births {
    fn begin_anew(&mut self) {
        self.era += 1;
        self.known.clear();
    }

    fn add(&mut self, parent: i32, child: i32) {
        if self.known.len() == BIRTHS {
            self.known.pop_front();
            self.first += 1;
        }
        self.known.push_back((parent, child));
    }

    fn now(&self) -> Moment {
        Moment {
            era: self.era,
            place: self.first + self.known.len() as u64,
        }
    }

    /// Those since then; none if one may have been missed.
    fn since(&self, then: Moment) -> Option<Vec<(i32, i32)>> {
        if then.era != self.era || then.place < self.first {
            return None;
        }
        let skip = usize::try_from(then.place - self.first).ok()?;
        Some(self.known.range(skip..).copied().collect())
    }
}

/// Those born to process `pid`, to them, and so on, in the order read: a child may come before its parent there, where they
/// were born on different processors. The first has the place `first`.
fn family(pid: i32, births: &[(i32, i32)], first: u64) -> Vec<Newcomer> {
    // Who gave birth has no id here if it is outside of our namespace of ids: that could be anybody.
    const SOMEBODY: i32 = 0;
    let mut by_parent = BTreeMap::<i32, Vec<usize>>::new();
    for (k, &(parent, _)) in births.iter().enumerate() {
        by_parent.entry(parent.max(SOMEBODY)).or_default().push(k);
    }
    let (mut parents, mut born) = (vec![SOMEBODY, pid], Vec::new());
    while let Some(parent) = parents.pop() {
        for k in by_parent.remove(&parent).unwrap_or_default() {
            born.push((first + k as u64, births[k].1));
            parents.push(births[k].1);
        }
    }
    born.sort_unstable();
    born
}

/// What the kernel writes of one processor.
#[derive(Debug)]
struct Ring {
    map: NonNull<u8>,
    bytes: usize,
    read_to: u64,
}

// SAFETY: the mapping belongs to the ring alone, and nothing in it to a thread.
unsafe impl Send for Ring {}

/// `struct perf_event_attr`, as far as its first version goes.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint_kind: u32,
    breakpoint: u64,
}

impl Ring {
    const SOFTWARE: u32 = 1; // PERF_TYPE_SOFTWARE
    const NOTHING: u64 = 9; // PERF_COUNT_SW_DUMMY
    const TOLD: u64 = 1 << 4 | 1; // PERF_FORMAT_LOST, PERF_FORMAT_TOTAL_TIME_ENABLED
    const NO_KERNEL: u64 = 3 << 5; // exclude_kernel, exclude_hv
    const TASKS: u64 = 1 << 13; // task: births and ends
    const CLOSE_ON_EXEC: libc::c_ulong = 8; // PERF_FLAG_FD_CLOEXEC
    const HEAD: usize = 1024; // of struct perf_event_mmap_page: data_head, data_tail
    const TAIL: usize = 1032;
    const FORK: u64 = 7; // PERF_RECORD_FORK
    const EXIT: u64 = 4; // PERF_RECORD_EXIT
    const LOST: u64 = 2; // PERF_RECORD_LOST: some were left out, which the event tells, too

    fn new(processor: i32, bytes: usize) -> io::Result<(Self, OwnedFd)> {
        let attributes = Attributes {
            kind: Self::SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: Self::NOTHING,
            read_format: Self::TOLD,
            flags: Self::NO_KERNEL | Self::TASKS,
            ..Attributes::default()
        };
        // SAFETY: the attributes are as long as they say and outlive the call; what it returns is a new descriptor.
        let event = unsafe {
            let (everybody, no_group) = (-1, -1);
            let fd = check(libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                everybody,
                processor,
                no_group,
                Self::CLOSE_ON_EXEC,
            ))?;
            OwnedFd::from_raw_fd(fd as i32)
        };
        // SAFETY: a fresh mapping, of which nobody else knows.
        let map = unsafe {
            let rights = libc::PROT_READ | libc::PROT_WRITE; // so that nothing is overwritten that was not read
            let size = PAGE as usize + bytes;
            let flags = libc::MAP_SHARED;
            libc::mmap(
                std::ptr::null_mut(),
                size,
                rights,
                flags,
                event.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::Other))?;
        let ring = Self {
            map,
            bytes,
            read_to: 0,
        };
        Ok((ring, event))
    }

    fn number(&self, at: usize) -> &AtomicU64 {
        // SAFETY: within the first page of the mapping, aligned, and changed by nobody but atomically.
        unsafe { &*self.map.as_ptr().add(at).cast::<AtomicU64>() }
    }

    fn word(&self, at: u64) -> u64 {
        let at = at as usize & (self.bytes - 1) & !7;
        // SAFETY: within the mapping, behind its first page; the kernel writes only what has been read.
        unsafe {
            let records = self.map.as_ptr().add(PAGE as usize);
            records.add(at).cast::<u64>().read_volatile()
        }
    }

    /// Reads what is new; false if that is nothing the kernel writes.
    fn read(&mut self, mut born: impl FnMut(i32, i32)) -> bool {
        let head = self.number(Self::HEAD).load(Ordering::Acquire);
        let mut at = self.read_to;
        while at < head {
            let first = self.word(at);
            let (kind, size) = (first & u64::from(u32::MAX), first >> (32 + 16));
            let known = matches!(kind, Self::FORK | Self::EXIT | Self::LOST);
            if !known || size < 24 || at + size > head {
                return false;
            }
            if kind == Self::FORK {
                // The process of the child, and of who made it; a thread's is the same.
                let ids = self.word(at + 8);
                let (child, parent) = (ids as u32 as i32, (ids >> 32) as u32 as i32);
                if child != parent {
                    born(parent, child);
                }
            }
            at += size;
        }
        self.read_to = head;
        self.number(Self::TAIL).store(head, Ordering::Release);
        true
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this ring's own.
        unsafe { libc::munmap(self.map.as_ptr().cast(), PAGE as usize + self.bytes) };
    }
}

/// How many records of an event were left out so far; none if it is no more on its processor: its clock stands still.
fn left_out(event: &OwnedFd) -> Option<u64> {
    let ask = || {
        let mut told = [0u64; 3]; // what it counts, for how long it has been enabled, and what was left out
        let size = size_of_val(&told);
        // SAFETY: room for as much as is asked for.
        let n = unsafe { libc::read(event.as_raw_fd(), told.as_mut_ptr().cast(), size) };
        (n == size as isize).then_some((told[1], told[2]))
    };
    let (before, _) = ask()?;
    let (now, left_out) = ask()?;
    (now > before).then_some(left_out)
}

/// The same of several.
fn all_left_out(events: &[OwnedFd]) -> Option<u64> {
    events.iter().map(left_out).sum()
}

/// All processors' records.
#[derive(Debug)]
struct Recorder {
    /// A child of this process has not its memory.
    process: u32,
    rings: Vec<Ring>,
    events: Arc<Vec<OwnedFd>>,
    births: Births,
    /// How many records had been left out when this era began, or before.
    left_out: u64,
}

impl Recorder {
    fn new(era: u64) -> io::Result<Self> {
        let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
        // A filter of system calls may kill whoever makes one that it does not know.
        if filtered(&std::fs::read("/proc/thread-self/status")?) != Some(false) {
            return Err(unsupported());
        }
        let list = |which| std::fs::read(format!("/sys/devices/system/cpu/{which}"));
        let (possible, online) = (list("possible")?, list("online")?);
        let processors = processors(&online).filter(|_| online == possible);
        let processors = processors.ok_or_else(unsupported)?;
        let bytes = (ALL_BYTES / processors.len()).clamp(LEAST_BYTES, MOST_BYTES);
        let bytes = 1 << bytes.ilog2();
        let made: io::Result<Vec<_>> = processors
            .into_iter()
            .map(|processor| Ring::new(processor, bytes))
            .collect();
        let (rings, events) = made?.into_iter().unzip();
        let births = Births {
            era,
            ..Births::default()
        };
        Ok(Self {
            process: std::process::id(),
            rings,
            events: Arc::new(events),
            births,
            left_out: 0,
        })
    }

    /// Whether it was made by the process that this one is a child of.
    fn is_foreign(&self) -> bool {
        self.process != std::process::id()
    }

    /// Reads what is new; false if that cannot be understood.
    fn read(&mut self) -> bool {
        let births = &mut self.births;
        let mut rings = self.rings.iter_mut();
        rings.all(|ring| ring.read(|parent, child| births.add(parent, child)))
    }
}

/// The processors of a list like "0-3,8"; none if there are too many, or it is no such list.
fn processors(list: &[u8]) -> Option<Vec<i32>> {
    let mut all = Vec::new();
    for range in std::str::from_utf8(list).ok()?.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (i32, i32) = (first.parse().ok()?, last.parse().ok()?);
        all.extend((first..=last).take(PROCESSORS + 1));
    }
    (!all.is_empty() && all.len() <= PROCESSORS).then_some(all)
}

/// The records that this process has.
#[derive(Debug)]
struct Kept {
    recorder: Option<Recorder>,
    /// How many recorders there have been.
    made: u64,
    tried: Option<Instant>,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    recorder: None,
    made: 0,
    tried: None,
});

impl Kept {
    /// The recorder, with all that was written until now.
    fn up_to_date(&mut self) -> Option<&mut Recorder> {
        if !self.recorder.as_mut().filter(|r| !r.is_foreign())?.read() {
            self.recorder = None;
        }
        self.recorder.as_mut()
    }
}

/// Has births noted from now on, if they are not yet and may be.
pub fn begin() {
    if failpoints::active("newcomers") {
        return;
    }
    let mut kept = lock(&KEPT);
    if kept.recorder.as_ref().is_some_and(Recorder::is_foreign) {
        std::mem::forget(kept.recorder.take()); // its mappings are not there to be undone
        kept.tried = None;
    }
    let lately = kept.tried.is_some_and(|tried| tried.elapsed() < AGAIN);
    if kept.recorder.is_none() && !lately {
        kept.tried = Some(Instant::now());
        // The eras of one begin where those of another cannot end.
        kept.made += 1;
        kept.recorder = Recorder::new(kept.made << 32).ok();
    }
}

/// Now, if births are noted: whoever is born later is among those since then.
pub fn now() -> Option<Moment> {
    let mut kept = lock(&KEPT);
    Some(kept.up_to_date()?.births.now())
}

/// The processes born since to process `pid` and to those so born, with now; none if one may have been missed. They may
/// have ended, and others have their ids.
pub fn born_to(pid: i32, since: Moment) -> Option<(Vec<Newcomer>, Moment)> {
    born_in(&KEPT, pid, since)
}

fn born_in(kept: &Mutex<Kept>, pid: i32, since: Moment) -> Option<(Vec<Newcomer>, Moment)> {
    let (births, now, events, left_out);
    {
        let mut kept = lock(kept);
        let recorder = kept.up_to_date()?;
        births = recorder.births.since(since)?;
        now = recorder.births.now();
        left_out = recorder.left_out;
        events = Arc::clone(&recorder.events);
    }
    // Asked after those were read: nothing had been left out until then, by events that were there all the time.
    let told = all_left_out(&events);
    if told == Some(left_out) {
        return Some((family(pid, &births, since.place), now));
    }
    let mut kept = lock(kept);
    if let Some(same) = kept
        .recorder
        .as_mut()
        .filter(|r| Arc::ptr_eq(&r.events, &events))
    {
        match told {
            // Unless another has just done so. What is left out meanwhile is told next time.
            Some(more) if same.left_out == left_out => {
                same.left_out = more;
                same.births.begin_anew();
            }
            Some(_) => {}
            None => kept.recorder = None,
        }
    }
    None
}

#[cfg(test)]
mod tests;
