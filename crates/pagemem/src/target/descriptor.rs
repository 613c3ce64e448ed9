//! Lending a descriptor to a stopped target for the length of a syscall batch.
//!
//! A socket pair made inside the target carries it: no path, no namespace, no name. It stands in the table of the thread
//! that runs the calls. That need not be the table of its process, and a process that does not stop with the target may
//! have it too (`clone` with `CLONE_FILES`): the pool is lent only where nobody has.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::Target;
use crate::arch::{self, nr};
use crate::inject::{Op, MESSAGE_AT};
use crate::passing::send_descriptors;
use crate::pool::Pool;
use crate::ptrace::{Stopped, Tracer};
use crate::sharers::{same, What};
use crate::sys::{self, pidfd_getfd, read_remote};

/// Where, in the page for messages, control data stands.
const CONTROL_AT: u64 = 128;

/// What is lent.
#[derive(Clone, Copy)]
pub(super) enum Lent<'a> {
    /// The pool: all frames can be read by who takes it.
    Pool(&'a Pool),
    /// A descriptor that is of this target alone.
    Own(&'a OwnedFd),
}

/// A handle of the table of descriptors of the thread that runs syscall batches in this stop: what they open stands there.
pub(super) fn table_of_worker(stopped: &Stopped) -> io::Result<OwnedFd> {
    let (pid, tid) = (stopped.pid, worker(stopped)?);
    sys::pidfd_open_thread(tid).or_else(|e| {
        // No handle of the thread: that of the process will do where both have one table.
        if same(What::Descriptors, pid, tid) {
            sys::pidfd_open(pid)
        } else {
            Err(e)
        }
    })
}

fn worker(stopped: &Stopped) -> io::Result<i32> {
    let worker = stopped.worker.borrow();
    let tid = worker.as_ref().map(|w| w.tid);
    tid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

impl Target {
    /// Where the descriptor received by [`Self::run_with_descriptor`] stands in the target, as a 32-bit number.
    pub(super) fn received_at(&self) -> u64 {
        self.region.base + MESSAGE_AT + CONTROL_AT + 16
    }

    /// Runs `calls` in the stopped target while it has a descriptor, and closes it there again.
    pub(super) fn run_with_descriptor(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        lent: Lent,
        calls: Vec<Op>,
    ) -> io::Result<Vec<Op>> {
        let message = self.region.base + MESSAGE_AT;
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
        let mut pair = [Op::new(
            nr::SOCKETPAIR,
            &[libc::AF_UNIX as u64, kind, 0, message],
        )];
        self.run_ops(tracer, stopped, &mut pair)?;
        if pair[0].result < 0 {
            return Err(io::Error::from_raw_os_error(-pair[0].result as i32));
        }
        let mut word = [0u8; 8];
        read_remote(self.pid, message, &mut word)?;
        let ends = [0, 4].map(|i| u32::from_le_bytes(word[i..i + 4].try_into().expect("4 bytes")));
        let sent = self.send(tracer, stopped, lent, ends[0]);
        let received = self.received_at();
        let mut ops = Vec::with_capacity(calls.len() + 4);
        if sent.is_ok() {
            // It is there already: a thread that waited here would never come back.
            let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
            ops.push(Op::new(nr::RECVMSG, &[u64::from(ends[1]), message, flags]));
            ops.extend(calls);
            ops.push(Op::new(nr::CLOSE | arch::DEREF_ARG1, &[received]));
        }
        ops.push(Op::new(nr::CLOSE, &[u64::from(ends[0])]));
        ops.push(Op::new(nr::CLOSE, &[u64::from(ends[1])]));
        self.run_ops(tracer, stopped, &mut ops)?;
        sent?;
        ops.truncate(ops.len() - 3);
        ops.remove(0);
        Ok(ops)
    }

    /// Sends what is lent through the target's own end of the pair, and has all ready to receive it.
    fn send(&self, tracer: &mut Tracer, stopped: &Stopped, lent: Lent, end: u32) -> io::Result<()> {
        let fd = match lent {
            // Who has the table could take what is lent, or put something of its own in its place.
            Lent::Pool(_)
                if tracer.descriptors_are_shared(&self.process, stopped, worker(stopped)?) =>
            {
                return Err(io::Error::from_raw_os_error(libc::EUSERS));
            }
            Lent::Pool(pool) => pool.for_targets(),
            Lent::Own(fd) => fd,
        };
        let socket = pidfd_getfd(&table_of_worker(stopped)?, end as i32)?;
        send_descriptors(&socket, &[fd.as_raw_fd()])?;
        let message = self.region.base + MESSAGE_AT;
        sys::write_remote(self.pid, message, &receive_block(message))
    }
}

/// The `msghdr` for receiving one descriptor, with everything it points to, as it stands at `at` in the target.
fn receive_block(at: u64) -> Vec<u8> {
    let mut b = vec![0u8; 256];
    let mut put = |o: usize, v: u64| b[o..o + 8].copy_from_slice(&v.to_le_bytes());
    put(16, at + 64); // msg_iov
    put(24, 1); // msg_iovlen
    put(32, at + CONTROL_AT); // msg_control
    put(40, 32); // msg_controllen
    put(64, at + 96); // iov_base
    put(72, 8); // iov_len
    put(CONTROL_AT as usize + 16, u64::MAX); // no descriptor yet: -1 makes every use of it fail
    b
}
