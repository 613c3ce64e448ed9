//! Who else runs in a target's memory, or has its descriptors: processes made by `clone` with `CLONE_VM` or `CLONE_FILES`
//! but not as threads.
//!
//! They are in no list of the target's threads and do not stop with them. The kernel tells whether two tasks have one
//! memory or one table (`kcmp`), so everybody is asked once, and after that only who is new: both come by birth alone.
//! What was asked counts only if all threads of the target stood still meanwhile and nobody was found: then nobody could
//! be giving birth, and who has been asked stays a stranger. Otherwise the same are asked again.
//!
//! Who is new is told by ids, which the kernel gives out in order. Where many are, from then on it is first asked whether
//! the target has given birth at all, as the kernel notes it ([`crate::newcomers`]): if not, nobody need be asked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::newcomers::Newcomers;
use crate::processes;

/// What is known of each target.
#[derive(Debug, Default)]
pub struct Sharers {
    known: BTreeMap<(What, i32), Known>,
    /// How often all processes were asked.
    listings: u64,
    load: Option<File>,
    stat: Option<File>,
}

/// Who asks: a target, through one of its threads.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// Its process id.
    pub pid: i32,
    /// What tells it from another process that has had that id.
    pub pidfd: &'a Weak<OwnedFd>,
    /// The thread whose memory or table it is.
    pub tid: i32,
    /// Whether all of its threads are stopped. Only then nobody can come in between, and what is found out lasts.
    pub stopped: bool,
}

#[derive(Debug, Default)]
struct Known {
    /// Whom this is about.
    pidfd: Weak<OwnedFd>,
    /// When it was certain, with all threads stopped, that there was nobody.
    nobody: Option<Nobody>,
    /// Tells whether it has given birth since, where that is noted.
    newcomers: Option<Newcomers>,
    /// Who was found when last asked, and the newest process id then.
    sharers: Vec<i32>,
    looked: i32,
    /// Many were asked while threads ran, and will be each time.
    due: bool,
}

#[derive(Clone, Copy, Debug)]
struct Nobody {
    /// The newest process id then.
    newest: i32,
    /// How many processes and threads had been made then, since the system was started.
    made: Option<u64>,
    when: Instant,
}

/// What asking comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// This task shares.
    Shares(i32),
    Not,
    /// It could not be told.
    Unclear,
}

/// More new processes than this are found by listing all instead of by counting up.
const COUNT_UP_MAX: i32 = 2048;
/// Where so many are asked each time it is worth asking once more with all threads stopped, and to have births noted.
const MANY: i32 = 16;
/// How often those are asked who have come while others were, and how often threads are listed that come and go.
const TRIES: u32 = 100;

impl Sharers {
    /// Whether any process but this one has its memory, or that cannot be told. Costs two reads of `/proc/loadavg`, and
    /// about a microsecond for each process made since there was certainly nobody; the first time some for every process.
    /// Where births are noted it costs next to nothing unless this process has given some.
    pub fn any(&mut self, asker: Asker) -> bool {
        !can_tell(asker.tid) || self.any_new(What::Memory, asker)
    }

    /// Whether any task outside of this process has the descriptors of its thread. Costs as much; for a thread
    /// with a table of its own, which few programs make, every task is asked each time.
    pub fn any_with_descriptors(&mut self, asker: Asker) -> bool {
        const WHAT: What = What::Descriptors;
        if !same(WHAT, asker.tid, asker.tid) {
            return true;
        }
        if same(WHAT, asker.tid, asker.pid) {
            return self.any_new(WHAT, asker);
        }
        !matches!(self.ask_all(WHAT, asker), Ok(found) if found.is_empty())
    }

    /// Whether many were asked while threads ran: asked once more, with all of them stopped, they need not be again.
    pub fn is_due(&self, pid: i32) -> bool {
        let known = self.known.get(&(What::Memory, pid));
        known.is_some_and(|k| k.due && k.sharers.is_empty())
    }

    /// To be called now and then: has no births noted any longer than they need be.
    pub fn rest(&mut self) {
        for known in self.known.values_mut() {
            known.newcomers.take_if(|newcomers| newcomers.are_old());
        }
    }

    fn any_new(&mut self, what: What, asker: Asker) -> bool {
        let key = (what, asker.pid);
        if !self.known.contains_key(&key) {
            self.known.retain(|_, k| k.pidfd.strong_count() > 0);
        }
        let mut known = self.known.remove(&key).unwrap_or_default();
        if !known.pidfd.ptr_eq(asker.pidfd) {
            known = Known {
                pidfd: Weak::clone(asker.pidfd),
                ..Known::default()
            };
        }
        let any = self.ask(&mut known, what, asker);
        self.known.insert(key, known);
        // Unclear counts as somebody.
        any.unwrap_or(true)
    }

