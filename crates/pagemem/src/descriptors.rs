//! How many descriptors the guardian may have, and that some are left for what cannot wait.
//!
//! A program that forks waits until its event has been read, which takes a descriptor. So some are kept back: where only
//! those are left, nothing more is attached or merged, and who forks then gets its merged memory back before it goes on.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Numbers from here on are kept back. The kernel gives the lowest one that is free: a high one says that most are taken.
static KEPT_BACK: AtomicI32 = AtomicI32::new(i32::MAX);
/// Of so many a quarter, at most this many.
const RESERVE_MAX: u64 = 256;

/// Raises the limit of this process as far as it goes, and keeps some of them back.
pub fn raise() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one limit into a live one.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return;
    }
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
    let most = most.trim().parse().unwrap_or(limit.rlim_max);
    for max in [most.max(limit.rlim_max), limit.rlim_max] {
        let new = libc::rlimit {
            rlim_cur: max,
            rlim_max: max,
        };
        // More than it has been given it gets with the right to.
        // SAFETY: the kernel reads one limit from a live one.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &new) } == 0 {
            limit = new;
            break;
        }
    }
    let reserve = (limit.rlim_cur / 4).min(RESERVE_MAX);
    let from = i32::try_from(limit.rlim_cur - reserve).unwrap_or(i32::MAX);
    KEPT_BACK.store(from, Ordering::Relaxed);
}

/// Whether a descriptor that was just made is one of those kept back.
pub fn is_kept_back(fd: RawFd) -> bool {
    fd >= KEPT_BACK.load(Ordering::Relaxed)
}

/// Whether only those kept back are left; `any` is some open descriptor.
pub fn are_few(any: &impl AsRawFd) -> bool {
    // SAFETY: no pointers.
    let fd = unsafe { libc::fcntl(any.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
    // SAFETY: a fresh descriptor that nothing else owns.
    let fd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
    fd.is_none_or(|fd| is_kept_back(fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_few_where_the_next_is_one_kept_back() {
        let (any, _other) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
        assert!(!are_few(&any));
        KEPT_BACK.store(0, Ordering::Relaxed);
        assert!(are_few(&any));
        KEPT_BACK.store(i32::MAX, Ordering::Relaxed);
    }
}
