//! How requests and replies stand on a stream socket between an engine and its guardian's process; and the engine's end.
//!
//! Little-endian. Request: `number u32, pid i32, n u32, word u32`, then `n` records of two u64. Reply: `status i32` (0, or
//! an errno), `length u32`, then `length` bytes (on an error: a message). What the numbers mean, and what the bytes of a
//! reply are: [`crate::guard`] and [`crate::filling`], one connection each.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use crate::changes::lock;

/// Bytes of the head of a request.
pub const HEADER: usize = 16;
/// Bytes of each of its records.
pub const RECORD: usize = 16;
/// Bytes of the head of a reply.
const REPLY: usize = 8;

/// The head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked for.
    pub number: u32,
    /// The process that it is about.
    pub pid: i32,
    /// How many records follow.
    pub records: u32,
    /// Flags, or what else the request says in one word.
    pub word: u32,
}

impl Header {
    /// From its bytes.
    pub fn of(bytes: &[u8; HEADER]) -> Self {
        let word = |i| u32::from_le_bytes(bytes[i..i + 4].try_into().expect("4 bytes"));
        Self {
            number: word(0),
            pid: word(4) as i32,
            records: word(8),
            word: word(12),
        }
    }

    /// The request as a whole; `records` is set to their number.
    pub fn with(self, records: impl ExactSizeIterator<Item = (u64, u64)>) -> Vec<u8> {
        let n = records.len() as u32;
        let mut bytes = Vec::with_capacity(HEADER + records.len() * RECORD);
        for word in [self.number, self.pid as u32, n, self.word] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for (first, second) in records {
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(&second.to_le_bytes());
        }
        bytes
    }
}

/// The bytes of a reply.
pub fn reply(answer: io::Result<Vec<u8>>) -> Vec<u8> {
    let (status, body) = match answer {
        Ok(body) => (0, body),
        Err(e) => (
            e.raw_os_error().unwrap_or(libc::EIO),
            e.to_string().into_bytes(),
        ),
    };
    let mut reply = Vec::with_capacity(REPLY + body.len());
    reply.extend_from_slice(&status.to_le_bytes());
    reply.extend_from_slice(&(body.len() as u32).to_le_bytes());
    reply.extend_from_slice(&body);
    reply
}

/// Takes the first reply from what has been received, if it is there as a whole: status and bytes.
fn take_reply(received: &mut Vec<u8>) -> Option<(i32, Vec<u8>)> {
    let head = received.first_chunk::<REPLY>()?;
    let word = |i| u32::from_le_bytes(head[i..i + 4].try_into().expect("4 bytes"));
    let (status, length) = (word(0) as i32, word(4) as usize);
    if received.len() < REPLY + length {
        return None;
    }
    let rest = received.split_off(REPLY + length);
    let mut body = std::mem::replace(received, rest);
    body.drain(..REPLY);
    Some((status, body))
}

/// The little-endian words of a reply, as many as `N`.
pub fn words<const N: usize>(reply: &[u8]) -> Result<[u64; N], Failure> {
    let mut words = reply.chunks_exact(8);
    let mut found = [0; N];
    for word in &mut found {
        *word = words.next().map_or_else(cut, |w| {
            Ok(u64::from_le_bytes(w.try_into().expect("8 bytes")))
        })?;
    }
    Ok(found)
}

/// A reply that is not as long as it ought to be.
pub fn cut<T>() -> Result<T, Failure> {
    Err(io::Error::new(io::ErrorKind::InvalidData, "it said half of something").into())
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The connection is of no use any more.
    Ended(io::Error),
    /// The other end refuses: an errno, and what it says of it.
    Refused(i32, String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Ended(error)
    }
}

/// Asked whether to wait on where a signal has come meanwhile; an error ends the wait.
pub type WaitOn = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The engine's end: asks, and waits for the answer. Requests of several threads are answered one after another.
pub struct Connection {
    stream: Mutex<Option<Arc<UnixStream>>>,
    talk: Mutex<Talk>,
    wait_on: WaitOn,
}

/// How far the talk has got. A wait that was broken off leaves the rest of it to the next request.
#[derive(Default)]
struct Talk {
    unsent: Vec<u8>,
    received: Vec<u8>,
    /// Replies that are still to come.
    owed: u64,
}