    /// Asks those who can be new since there was certainly nobody.
    fn ask(&mut self, known: &mut Known, what: What, asker: Asker) -> io::Result<bool> {
        if known.newcomers.as_ref().is_some_and(Newcomers::are_none) {
            (known.due, known.sharers) = (false, Vec::new());
            return Ok(false);
        }
        let when = Instant::now();
        let before = known.nobody;
        let long_ago = before.is_none_or(|b| when - b.when > shortest_round());
        let made = if long_ago { self.made() } else { None };
        // Where it cannot be read (`/proc` mounted with `subset=pid`) all are looked at each time.
        let newest = self.newest_pid().unwrap_or(i32::MAX);
        known.sharers.retain(|&t| other(what, asker, t));
        if !known.sharers.is_empty() {
            // That suffices; who has come to them is told as well.
            let more = match newest.checked_sub(known.looked) {
                Some(new @ 0..=COUNT_UP_MAX) if newest != i32::MAX => {
                    ask_ids(what, asker, newest - new, newest)
                }
                _ => self.ask_all(what, asker)?,
            };
            known.sharers.extend(more);
            known.sharers.sort_unstable();
            known.sharers.dedup();
            known.looked = newest;
            return Ok(true);
        }
        let new = before.map(|b| newest.wrapping_sub(b.newest));
        // Where more have been made than ids were counted up, the ids have begun anew in between.
        let round = long_ago
            && match (before.and_then(|b| b.made), made) {
                (Some(then), Some(now)) => {
                    now.wrapping_sub(then) > u64::try_from(new.unwrap_or(0)).unwrap_or(0)
                }
                _ => true,
            };
        let few = new.is_some_and(|n| (0..=COUNT_UP_MAX).contains(&n));
        let known_to = before
            .filter(|_| few && !round && newest != i32::MAX)
            .map(|b| b.newest);
        let many = known_to.is_none_or(|known_to| newest - known_to > MANY);
        known.due = !asker.stopped && many;
        known.sharers = self.ask_from(known_to, newest, what, asker)?;
        known.looked = newest;
        let nobody = known.sharers.is_empty();
        if nobody && asker.stopped && newest != i32::MAX {
            // Not asked when it was just before: as many as ids were counted up.
            let counted = before.and_then(|b| b.made).zip(new);
            let counted = counted.map(|(then, new)| then.wrapping_add_signed(i64::from(new)));
            let made = match long_ago {
                // As many as were made when that was read, or the birth of one whose id is counted already would be taken for
                // a round. Where ids are scarce those who are born while all are asked could come to one.
                true if self.ids_are_plenty() => self.made(),
                true => made,
                false => counted,
            };
            known.nobody = Some(Nobody { newest, made, when });
            // Those who come from here on are noted, for nobody but its own threads, which are stopped, can have any come.
            let newcomers = &mut known.newcomers;
            if !newcomers.as_mut().is_some_and(|n| n.are_known(asker.pid)) {
                let wanted = many && before.is_some();
                *newcomers = wanted.then(|| Newcomers::of(asker.pid)).flatten();
            }
        }
        Ok(!nobody)
    }

