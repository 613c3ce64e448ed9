//! Attaching to a process and detaching from it: its injected region, the two userfaultfds, and what is tracked of its
//! writes.
//!
//! Called by the guardian's wards ([`crate::guard`]): once when the engine asks for a process, then for each range that is
//! armed, and at the end. Children are made targets by [`super::births`], with a userfaultfd fetched here.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::descriptor::table_of_worker;
use super::{StopLimits, Target};
use crate::arch::nr;
use crate::inject::{InjectedRegion, Op};
use crate::pool::Pool;
use crate::process::Process;
use crate::ptrace::{NoEvents, StopError, Stopped, Strictness, Tracer};
use crate::sys::{self, pidfd_getfd, PAGE};
use crate::uffd::{Uffd, Use};

impl Target {
    /// Attaches to process `pid`: plants the injected region and two userfaultfds. On an error the target is as it was.
    /// `follow_forks`: the kernel may tell of forks (needs `CAP_SYS_PTRACE`); else the process stays traced for it.
    pub fn attach(
        tracer: &mut Tracer,
        pid: i32,
        limits: StopLimits,
        follow_forks: bool,
        pool: &Pool,
    ) -> io::Result<Self> {
        if !crate::sharers::can_tell(std::process::id() as i32) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let process = Process::open(pid)?;
        // The first stop includes page faults in the injected region and may find the target busy: it may take longer.
        if !follow_forks {
            tracer.follow(pid);
        }
        let stopped = tracer
            .stop(
                &process,
                Duration::from_secs(2),
                Strictness::All,
                &mut NoEvents,
            )
            .map_err(|e| {
                tracer.unfollow(pid);
                e.into_io()
            })?;
        let made = if tracer.descriptors_are_shared(&process, &stopped, stopped.memory()) {
            Err((io::Error::from_raw_os_error(libc::EUSERS), None))
        } else {
            Self::plant(tracer, &process, &stopped, follow_forks)
        };
        if let Err((_, Some(region))) = &made {
            let _ = region.remove(tracer, &process, &stopped);
        }
        match &made {
            Ok((region, ..)) => tracer.planted(pid, region.room()),
            Err(_) => tracer.unfollow(pid),
        }
        let (region, track, guard) = match made {
            Ok(made) => made,
            Err((e, _)) => {
                tracer.release(stopped);
                return Err(e);
            }
        };
        let mut target = Self {
            track: Some(track),
            ..Self::new(process, region, guard, limits, pool.file(), follow_forks)
        };
        if follow_forks && pool.is_lasting() {
            target.watch_for_life(tracer, &stopped);
        }
        target.look_for_rights();
        tracer.release(stopped);
        Ok(target)
    }

    #[allow(clippy::type_complexity)]
    fn plant(
        tracer: &mut Tracer,
        process: &Process,
        stopped: &Stopped,
        follow_forks: bool,
    ) -> Result<(InjectedRegion, Uffd, Uffd), (io::Error, Option<InjectedRegion>)> {
        let region = InjectedRegion::create(process, stopped).map_err(|e| (e, None))?;
        let fail = |e| (e, Some(region));
        let open = Op::new(nr::USERFAULTFD, &[crate::uffd::OPEN_FLAGS]);
        let mut ops = [open, open];
        region
            .run(tracer, process, stopped, &mut ops, &mut NoEvents)
            .map_err(fail)?;
        let fetched: Vec<io::Result<OwnedFd>> = ops
            .iter()
            .map(|op| match op.result {
                e @ ..=-1 => Err(io::Error::from_raw_os_error(-e as i32)),
                fd => table_of_worker(stopped).and_then(|table| pidfd_getfd(&table, fd as i32)),
            })
            .collect();
        let mut close: Vec<Op> = ops
            .iter()
            .filter(|o| o.result >= 0)
            .map(|o| Op::new(nr::CLOSE, &[o.result as u64]))
            .collect();
        region
            .run(tracer, process, stopped, &mut close, &mut NoEvents)
            .map_err(fail)?;
        let mut fetched = fetched.into_iter();
        let mut next = || fetched.next().expect("two descriptors");
        let track = next()
            .and_then(|fd| Uffd::new(fd, Use::Track))
            .map_err(fail)?;
        let guard = next()
            .and_then(|fd| {
                Uffd::new(
                    fd,
                    Use::Guard {
                        forks: follow_forks,
                    },
                )
            })
            .map_err(fail)?;
        Ok((region, track, guard))
    }