impl Connection {
    /// Over a connected socket.
    pub fn new(stream: UnixStream, wait_on: WaitOn) -> Self {
        Self {
            stream: Mutex::new(Some(Arc::new(stream))),
            talk: Mutex::default(),
            wait_on,
        }
    }

    /// Leaves. A request that is being waited for is let be: its end is its own.
    pub fn close(&self) {
        lock(&self.stream).take();
    }

    /// Sends a request and returns the bytes of the reply.
    pub fn ask(&self, request: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut talk = lock(&self.talk);
        let stream = lock(&self.stream).clone();
        let stream = stream.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        talk.unsent.extend_from_slice(request);
        talk.owed += 1;
        while !talk.unsent.is_empty() {
            let n = self.again(|| (&*stream).write(&talk.unsent))?;
            talk.unsent.drain(..n);
        }
        loop {
            let (status, body) = self.receive(&stream, &mut talk.received)?;
            talk.owed -= 1;
            // The others are replies to requests that nobody waits for any more.
            if talk.owed == 0 {
                return match status {
                    0 => Ok(body),
                    _ => Err(Failure::Refused(
                        status,
                        String::from_utf8_lossy(&body).into_owned(),
                    )),
                };
            }
        }
    }

    fn receive(&self, stream: &UnixStream, received: &mut Vec<u8>) -> io::Result<(i32, Vec<u8>)> {
        let mut part = vec![0; 1 << 16];
        loop {
            if let Some(reply) = take_reply(received) {
                return Ok(reply);
            }
            match self.again(|| (&*stream).read(&mut part))? {
                0 => {
                    let ended = "the connection is closed";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, ended));
                }
                n => received.extend_from_slice(&part[..n]),
            }
        }
    }

    /// Makes a call until it is not interrupted.
    fn again(&self, mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        loop {
            match call() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (self.wait_on)()?,
                done => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(number: u32) -> Header {
        Header {
            number,
            pid: 5,
            records: 0,
            word: 7,
        }
    }

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let patience = Some(std::time::Duration::from_millis(20));
        ours.set_read_timeout(patience).expect("a timeout");
        (Connection::new(ours, Box::new(|| Ok(()))), theirs)
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let bytes = header(3).with([(1, 2), (u64::MAX, 4)].into_iter());
        let head = Header::of(bytes.first_chunk().expect("a header"));
        assert_eq!(
            head,
            Header {
                records: 2,
                ..header(3)
            }
        );
        let records: Vec<_> = crate::sys::pairs(&bytes[HEADER..]).collect();
        assert_eq!(records, [(1, 2), (u64::MAX, 4)]);
    }

    #[test]
    fn a_reply_that_nobody_waited_for_is_not_taken_for_the_next_one() {
        let (connection, mut theirs) = pair();
        let request = header(1).with(std::iter::empty());
        assert!(
            matches!(connection.ask(&request), Err(Failure::Ended(_))),
            "nobody answers"
        );
        let (first, second) = (reply(Ok(b"late".to_vec())), reply(Ok(b"right".to_vec())));
        theirs.write_all(&first[..5]).expect("sent");
        assert!(
            matches!(connection.ask(&request), Err(Failure::Ended(_))),
            "half an answer"
        );
        theirs.write_all(&first[5..]).expect("sent");
        theirs.write_all(&first).expect("sent");
        theirs.write_all(&second).expect("sent");
        assert_eq!(connection.ask(&request).expect("an answer"), b"right");
    }

    #[test]
    fn what_is_refused_comes_with_its_number_and_what_is_cut_or_closed_is_an_end() {
        let (connection, mut theirs) = pair();
        let request = header(1).with(std::iter::empty());
        let refused = reply(Err(io::Error::from_raw_os_error(libc::ESRCH)));
        theirs.write_all(&refused).expect("sent");
        let told = connection.ask(&request);
        assert!(
            matches!(told, Err(Failure::Refused(libc::ESRCH, _))),
            "{told:?}"
        );
        assert!(matches!(words::<2>(&[0; 15]), Err(Failure::Ended(_))));
        assert!(words::<2>(&[0; 16]).is_ok());
        drop(theirs);
        assert!(matches!(connection.ask(&request), Err(Failure::Ended(_))));
        connection.close();
        assert!(matches!(connection.ask(&request), Err(Failure::Ended(_))));
    }
}
