//! What engine and guardian say to each other, as bytes.

use std::io;
use std::time::{Duration, Instant};

use crate::sys::pairs;
use crate::target::{Limits, Outcome, Run};

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
    pub const FENCE: u32 = 9;
    pub const POOL: u32 = 10;
}

/// Flag of an attach request: let the kernel tell of forks (needs `CAP_SYS_PTRACE`).
pub const FLAG_FORKS: u32 = 1;
/// Flag of a request to unmerge: out of reach of other processes, though each run stays a mapping of its own.
pub const FLAG_APART: u32 = 1;

const HEADER: usize = 16;
const RECORD: usize = 16;
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
        let word = |i: usize| u32::from_le_bytes(header[i..i + 4].try_into().expect("4 bytes"));
        let (number, pid, n, flags) = (word(0), word(4) as i32, word(8) as usize, word(12));
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
            number,
            pid,
            flags,
            records,
        }))
    }

    /// The runs of pages that it names.
    pub fn runs(&self) -> Vec<Run> {
        pairs(&self.records)
            .map(|(addr, b)| Run {
                addr,
                pages: b as u32,
                frame: (b >> 32) as u32,
            })
            .collect()
    }

    /// The limits that it sets.
    pub fn limits(&self) -> io::Result<Limits> {
        let (pause, timeout) = pairs(&self.records).next().ok_or_else(invalid)?;
        Ok(Limits {
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

/// A reply: status, length, bytes.
pub fn reply(answer: io::Result<Answer>) -> Vec<u8> {
    let (status, body) = match answer {
        Ok(Answer::Bytes(b)) => (0, b),
        Ok(Answer::Outcome(o, cpu)) => (0, encode(&o, cpu)),
        Err(e) => (
            e.raw_os_error().unwrap_or(libc::EIO),
            e.to_string().into_bytes(),
        ),
    };
    let mut reply = Vec::with_capacity(8 + body.len());
    reply.extend_from_slice(&(status as u32).to_le_bytes());
    reply.extend_from_slice(&(body.len() as u32).to_le_bytes());
    reply.extend_from_slice(&body);
    reply
}

/// What a request is answered with whose target does not let go of those that look after it.
pub fn too_late(request: &Request, pages: usize) -> io::Result<Answer> {
    let late = || io::Error::from_raw_os_error(libc::ETIMEDOUT);
    match request.number {
        op::MERGE | op::ZERO | op::UNMERGE | op::FENCE => Ok(Answer::Outcome(
            Outcome {
                codes: vec![crate::target::Code::Timeout as u8; pages],
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u32, pid: i32, n: u32, records: usize) -> Vec<u8> {
        let mut b: Vec<u8> = [number, pid as u32, n, 7]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        b.extend(std::iter::repeat_n(9, records * RECORD));
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
}