    /// Asks everybody, or whose id is above one that was the newest when there was nobody. An answer that there is no such
    /// task is none: it may be about to be born. But then its parent is there and is asked before it, having the lower id,
    /// unless it was born only after those who are asked were counted: so this ends when nobody new has come meanwhile.
    fn ask_from(
        &mut self,
        mut known_to: Option<i32>,
        mut newest: i32,
        what: What,
        asker: Asker,
    ) -> io::Result<Vec<i32>> {
        for _ in 0..TRIES {
            let found = match known_to {
                Some(known_to) => ask_ids(what, asker, known_to, newest),
                None => match self.ask_all(what, asker)? {
                    // Ids may have begun anew between a parent, asked late, and its child, missed early.
                    none if none.is_empty() => self.ask_all(what, asker)?,
                    found => found,
                },
            };
            let now = self.newest_pid().unwrap_or(i32::MAX);
            let begun_anew = now < newest;
            if !found.is_empty() || (now == newest || known_to.is_none()) && !begun_anew {
                return Ok(found);
            }
            let few = !begun_anew && now - newest <= COUNT_UP_MAX;
            known_to = Some(newest).filter(|_| few);
            newest = now;
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Those who share among all: a task of each process.
    fn ask_all(&mut self, what: What, asker: Asker) -> io::Result<Vec<i32>> {
        self.listings += 1;
        ask_all(what, asker)
    }

    /// How many processes and threads have been made since the system was started.
    fn made(&mut self) -> Option<u64> {
        if self.stat.is_none() {
            self.stat = File::open("/proc/stat").ok();
        }
        let mut text = Vec::new();
        let mut file = self.stat.as_ref()?;
        file.rewind().ok()?;
        file.read_to_end(&mut text).ok()?;
        let line = text
            .split(|&b| b == b'\n')
            .find_map(|l| l.strip_prefix(b"processes "))?;
        std::str::from_utf8(line).ok()?.trim().parse().ok()
    }

    /// Those that were found when last asked.
    pub fn of(&self, pid: i32) -> Vec<i32> {
        self.known
            .get(&(What::Memory, pid))
            .map_or_else(Vec::new, |k| k.sharers.clone())
    }

    /// Whether many thousand ids must be given out before they begin anew, whoever ends or stays meanwhile: each of them is
    /// given out or somebody's, of those who were there before or were made since.
    fn ids_are_plenty(&mut self) -> bool {
        // Three averages, those that run of how many there are, and the newest.
        let tasks = self.load().and_then(|text| {
            let (_, all) = text.split_ascii_whitespace().nth(3)?.split_once('/')?;
            all.parse().ok()
        });
        let ids = most_ids().saturating_sub(300); // kept for the start of the system
        ids.saturating_sub(tasks.unwrap_or(u64::MAX)) / 2 > 4 * COUNT_UP_MAX as u64
    }

    /// The newest process id given out in our namespace.
    fn newest_pid(&mut self) -> Option<i32> {
        self.load()?.split_ascii_whitespace().last()?.parse().ok()
    }

    fn load(&mut self) -> Option<String> {
        if self.load.is_none() {
            self.load = File::open("/proc/loadavg").ok();
        }
        let mut text = [0u8; 128];
        let n = self.load.as_ref()?.read_at(&mut text, 0).ok()?;
        Some(std::str::from_utf8(&text[..n]).ok()?.to_owned())
    }
}

/// Whether the kernel tells which processes have the memory of thread `tid`. Not so where it is built without `kcmp`, or a
/// filter of system calls keeps that from us: then nothing may be done that needs all of them to stand still.
pub fn can_tell(tid: i32) -> bool {
    same_memory(tid, tid)
}

/// The shortest time in which all process ids can be used once: no processor makes a million processes a second.
fn shortest_round() -> Duration {
    static ROUND: OnceLock<Duration> = OnceLock::new();
    *ROUND.get_or_init(|| {
        let ids = most_ids();
        // SAFETY: no pointers.
        let processors = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
        Duration::from_micros(ids / u64::try_from(processors).unwrap_or(1).max(1))
    })
}

/// How many process ids there are.
fn most_ids() -> u64 {
    let most = std::fs::read_to_string("/proc/sys/kernel/pid_max");
    most.ok().and_then(|m| m.trim().parse().ok()).unwrap_or(0)
}

/// Whether task `t` is none of the asking process and has what its thread has.
fn other(what: What, asker: Asker, t: i32) -> bool {
    t != asker.pid && same(what, asker.tid, t) && !thread_of(asker.pid, t)
}

/// Those who share among tasks with ids above `known_to` up to `newest`.
fn ask_ids(what: What, asker: Asker, known_to: i32, newest: i32) -> Vec<i32> {
    let ids = known_to + 1..=newest;
    ids.filter(|&t| other(what, asker, t)).collect()
}

/// Those who share among all: a task of each process.
fn ask_all(what: What, asker: Asker) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    let mut unclear = false;
    processes::each(|p| {
        match ask_process(what, asker, p) {
            Answer::Shares(t) => found.push(t),
            Answer::Not => {}
            Answer::Unclear => unclear = true,
        }
        true
    })?;
    if found.is_empty() && unclear {
        return Err(io::ErrorKind::Other.into());
    }
    Ok(found)
}

/// Asks process `p`.
fn ask_process(what: What, asker: Asker, p: i32) -> Answer {
    if p == asker.pid {
        return Answer::Not;
    }
    if same(what, asker.tid, p) {
        return Answer::Shares(p);
    }
    match processes::thread_count(p) {
        Ok(0 | 1) => return Answer::Not,
        Ok(_) => {}
        Err(_) => return Answer::Unclear,
    }
    // The first thread has nothing any more where it has ended before others.
    let mut before = Vec::new();
    for _ in 0..TRIES {
        let (threads, all) = match processes::threads(p) {
            Ok(Some(threads)) => threads,
            Ok(None) => return Answer::Not,
            Err(_) => return Answer::Unclear,
        };
        for &t in &threads {
            if same(what, asker.tid, t) {
                return Answer::Shares(t);
            }
            // All threads of a process have the memory that one has.
            if what == What::Memory && processes::has_memory(p, t) {
                return Answer::Not;
            }
        }
        // Each may have a table of its own. Where none has memory all are ending, unless one was born meanwhile.
        if all && (what == What::Descriptors || threads == before) {
            return Answer::Not;
        }
        before = threads;
    }
    Answer::Unclear
}

fn thread_of(pid: i32, tid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
}

/// `kcmp` of two tasks' memory. Processes that we may not look at are of other users and share none.
pub fn same_memory(a: i32, b: i32) -> bool {
    same(What::Memory, a, b)
}

/// What two tasks may have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Their address space.
    Memory = 1,
    /// Their table of descriptors.
    Descriptors = 2,
}

/// Whether two tasks have one memory, or one table of descriptors; false also where that cannot be told.
pub fn same(what: What, a: i32, b: i32) -> bool {
    // SAFETY: no pointers.
    unsafe { libc::syscall(libc::SYS_kcmp, a, b, what as i32, 0, 0) == 0 }
}

#[cfg(test)]
mod tests;
