//! Filling and freeing frames, for an engine that holds no descriptor of the pool itself.
//!
//! A thread of the guardian's process has the only descriptor that writes. It serves one engine over a socket of its
//! own, so that the guardian meanwhile looks after its targets, and ends with the engine.
//!
//! Protocol, little-endian. Request: `op u32, pid i32, n u32, thread u32`, then `n` records of two u64: an address and a
//! frame to fill with the page there, or the first frame and the number of frames to free. Reply: `status i32` (0, or an
//! errno), `length u32`, then the CPU-seconds spent as f64 and, of filling, one code a page; asked for the size, the bytes
//! of memory in use as u64.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::pool::{Reader, Writer};

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
    let mut h = [0u8; 16];
    stream.read_exact(&mut h)?;
    let word = |i: usize| u32::from_le_bytes(h[4 * i..4 * i + 4].try_into().expect("4 bytes"));
    let (op, pid, n, thread) = (word(0), word(1) as i32, word(2) as usize, word(3) as i32);
    if n > RECORDS_MAX {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut records = vec![0u8; n * 16];
    stream.read_exact(&mut records)?;
    let (first, second): (Vec<u64>, Vec<u64>) = crate::sys::pairs(&records).unzip();
    let before = crate::sys::cpu_time();
    let mut beside = Duration::ZERO;
    let done = match op {
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
    let (status, codes) = match done {
        Ok(codes) => (0, codes),
        Err(e) => (e.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
    };
    let mut reply = Vec::with_capacity(16 + codes.len());
    reply.extend_from_slice(&status.to_le_bytes());
    reply.extend_from_slice(&(8 + codes.len() as u32).to_le_bytes());
    reply.extend_from_slice(&spent.to_le_bytes());
    reply.extend_from_slice(&codes);
    stream.write_all(&reply)
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
