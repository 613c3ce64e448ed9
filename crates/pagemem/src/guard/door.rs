//! The socket for engines to come: who is let in, and how a flood of others costs next to nothing.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crate::pool::Pool;

/// Who knocks more often than so many times in such a time is not heard until it is over.
const KNOCKS: u32 = 16;
const HEARD: Duration = Duration::from_millis(200);
/// Connections that wait to be accepted.
const QUEUE: i32 = 8;

/// The door of a guardian.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    since: Instant,
    knocks: u32,
}

impl Door {
    /// Opens it under an abstract name, made of what tells the pool from all other files.
    pub fn open(pool: &Pool) -> io::Result<Self> {
        let file = pool.file();
        let name = format!("pageone-guardian-{}-{}", file.device, file.inode);
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
        listener.set_nonblocking(true)?;
        // SAFETY: no pointers; it listens already, with a longer queue.
        unsafe { libc::listen(listener.as_raw_fd(), QUEUE) };
        Ok(Self {
            listener,
            since: Instant::now(),
            knocks: 0,
        })
    }

    /// What is to be polled, unless too many have knocked; and how long until that is over.
    pub fn heard(&self) -> Result<RawFd, Duration> {
        let left = HEARD.saturating_sub(self.since.elapsed());
        if self.knocks >= KNOCKS && !left.is_zero() {
            return Err(left);
        }
        Ok(self.listener.as_raw_fd())
    }

    /// The next engine at the door, if it is this user's or root's.
    pub fn admit(&mut self) -> Option<UnixStream> {
        if self.since.elapsed() >= HEARD {
            (self.since, self.knocks) = (Instant::now(), 0);
        }
        self.knocks += 1;
        let (stream, _) = self.listener.accept().ok()?;
        if !crate::sys::is_of_our_user(&stream) {
            return None;
        }
        stream.set_nonblocking(true).ok()?;
        Some(stream)
    }
}
