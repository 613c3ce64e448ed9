//! The engine's end of the pool: has frames filled and freed by the one who alone can write them.

use std::os::unix::net::UnixStream;

use super::{FILL, FREE, RECORDS_MAX, SIZE};
use crate::wire::{cut, words, Connection, Failure, Header, WaitOn};

/// A connection to who fills frames. Several threads may use it; they are answered one after another.
pub struct Client(Connection);

impl Client {
    /// Over the socket whose other end a guardian serves.
    pub fn new(stream: UnixStream, wait_on: WaitOn) -> Self {
        Self(Connection::new(stream, wait_on))
    }

    /// Leaves; the frames stay for as long as somebody maps them.
    pub fn close(&self) {
        self.0.close();
    }

    /// The CPU-seconds that a request took, and what else was answered.
    fn ask(
        &self,
        number: u32,
        pid: i32,
        records: impl ExactSizeIterator<Item = (u64, u64)>,
    ) -> Result<(f64, Vec<u8>), Failure> {
        let header = Header {
            number,
            pid,
            records: 0,
            word: crate::changes::own_tid() as u32,
        };
        let mut reply = self.0.ask(&header.with(records))?;
        let [spent] = words(&reply)?;
        reply.drain(..8);
        Ok((f64::from_bits(spent), reply))
    }

    /// Copies the pages at `addrs` of a process into free frames (same length): one code a page, see
    /// [`crate::pool::Writer::fill`], and the CPU-seconds that it took.
    pub fn fill(&self, pid: i32, addrs: &[u64], frames: &[u32]) -> Result<(Vec<u8>, f64), Failure> {
        assert_eq!(addrs.len(), frames.len(), "a frame for each page");
        let records = addrs.iter().zip(frames);
        let records = records.map(|(addr, frame)| (*addr, u64::from(*frame)));
        let (spent, codes) = self.ask(FILL, pid, records)?;
        if codes.len() != addrs.len() {
            return cut();
        }
        Ok((codes, spent))
    }

    /// Gives the memory of `count[i]` frames from `first[i]` on back to the system (same length); nothing may map them.
    pub fn free(&self, first: &[u64], count: &[u64]) -> Result<(), Failure> {
        assert_eq!(first.len(), count.len(), "a count for each first frame");
        for (first, count) in first.chunks(RECORDS_MAX).zip(count.chunks(RECORDS_MAX)) {
            let records = first.iter().copied().zip(count.iter().copied());
            self.ask(FREE, 0, records)?;
        }
        Ok(())
    }

    /// Bytes of memory that all frames together take.
    pub fn bytes(&self) -> Result<u64, Failure> {
        let [bytes] = words(&self.ask(SIZE, 0, std::iter::empty())?.1)?;
        Ok(bytes)
    }
}
