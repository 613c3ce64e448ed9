//! Pages of processes, read by a thread that can be left behind.
//!
//! A process can hold up whoever reads it, for ever: its address space may be locked, or a page be of a file system or of a
//! userfaultfd that does not answer. Who fills frames serves all, and must not wait for one. The thread only reads, into
//! buffers of its own: one that comes back late changes nothing.

use std::io;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pagemap::{ENTRY_FILE, ENTRY_PRESENT, ENTRY_SWAPPED};
use crate::read::{AddressSpace, PageBuffer, Source, CODE_GONE};
use crate::sys::{self, cpu_time, PAGE};

/// Pages read at a time: they stay in the cache.
pub const PART: usize = 64;
/// A part that gets no further for so long is given up; all parts of a request together may be waited for that long twice.
const PATIENCE: Duration = Duration::from_secs(2);
/// It gets further when it takes so much CPU time meanwhile.
const PROGRESS: Duration = Duration::from_millis(5);

/// Some pages to be read, and what was read.
#[derive(Default)]
pub struct Part {
    addrs: Vec<u64>,
    buffer: PageBuffer,
    /// What became of each page: `CODE_OK` or `CODE_GONE`.
    pub codes: Vec<u8>,
    cpu: Duration,
}

impl Part {
    /// The bytes of the pages, one behind the other.
    pub fn bytes(&mut self) -> &mut [u8] {
        let len = self.addrs.len() * PAGE as usize;
        self.buffer.lend(len)
    }

    /// Reads those pages that have memory of the process's own. To ask for others may take for ever, and gives nothing.
    fn read(&mut self, source: &Source) -> io::Result<()> {
        let Self {
            addrs,
            buffer,
            codes,
            ..
        } = self;
        codes.clear();
        codes.resize(addrs.len(), CODE_GONE);
        let mut entries = Vec::with_capacity(addrs.len());
        source.entries(addrs, &mut entries)?;
        let own =
            |&entry: &u64| entry & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 && entry & ENTRY_FILE == 0;
        let page = PAGE as usize;
        let bytes = buffer.lend(addrs.len() * page);
        let mut first = 0;
        while first < entries.len() {
            let run = entries[first..].iter().take_while(|e| own(e)).count();
            let (its, end) = (first..first + run, first + run);
            let known = Some(&entries[its.clone()]);
            let out = &mut bytes[first * page..end * page];
            source.read(&addrs[its.clone()], known, page, out, &mut codes[its])?;
            first = end + entries[end..].iter().take_while(|e| !own(e)).count();
        }
        Ok(())
    }
}

/// What is given to the thread: a part of this process's, opened anew where it is the first of a request.
struct Job {
    pid: i32,
    first: bool,
    /// The thread whose claim to a processor is to be taken over.
    like: i32,
    part: Part,
}

/// The thread.
struct Hand {
    jobs: Sender<Job>,
    parts: Receiver<Part>,
    clock: libc::clockid_t,
    /// Held by the thread for as long as it runs.
    runs: Arc<()>,
}

impl Hand {
    fn begin() -> io::Result<Self> {
        let (jobs, todo) = channel::<Job>();
        let (done, parts) = channel();
        let (tell, clock) = channel();
        let runs = Arc::new(());
        let held = Arc::clone(&runs);
        sys::quiet_thread("reading", move || {
            let mut clock = 0;
            // SAFETY: the calling thread, and a live place for its clock.
            unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
            let _ = tell.send(clock);
            let mut source = None;
            for mut job in todo {
                let before = cpu_time();
                if job.first {
                    sys::be_as_modest_as(job.like);
                    source = AddressSpace::open(job.pid).map(Source::Process).ok();
                }
                let read = source.as_ref().map(|source| job.part.read(source));
                if !matches!(read, Some(Ok(()))) {
                    job.part.codes = vec![CODE_GONE; job.part.addrs.len()];
                }
                job.part.cpu = cpu_time().saturating_sub(before);
                if done.send(job.part).is_err() {
                    break;
                }
            }
            drop(held);
        })?;
        let clock = clock.recv().map_err(io::Error::other)?;
        Ok(Self {
            jobs,
            parts,
            clock,
            runs,
        })
    }

    /// CPU time of the thread so far.
    fn cpu(&self) -> Duration {
        let mut t = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: writes one timespec into a live one. The clock of a thread that has ended is an error, and writes nothing.
        unsafe { libc::clock_gettime(self.clock, &mut t) };
        Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
    }

    /// The next part that was given to it; None where it gets no further, or when `until` has come.
    fn take(&self, until: Instant) -> Option<Part> {
        loop {
            let (before, now) = (self.cpu(), Instant::now());
            let wait = PATIENCE.min(until.saturating_duration_since(now));
            match self.parts.recv_timeout(wait) {
                Ok(part) => return Some(part),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    let got_further = self.cpu().saturating_sub(before) >= PROGRESS;
                    if !got_further || Instant::now() >= until {
                        return None;
                    }
                }
            }
        }
    }
}

/// Who reads for one that must not wait for ever.
#[derive(Default)]
pub struct Reader {
    hand: Option<Hand>,
    /// Processes in which a thread was left behind.
    behind: Vec<(i32, Arc<()>)>,
    spare: Vec<Part>,
}

impl Reader {
    /// Reads pages of process `pid`, `PART` at a time, and hands each part to `use_part` with the place of its first page.
    /// What is not handed over could not be read. Returns the CPU time that reading took, in another thread; `like`: see
    /// [`sys::be_as_modest_as`].
    pub fn each(
        &mut self,
        pid: i32,
        like: i32,
        addrs: &[u64],
        mut use_part: impl FnMut(usize, &mut Part),
    ) -> Duration {
        self.behind.retain(|(_, runs)| Arc::strong_count(runs) > 1);
        if self.behind.iter().any(|(held, _)| *held == pid) {
            return Duration::ZERO;
        }
        if self.hand.is_none() {
            self.hand = Hand::begin().ok();
        }
        let Some(hand) = self.hand.take() else {
            return Duration::ZERO;
        };
        let until = Instant::now() + 2 * PATIENCE;
        let mut spent = Duration::ZERO;
        let mut given = addrs.chunks(PART).enumerate();
        let mut give = |spare: &mut Vec<Part>| {
            if let Some((i, addrs)) = given.next() {
                let mut part = spare.pop().unwrap_or_default();
                part.addrs.clear();
                part.addrs.extend_from_slice(addrs);
                let first = i == 0;
                let job = Job {
                    pid,
                    first,
                    like,
                    part,
                };
                // It cannot have ended; if it has, nothing comes back.
                let _ = hand.jobs.send(job);
            }
        };
        // One is read while the one before is used.
        give(&mut self.spare);
        for i in 0..addrs.len().div_ceil(PART) {
            give(&mut self.spare);
            let Some(mut part) = hand.take(until) else {
                self.behind.push((pid, hand.runs));
                return spent;
            };
            spent += part.cpu;
            use_part(i * PART, &mut part);
            self.spare.push(part);
        }
        self.hand = Some(hand);
        spent
    }
}
