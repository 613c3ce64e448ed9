//! The socket for engines to come: who is let in, and how a flood of others costs next to nothing.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crate::pool::Pool;
use crate::sys::{check, FileId};

/// Who knocks more often than so many times in such a time is not heard until it is over.
const KNOCKS: u32 = 16;
const HEARD: Duration = Duration::from_millis(200);
/// Connections that wait to be accepted.
const QUEUE: i32 = 8;

/// Under which name a guardian is found: made of what tells its pool from all other files.
fn name(pool: FileId) -> String {
    format!("pageone-guardian-{}-{}", pool.device, pool.inode)
}

/// Connects to the guardian of a pool. Does not wait: where too many do already, that is an error.
pub fn knock(pool: FileId) -> io::Result<UnixStream> {
    let name = name(pool);
    // SAFETY: an address of integers, for which zero is a valid value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // An abstract name begins with a zero, and is as long as the address says.
    for (place, byte) in address.sun_path[1..].iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers; the result is a fresh descriptor that nothing else owns.
    let stream = unsafe {
        let fd = check(i64::from(libc::socket(libc::AF_UNIX, kind, 0)))?;
        UnixStream::from(OwnedFd::from_raw_fd(fd as RawFd))
    };
    // SAFETY: the kernel reads `length` bytes of a live address: two numbers of at most 20 digits fit into its 108.
    check(i64::from(unsafe {
        libc::connect(
            stream.as_raw_fd(),
            (&raw const address).cast(),
            length as libc::socklen_t,
        )
    }))?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// The door of a guardian.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    since: Instant,
    knocks: u32,
}

impl Door {
    /// Opens it under an abstract name.
    pub fn open(pool: &Pool) -> io::Result<Self> {
        let listener =
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(name(pool.file()))?)?;
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
