//! Descriptors handed from process to process, over Unix sockets.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::sys::check;

/// Most descriptors of one message.
const MOST: usize = 2;

#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    fds: [RawFd; MOST],
}

fn length(descriptors: usize) -> usize {
    std::mem::size_of::<libc::cmsghdr>() + descriptors * std::mem::size_of::<RawFd>()
}

/// A control block for `descriptors` descriptors, not there yet.
fn control(descriptors: usize) -> Control {
    Control {
        header: libc::cmsghdr {
            cmsg_len: length(descriptors),
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        },
        fds: [-1; MOST],
    }
}

/// A message of one byte with a control block.
fn message(iov: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: a msghdr of integers and pointers; zero is a valid value for each.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_iov = iov;
    m.msg_iovlen = 1;
    m.msg_control = std::ptr::from_mut(control).cast();
    m.msg_controllen = std::mem::size_of::<Control>();
    m
}

/// Sends copies of at most two descriptors. Allocates nothing.
pub fn send_descriptors(socket: &impl AsRawFd, fds: &[RawFd]) -> io::Result<()> {
    let mut byte = [0u8; 1];
    let mut iov = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let mut control = control(fds.len());
    control.fds[..fds.len()].copy_from_slice(fds);
    let m = message(&mut iov, &mut control);
    // SAFETY: every pointer in `m` points to a live local of the stated length.
    check(unsafe { libc::sendmsg(socket.as_raw_fd(), &m, libc::MSG_NOSIGNAL) } as i64).map(drop)
}

/// Receives as many descriptors as one message is to hold; does not wait.
pub fn receive_descriptors<const N: usize>(socket: &impl AsRawFd) -> io::Result<[OwnedFd; N]> {
    let mut byte = [0u8; 1];
    let mut iov = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let mut control = control(N);
    let mut m = message(&mut iov, &mut control);
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: every pointer in `m` points to a live local of the stated length.
    check(unsafe { libc::recvmsg(socket.as_raw_fd(), &mut m, flags) } as i64)?;
    let got = if m.msg_controllen == 0 {
        0
    } else {
        control.header.cmsg_len.saturating_sub(length(0)) / std::mem::size_of::<RawFd>()
    };
    // SAFETY: the kernel has installed these descriptors for us; nothing else owns them.
    let mut fds = control.fds[..got.min(MOST)]
        .iter()
        .map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) })
        .collect::<Vec<_>>()
        .into_iter();
    let missing = || io::Error::from_raw_os_error(libc::EBADMSG);
    let mut all = [const { None }; N];
    for place in &mut all {
        *place = Some(fds.next().ok_or_else(missing)?);
    }
    Ok(all.map(|fd| fd.expect("just set")))
}
