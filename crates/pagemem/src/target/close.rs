//! Frames that are watched closely: whoever touches a page of them that is not there waits until the guardian has filled
//! it, with what belongs there: the frame where this process was given it, zeros everywhere else.
//!
//! **For life** all frames of a target of root's are watched like this, and those of its children from their first
//! instruction on, for the kernel has a child's memory watched as its parent's is. So a process that gives up its
//! rights keeps what it was given and gets at nothing else, however it has its mappings grow or move, with as many
//! threads as it likes. It costs nothing: merged pages are there, since they have just been compared, and the kernel
//! takes none away, for the pool's file system lends nothing to swap ([`crate::private_fs`]). A page that is not there
//! all the same, since some sharer has asked for huge pages (`MADV_COLLAPSE`), is shown by the guardian. System calls
//! wait as programs do.
//!
//! For that the descriptor must be one that only root may make: by `/dev/userfaultfd`, which is lent to the target.
//! Where there is none, or the machine has swap, frames are watched closely only while a target cannot be stopped
//! ([`super::unstopped`]): a thread that ends, or dumps core, waits for nobody, and must find what the kernel is to write.

use std::io;
use std::os::fd::OwnedFd;

use super::descriptor::{table_of_worker, Lent};
use super::Target;
use crate::arch::{self, nr};
use crate::failpoints;
use crate::inject::Op;
use crate::ptrace::{Events, NoEvents, Stopped, Tracer};
use crate::ranges::Ranges;
use crate::sys::{self, pidfd_getfd, PAGE};
use crate::uffd::{self, Uffd, Use};

/// Faults of one target that are answered before others get their turn.
const TURN: u32 = 256;

/// How often it is tried again to show a page while mappings are changing.
const AGAIN: u32 = 100;

/// What is known of frames that are watched closely.
#[derive(Clone, Debug, Default)]
pub(super) struct Close {
    /// Pages that may show their frames.
    pub(super) frames: Ranges,
    /// Pages that threads wait at and that could not be filled yet.
    unanswered: Vec<u64>,
}

impl Close {
    pub(super) fn of(frames: Ranges) -> Self {
        Self {
            frames,
            unanswered: Vec::new(),
        }
    }

    /// Fills a page that somebody waits at.
    pub(super) fn answer(&mut self, guard: &Uffd, address: u64) {
        let page = address & !(PAGE - 1);
        let done = if self.frames.contains(page) {
            // Inside a syscall batch nobody comes back to it.
            let mut shown = guard.show(page);
            for _ in 0..AGAIN {
                match &shown {
                    Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => crate::turns::give_way(),
                    _ => break,
                }
                shown = guard.show(page);
            }
            match shown.map_err(|e| e.raw_os_error()) {
                Ok(()) | Err(Some(libc::EEXIST)) => true,
                Err(Some(libc::EAGAIN)) => false,
                // Nothing to be shown, or nothing watched there any more.
                Err(_) => true,
            }
        } else {
            let filled = guard.fill_zero(page, page + PAGE).1;
            !filled.is_err_and(|e| e.raw_os_error() == Some(libc::EAGAIN))
        };
        if done {
            guard.wake(page);
        } else {
            self.unanswered.push(page);
        }
    }

    pub(super) fn answer_again(&mut self, guard: &Uffd) {
        for page in std::mem::take(&mut self.unanswered) {
            self.answer(guard, page);
        }
    }

    /// Takes note of a move: what is new by it shows no frames.
    pub(super) fn moved(&mut self, from: u64, to: u64, bytes: u64) {
        self.frames.relocate(from, to, bytes);
    }

    /// The same for a child that is born now.
    pub(super) fn inherited(&self) -> Self {
        Self::of(self.frames.clone())
    }

    pub(super) fn waits(&self) -> bool {
        !self.unanswered.is_empty()
    }
}

impl Target {
    /// Has all frames of a stopped target that has none yet watched closely for life, where that can be had.
    pub(super) fn watch_for_life(&mut self, tracer: &mut Tracer, stopped: &Stopped) {
        if failpoints::active("close") {
            return;
        }
        if let Ok(guard) = self.fetch_strong(tracer, stopped) {
            sys::fill_for_calls();
            self.guard = guard;
            self.close = Some(Close::default());
            self.for_life = true;
        }
    }

    /// A userfaultfd of this target for which system calls wait, too.
    fn fetch_strong(&mut self, tracer: &mut Tracer, stopped: &Stopped) -> io::Result<Uffd> {
        let device = OwnedFd::from(
            std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/userfaultfd")?,
        );
        let make = [self.received_at(), uffd::NEW_REQUEST, uffd::STRONG_FLAGS];
        let make = vec![Op::new(nr::IOCTL | arch::DEREF_ARG1, &make)];
        let made = self.run_with_descriptor(tracer, stopped, Lent::Own(&device), make)?;
        let fd = made[0].result;
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd as i32));
        }
        let taken = table_of_worker(stopped).and_then(|table| pidfd_getfd(&table, fd as i32));
        let mut close = [Op::new(nr::CLOSE, &[fd as u64])];
        self.region
            .run(tracer, &self.process, stopped, &mut close, &mut NoEvents)?;
        Uffd::new(taken?, Use::Guard { forks: true })
    }

    /// Begins to watch frames that the target has been given.
    pub(super) fn watch(&mut self, start: u64, end: u64) -> io::Result<()> {
        if !self.for_life {
            return self.guard.register(start, end);
        }
        self.guard.watch_closely(start, end)?;
        if let Some(close) = &mut self.close {
            close.frames.add(start, end);
        }
        Ok(())
    }

    /// Fills the pages that threads wait at, without stopping any: one that is stopped does not wait any more, and
    /// begins to again when it goes on. An event that comes up between two checks is read early by this, which does no
    /// harm: what it takes away or moves is watched. Whether some are left.
    pub(super) fn answer_faults(&mut self) -> bool {
        if !self.for_life || self.unstopped {
            return false;
        }
        if let Some(close) = &mut self.close {
            close.answer_again(&self.guard);
        }
        for _ in 0..TURN {
            if !self.guard.has_faults() {
                return false;
            }
            self.watched().0.read_one();
        }
        true
    }
}
