//! Filling and freeing frames, for an engine that holds no descriptor of the pool itself.
//!
//! A thread of the guardian's process has the only descriptor that writes. It serves one engine over a socket of its
//! own, so that the guardian meanwhile looks after its targets, and ends with the engine.
//!
//! Protocol: [`crate::wire`]. The word of a request is the thread that asks; its records are an address and a frame to
//! fill with the page there, or the first frame and the number of frames to free. Reply: the CPU-seconds spent as f64 and,
//! of filling, one code a page; asked for the size, the bytes of memory in use as u64. The engine's end is [`Client`].

mod client;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::pool::{Reader, Writer};
use crate::wire::{self, Header, HEADER, RECORD};
pub use client::Client;

const FILL: u32 = 1;
const FREE: u32 = 2;
const SIZE: u32 = 3;

/// Records of a request.
const RECORDS_MAX: usize = 1 << 16;

/// The connection. It ends with this thread, however that ends: other descriptors of it would have the engine wait.
struct Line(UnixStream);

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Begins to serve the engine at the other end of `socket`.
pub fn serve(socket: OwnedFd, writer: Writer) -> io::Result<()> {
    crate::sys::quiet_thread("filling", move || {
        let mut line = Line(UnixStream::from(socket));
        let mut reader = Reader::default();
        while one(&mut line.0, &writer, &mut reader).is_ok() {}
    })
}

/// Answers one request; an error means that the engine has gone, or that it is none.
fn one(stream: &mut UnixStream, writer: &Writer, reader: &mut Reader) -> io::Result<()> {
    let mut header = [0u8; HEADER];
    stream.read_exact(&mut header)?;
    let header = Header::of(&header);
    let (pid, n, thread) = (header.pid, header.records as usize, header.word as i32);
    if n > RECORDS_MAX {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut records = vec![0u8; n * RECORD];
    stream.read_exact(&mut records)?;
    let (first, second): (Vec<u64>, Vec<u64>) = crate::sys::pairs(&records).unzip();
    let before = crate::sys::cpu_time();
    let mut beside = Duration::ZERO;
    let done = match header.number {
        FILL => {
            crate::sys::be_as_modest_as(thread);
            fill(writer, reader, (pid, thread), &first, &second).map(|(codes, cpu)| {
                beside = cpu;
                codes
            })
        }
        FREE => free(writer, &first, &second).map(|()| Vec::new()),
        SIZE => writer.size().map(|n| n.to_le_bytes().to_vec()),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    let spent = (crate::sys::cpu_time().saturating_sub(before) + beside).as_secs_f64();
    let reply = done.map(|codes| [&spent.to_le_bytes()[..], &codes].concat());
    stream.write_all(&wire::reply(reply))
}

fn fill(
    writer: &Writer,
    reader: &mut Reader,
    (pid, like): (i32, i32),
    addrs: &[u64],
    frames: &[u64],
) -> io::Result<(Vec<u8>, Duration)> {
    let outside = || io::Error::from_raw_os_error(libc::EINVAL);
    let frames: Vec<u32> = frames
        .iter()
        .map(|f| u32::try_from(*f).ok().filter(|f| *f < writer.frames()))
        .collect::<Option<_>>()
        .ok_or_else(outside)?;
    let mut codes = vec![0u8; addrs.len()];
    let cpu = writer.fill(reader, (pid, like), addrs, &frames, &mut codes);
    Ok((codes, cpu))
}

fn free(writer: &Writer, first: &[u64], count: &[u64]) -> io::Result<()> {
    let frame = |f: u64| u32::try_from(f).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
    for (first, count) in first.iter().zip(count) {
        writer.punch(frame(*first)?, frame(*count)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served() -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let (writer, _) = crate::pool::make(1024).expect("a pool");
        serve(theirs.into(), writer).expect("a thread");
        let patience = Some(Duration::from_secs(30));
        ours.set_read_timeout(patience).expect("a timeout");
        ours
    }

    #[test]
    fn who_fills_frames_makes_no_room_for_more_than_a_request_may_have() {
        let mut line = served();
        let header = Header {
            number: FILL,
            pid: std::process::id() as i32,
            records: 0,
            word: 0,
        };
        let mut request = header.with(std::iter::empty());
        request[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        line.write_all(&request).expect("sent");
        let told = line.read(&mut [0]).expect("an end");
        assert_eq!(told, 0, "the connection is closed");
    }

    #[test]
    fn frames_are_filled_counted_and_freed_over_a_connection() {
        const PAGE: usize = crate::sys::PAGE as usize;
        let client = Client::new(served(), Box::new(|| Ok(())));
        let page = vec![7u8; 3 * PAGE];
        let first = (page.as_ptr() as usize).next_multiple_of(PAGE) as u64;
        let me = std::process::id() as i32;
        let addrs = [first, first + PAGE as u64, 0];
        let (codes, spent) = client.fill(me, &addrs, &[5, 6, 7]).expect("an answer");
        assert_eq!((codes[0], codes[1]), (0, 0));
        assert_eq!(codes[2], crate::read::CODE_GONE);
        assert!(spent >= 0.0);
        assert_eq!(client.bytes().expect("an answer"), 2 * PAGE as u64);
        assert!(matches!(
            client.fill(me, &[first], &[1024]),
            Err(wire::Failure::Refused(libc::EINVAL, _))
        ));
        client.free(&[5], &[2]).expect("an answer");
        assert_eq!(client.bytes().expect("an answer"), 0);
    }
}
