//! What engine and guardian say to each other, as bytes; how they stand on the socket: [`crate::wire`].

use std::io;
use std::time::{Duration, Instant};

use crate::sys::pairs;
use crate::target::{Outcome, PageRun, StopLimits};
use crate::wire::{cut, Failure, Header, HEADER, RECORD};

/// Requests, by number.
#[allow(missing_docs)]
pub mod op {
    pub const ATTACH: u32 = 1;
    pub const ARM: u32 = 2;
    pub const MERGE: u32 = 3;
    pub const ZERO: u32 = 4;
    pub const UNMERGE: u32 = 5;
    pub const DETACH: u32 = 6;
    pub const STATUS: u32 = 7;
    pub const LIMITS: u32 = 8;
    pub const GUARD_PAGES: u32 = 9;
    pub const POOL: u32 = 10;
}

/// Flag of an attach request: let the kernel tell of forks (needs `CAP_SYS_PTRACE`).
pub const FLAG_FORKS: u32 = 1;
/// Flag of a request to unmerge: out of reach of other processes, though each run stays a mapping of its own.
pub const FLAG_APART: u32 = 1;

/// Records of a request at most: one for each mapping that a process can have, and some.
const RECORDS_MAX: usize = 1 << 20;

/// One request.
#[derive(Debug)]
pub struct Request {
    /// Its number.
    pub number: u32,
    /// The process that it is about.
    pub pid: i32,
    /// Flags.
    pub flags: u32,
    /// What follows the header.
    pub records: Vec<u8>,
}

impl Request {
    /// Takes the first request from what has been received, if it is there as a whole.
    pub fn take(received: &mut Vec<u8>) -> io::Result<Option<Self>> {
        let Some(header) = received.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let header = Header::of(header);
        let n = header.records as usize;
        if n > RECORDS_MAX {
            return Err(invalid());
        }
        let length = HEADER + n * RECORD;
        if received.len() < length {
            return Ok(None);
        }
        let rest = received.split_off(length);
        let mut records = std::mem::replace(received, rest);
        records.drain(..HEADER);
        Ok(Some(Self {
            number: header.number,
            pid: header.pid,
            flags: header.word,
            records,
        }))
    }

    /// The runs of pages that it names.
    pub fn runs(&self) -> Vec<PageRun> {
        pairs(&self.records)
            .map(|(addr, b)| PageRun {
                addr,
                pages: b as u32,
                frame: (b >> 32) as u32,
            })
            .collect()
    }

    /// The limits that it sets.
    pub fn limits(&self) -> io::Result<StopLimits> {
        let (pause, timeout) = pairs(&self.records).next().ok_or_else(invalid)?;
        Ok(StopLimits {
            pause: Duration::from_micros(pause),
            stop_timeout: Duration::from_micros(timeout),
        })
    }
}

/// What a request is answered with when nothing went wrong.
#[derive(Debug)]
pub enum Answer {
    /// As it is.
    Bytes(Vec<u8>),
    /// What became of pages.
    Outcome(Outcome, Duration),
}

/// A reply.
pub fn reply(answer: io::Result<Answer>) -> Vec<u8> {
    crate::wire::reply(answer.map(|answer| match answer {
        Answer::Bytes(b) => b,
        Answer::Outcome(o, cpu) => encode(&o, cpu),
    }))
}

/// A run as a record of a request; [`Request::runs`] is the way back.
pub fn record(run: &PageRun) -> (u64, u64) {
    (run.addr, u64::from(run.pages) | u64::from(run.frame) << 32)
}

/// What a request is answered with whose target holds up those that look after it.
pub fn too_late(request: &Request, pages: usize) -> io::Result<Answer> {
    let late = || io::Error::from_raw_os_error(libc::ETIMEDOUT);
    match request.number {
        op::MERGE | op::ZERO | op::UNMERGE | op::GUARD_PAGES => Ok(Answer::Outcome(
            Outcome {
                codes: vec![crate::target::PageOutcome::Timeout as u8; pages],
                ..Outcome::default()
            },
            Duration::ZERO,
        )),
        _ => Err(late()),
    }
}