    /// Begins to track writes in each of `ranges`; returns errno for each (0: armed). The low bits of the end carry
    /// the advice that new mappings there must be given again (`ADVICE` of `advice.rs`).
    pub fn arm(&mut self, ranges: &[(u64, u64)]) -> Vec<i32> {
        let mut out = Vec::with_capacity(ranges.len());
        for &(start, end) in ranges {
            let (end, advice) = (end & !(PAGE - 1), end & (PAGE - 1));
            out.push(match self.retrack(start, end) {
                Ok(()) => 0,
                Err(e) => e.raw_os_error().unwrap_or(libc::EINVAL),
            });
            self.advised.set(start, end, advice);
        }
        out
    }

    /// Opens a userfaultfd in a stopped process that has this target's injected region, and takes it over.
    pub(super) fn fetch_uffd(
        &self,
        tracer: &mut Tracer,
        process: &Process,
        stopped: &Stopped,
    ) -> io::Result<OwnedFd> {
        let mut ops = [Op::new(nr::USERFAULTFD, &[crate::uffd::OPEN_FLAGS])];
        self.region
            .run(tracer, process, stopped, &mut ops, &mut NoEvents)?;
        if ops[0].result < 0 {
            return Err(io::Error::from_raw_os_error(-ops[0].result as i32));
        }
        let fd =
            table_of_worker(stopped).and_then(|table| pidfd_getfd(&table, ops[0].result as i32));
        let mut close = [Op::new(nr::CLOSE, &[ops[0].result as u64])];
        self.region
            .run(tracer, process, stopped, &mut close, &mut NoEvents)?;
        fd
    }

    /// Adds write tracking to a target that so far was only guarded.
    pub fn complete(&mut self, tracer: &mut Tracer) -> io::Result<()> {
        let mut stopped = self
            .stop(tracer, Duration::from_secs(2), Strictness::All)
            .map_err(StopError::into_io)?;
        // What a thread discards meanwhile was let happen by the stop.
        self.zero_fill(tracer, &stopped);
        let track = match stopped.only_mend.take() {
            Some(e) => Err(e.into_io()),
            None => self
                .fetch_uffd(tracer, &self.process, &stopped)
                .and_then(|fd| Uffd::new(fd, Use::Track)),
        };
        tracer.release(stopped);
        self.track = Some(track?);
        Ok(())
    }

    /// Removes the injected region and ends all watching. On an error the target is still guarded.
    pub fn detach(&mut self, tracer: &mut Tracer) -> io::Result<()> {
        if !self.stop_again(tracer) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let strictness = if self.maps_frames() {
            Strictness::All
        } else {
            // Nothing of it is exchanged any more: a thread that sleeps in the kernel does no harm.
            Strictness::NoUserCode
        };
        match self.stop(tracer, Duration::from_secs(2), strictness) {
            Ok(mut stopped) => {
                let result = if let Some(e) = stopped.only_mend.take() {
                    self.zero_fill(tracer, &stopped);
                    Err(e.into_io())
                } else if self.region.intact(stopped.memory()) {
                    self.zero_fill(tracer, &stopped);
                    let guard_pages: Vec<u64> = self.guard_pages.iter().copied().collect();
                    self.remove_guard_pages(tracer, &stopped, &guard_pages);
                    self.region.remove(tracer, &self.process, &stopped)
                } else if self.still_there() {
                    // It hides: nothing can be given back to it.
                    self.zero_fill(tracer, &stopped);
                    Err(io::Error::from_raw_os_error(libc::EPERM))
                } else {
                    Ok(())
                };
                if result.is_ok() {
                    tracer.unfollow(self.pid);
                    self.core_dumps.restore(self.pid);
                }
                tracer.release(stopped);
                result
            }
            Err(StopError::Gone) => Ok(()),
            Err(e) => Err(e.into_io()),
        }
    }

    /// Undoes what outlives the memory that is detached: a new program, too, has its predecessor's filter of core dumps.
    pub fn forget(&self) {
        if !sys::has_ended(&self.pidfd) {
            self.core_dumps.restore(self.pid);
        }
    }
}
