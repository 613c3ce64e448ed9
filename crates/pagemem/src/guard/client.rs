//! The engine's end of the guardian: each request as a call. What is asked when, and what to make of it, is not decided
//! here.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::door;
use super::wire::{decode, op, record, FLAG_APART, FLAG_FORKS};
use crate::sys::{self, FileId};
use crate::target::{Outcome, PageRun, StopLimits, Way};
use crate::wire::{words, Connection, Failure, Header, WaitOn};

/// A connection to a guardian. Several threads may use it; they are answered one after another.
pub struct Client(Connection);

impl Client {
    /// For the engine that has started the guardian and shares a pair of sockets with it.
    pub fn new(stream: UnixStream, wait_on: WaitOn) -> Self {
        Self(Connection::new(stream, wait_on))
    }

    /// Connects to the guardian of a pool, in the place of an engine that has gone; with the PID and the user of the one
    /// who listens there. Nothing is waited for longer than `patience`.
    pub fn of_pool(
        pool: FileId,
        patience: Duration,
        wait_on: WaitOn,
    ) -> io::Result<(Self, i32, u32)> {
        let stream = door::knock(pool)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let peer = sys::peer(&stream)?;
        Ok((Self::new(stream, wait_on), peer.pid, peer.uid))
    }

    /// Closes the connection; the guardian guards on what is still merged.
    pub fn close(&self) {
        self.0.close();
    }

    fn ask(
        &self,
        number: u32,
        pid: i32,
        word: u32,
        records: impl ExactSizeIterator<Item = (u64, u64)>,
    ) -> Result<Vec<u8>, Failure> {
        let header = Header {
            number,
            pid,
            records: 0,
            word,
        };
        self.0.ask(&header.with(records))
    }

    /// Sets the limits of all targets.
    pub fn set_limits(&self, limits: StopLimits) -> Result<(), Failure> {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let words = (micros(limits.pause), micros(limits.stop_timeout));
        self.ask(op::LIMITS, 0, 0, [words].into_iter()).map(drop)
    }

    /// What tells the pool's file from all others, and whether it lies on a file system of its own.
    pub fn pool(&self) -> Result<(FileId, bool), Failure> {
        let [device, inode, apart] = words(&self.ask(op::POOL, 0, 0, std::iter::empty())?)?;
        Ok((FileId { device, inode }, apart != 0))
    }

    /// Attaches to a process; the addresses, first and one past the last, of what was planted in it. With `forks` the
    /// kernel is to tell of its children.
    pub fn attach(&self, pid: i32, forks: bool) -> Result<(u64, u64), Failure> {
        let flags = if forks { FLAG_FORKS } else { 0 };
        let [start, end] = words(&self.ask(op::ATTACH, pid, flags, std::iter::empty())?)?;
        Ok((start, end))
    }

    /// Tracks writes in ranges; an errno for each, 0 where it worked. The low 12 bits of the end carry advice, see
    /// [`crate::target::Target::arm`].
    pub fn arm(&self, pid: i32, ranges: &[(u64, u64)]) -> Result<Vec<i32>, Failure> {
        let told = self.ask(op::ARM, pid, 0, ranges.iter().copied())?;
        Ok(numbers(&told))
    }

    /// Maps runs to frames.
    pub fn merge(&self, pid: i32, runs: &[PageRun]) -> Result<(Outcome, Duration), Failure> {
        self.runs(op::MERGE, pid, 0, runs)
    }

    /// Gives runs of pages of zeros back to the kernel's zero page.
    pub fn drop_zero(&self, pid: i32, runs: &[PageRun]) -> Result<(Outcome, Duration), Failure> {
        self.runs(op::ZERO, pid, 0, runs)
    }

    /// Gives merged runs memory of their own again.
    pub fn unmerge(
        &self,
        pid: i32,
        runs: &[PageRun],
        way: Way,
    ) -> Result<(Outcome, Duration), Failure> {
        let flags = match way {
            Way::Joined => 0,
            Way::Apart => FLAG_APART,
        };
        self.runs(op::UNMERGE, pid, flags, runs)
    }

    /// Keeps merged memory from growing where it is: runs of pages with nothing behind them.
    pub fn close_ends(&self, pid: i32, runs: &[PageRun]) -> Result<(Outcome, Duration), Failure> {
        self.runs(op::GUARD_PAGES, pid, 0, runs)
    }

    fn runs(
        &self,
        number: u32,
        pid: i32,
        flags: u32,
        runs: &[PageRun],
    ) -> Result<(Outcome, Duration), Failure> {
        decode(&self.ask(number, pid, flags, runs.iter().map(record))?)
    }

    /// Removes what was planted in a process and watches it no longer, unless some of it is left merged.
    pub fn detach(&self, pid: i32) -> Result<(), Failure> {
        self.ask(op::DETACH, pid, 0, std::iter::empty()).map(drop)
    }

    /// The processes that are attached or, as children of such, guarded.
    pub fn targets(&self) -> Result<Vec<i32>, Failure> {
        let told = self.ask(op::STATUS, 0, 0, std::iter::empty())?;
        Ok(numbers(&told))
    }
}

fn numbers(bytes: &[u8]) -> Vec<i32> {
    let number = |b: &[u8]| i32::from_le_bytes(b.try_into().expect("4 bytes"));
    bytes.chunks_exact(4).map(number).collect()
}