/// A request that is being carried out, and when it is waited for no longer.
#[derive(Debug)]
pub struct Pending {
    /// Counted up from the first.
    pub serial: u64,
    /// The request, without its records.
    pub request: Request,
    /// Pages that it is about.
    pub pages: usize,
    /// Who carries it out.
    pub ward: u64,
    /// Until then.
    pub until: Instant,
}

/// A request that makes no sense.
pub fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// Bytes of an outcome in front of its codes.
const OUTCOME: usize = 24;

/// `codes u32, pauses u32, injected f64, cpu f64`, the codes, the pauses as f64.
fn encode(o: &Outcome, cpu: Duration) -> Vec<u8> {
    let mut b = Vec::with_capacity(OUTCOME + o.codes.len() + 8 * o.pauses.len());
    for v in [o.codes.len() as u32, o.pauses.len() as u32] {
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

/// An outcome and the guardian's CPU time for it, from the bytes of a reply.
pub fn decode(reply: &[u8]) -> Result<(Outcome, Duration), Failure> {
    let Some((head, rest)) = reply.split_first_chunk::<OUTCOME>() else {
        return cut();
    };
    let count = |i| u32::from_le_bytes(head[i..i + 4].try_into().expect("4 bytes")) as usize;
    let seconds = |b: &[u8]| f64::from_le_bytes(b.try_into().expect("8 bytes"));
    let (codes, pauses) = (count(0), count(4));
    if rest.len() != codes + 8 * pauses {
        return cut();
    }
    let (codes, pauses) = rest.split_at(codes);
    let outcome = Outcome {
        codes: codes.to_vec(),
        pauses: pauses.chunks_exact(8).map(seconds).collect(),
        injected: seconds(&head[8..16]),
    };
    match Duration::try_from_secs_f64(seconds(&head[16..])) {
        Ok(cpu) => Ok((outcome, cpu)),
        Err(_) => cut(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u32, pid: i32, n: u32, records: usize) -> Vec<u8> {
        let header = Header {
            number,
            pid,
            records: 0,
            word: 7,
        };
        let mut b = header.with((0..records).map(|_| (9, 9)));
        b[8..12].copy_from_slice(&n.to_le_bytes());
        b
    }

    #[test]
    fn a_request_is_taken_when_all_of_it_is_there_and_what_follows_stays() {
        let mut received = bytes(op::ARM, 5, 2, 2);
        received.extend(bytes(op::STATUS, 0, 0, 0));
        let last = received.pop();
        let first = Request::take(&mut received).expect("valid").expect("whole");
        assert_eq!((first.number, first.pid, first.flags), (op::ARM, 5, 7));
        assert_eq!(first.records.len(), 2 * RECORD);
        assert!(Request::take(&mut received).expect("valid").is_none());
        received.extend(last);
        let second = Request::take(&mut received).expect("valid").expect("whole");
        assert_eq!(second.number, op::STATUS);
        assert!(received.is_empty());
    }

    #[test]
    fn a_request_of_more_than_a_process_can_have_is_refused_before_any_of_it_is_read() {
        assert!(Request::take(&mut bytes(op::ARM, 5, u32::MAX, 0)).is_err());
    }

    #[test]
    fn runs_and_what_became_of_them_are_read_as_they_were_written() {
        let run = PageRun {
            addr: 0x7fff_ffff_f000,
            pages: u32::MAX,
            frame: 1 << 31,
        };
        let header = Header {
            number: op::MERGE,
            pid: 5,
            records: 0,
            word: 0,
        };
        let mut sent = header.with([record(&run)].into_iter());
        let request = Request::take(&mut sent).expect("valid").expect("whole");
        let runs = request.runs();
        assert_eq!(
            (runs[0].addr, runs[0].pages, runs[0].frame),
            (run.addr, run.pages, run.frame)
        );
        let done = Outcome {
            codes: vec![0, 3, 6],
            pauses: vec![0.25, 1.5],
            injected: 0.125,
        };
        let bytes = encode(&done, Duration::from_millis(500));
        let (told, cpu) = decode(&bytes).expect("whole");
        assert_eq!((&told.codes, &told.pauses), (&done.codes, &done.pauses));
        assert_eq!((told.injected, cpu), (0.125, Duration::from_millis(500)));
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length} bytes of it");
        }
    }
}
