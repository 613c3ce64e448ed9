//! Transfers that a stop has cut short, and time-outs of sockets that it has ended: the thread carries out the rest
//! itself.
//!
//! To be stopped a thread must leave the kernel, and a call that has done a part of its work returns how much (`write`
//! to a pipe, `recv` with `MSG_WAITALL`, and the like; [`plan`] has the list): without a stop it would have gone on. So
//! the thread is sent into a piece of code in the injected region, which waits until more can be done, does it without
//! blocking, adds up what was done, and goes back to the program with the sum: the rest needs no tracer, may be stopped
//! as often as it likes, and does not care whether the guardian lives. A signal ends it as it would have ended the
//! program's own call.
//!
//! Each thread in that code has a slot of its own, until it leaves. An injected region with a thread in it stays mapped.

mod plan;

use std::collections::BTreeMap;
use std::io;
use std::mem::offset_of;
use std::time::Duration;

use crate::arch::slot::{Slot, BUSY, LEFT, SLOT_PIECES, SLOT_SIZE, UNUSED};
use crate::arch::{self, Regs, Returned};
use crate::failpoints;
use crate::requests::{self, ALL_SIGNALS};
use crate::status::Status;
use crate::sys::{all_are, read_remote, thread_ended, write_remote, Maps, VMA_PRIVATE_RW};
use crate::waits::Waits;
use plan::Plan;

/// Threads of a process that can be in such code at a time.
pub const SLOTS: u64 = 128;
/// Bytes of all slots.
pub const SLOTS_SIZE: u64 = SLOTS * SLOT_SIZE;

/// Where a process has the code and the slots.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Address of [`arch::rest_code`].
    pub code: u64,
    /// Address of [`SLOTS`] slots.
    pub slots: u64,
}

impl Room {
    fn slot(&self, i: u64) -> u64 {
        self.slots + i * SLOT_SIZE
    }

    fn holds(&self, ip: u64) -> bool {
        (self.code..self.code + arch::rest_code().len() as u64).contains(&ip)
    }

    /// Whether it is still there, as it was made: not so after `exec`, or where the program has mapped something there.
    fn intact(&self, tid: i32) -> bool {
        let code = arch::rest_code();
        let mut there = vec![0u8; code.len()];
        let slots = self.slots..self.slots + SLOTS_SIZE;
        read_remote(tid, self.code, &mut there).is_ok_and(|n| n == code.len())
            && there == code
            && Maps::open(tid)
                .is_ok_and(|mut maps| all_are(&mut maps, slots, VMA_PRIVATE_RW).unwrap_or(false))
    }

    /// State and thread of slot `i`.
    fn state(&self, through: i32, i: u64) -> io::Result<(u64, i32)> {
        let mut words = [0u8; 16];
        if read_remote(through, self.slot(i), &mut words)? != words.len() {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().expect("8 bytes"));
        Ok((word(0), word(8) as i32))
    }

    /// Whether slot `i` is some thread's.
    fn in_use(&self, pid: i32, through: i32, i: u64) -> bool {
        self.state(through, i)
            .is_ok_and(|(state, tid)| state == BUSY && !thread_ended(pid, tid))
    }
}

/// What is known of the processes whose transfers go on.
#[derive(Debug, Default)]
pub struct Transfers {
    /// The room of each process, and how many of its slots were ever used.
    rooms: BTreeMap<i32, (Room, u64)>,
    waits: Waits,
    /// Transfers that were carried out to their end, or to that of their time.
    pub continued: u64,
}

/// Processes remembered before those that have ended are forgotten.
const ROOMS_MAX: usize = 4096;

impl Transfers {
    /// Process `pid` has an injected region.
    pub fn know(&mut self, pid: i32, room: Room) {
        if self.rooms.len() > ROOMS_MAX {
            self.rooms
                .retain(|pid, _| std::path::Path::new(&format!("/proc/{pid}")).exists());
        }
        let known = self.rooms.entry(pid).or_insert((room, 0));
        if known.0.slots != room.slots {
            *known = (room, 0);
        }
    }

    /// Process `pid` has none any more.
    pub fn forget(&mut self, pid: i32) {
        self.rooms.remove(&pid);
    }

    /// Whether some thread of `pid` is in the code, or may come back to it: then it must stay mapped.
    pub fn busy(&self, pid: i32, through: i32) -> bool {
        self.rooms
            .get(&pid)
            .is_some_and(|(room, used)| (0..*used).any(|i| room.in_use(pid, through, i)))
    }

    /// Sees to it that what the stop of thread `tid` of `pid` has ended goes on. To be asked as soon as it has stopped.
    /// Where job control had `suspended` it, that has ended the transfer, as it always does.
    pub fn go_on(&mut self, pid: i32, tid: i32, suspended: bool) {
        let Ok(regs) = Regs::get(tid) else { return };
        if self.waits.restart(tid, &regs) || suspended || failpoints::active("transfers") {
            return;
        }
        if let Some(call) = regs.returned().filter(plan::concerns) {
            self.carry_out(pid, tid, &regs, &call);
        }
    }

    /// The same where thread `tid` has stopped for a signal that the program ignores: without a tracer it would have
    /// noticed nothing.
    pub fn go_on_if_ignored(&mut self, pid: i32, tid: i32, signal: i32) {
        let interrupted = Regs::get(tid).is_ok_and(|r| {
            r.interrupted_wait().is_some() || r.returned().is_some_and(|c| plan::concerns(&c))
        });
        if interrupted && ignores(pid, tid, signal) {
            self.go_on(pid, tid, false);
        }
    }

    fn carry_out(&mut self, pid: i32, tid: i32, regs: &Regs, call: &Returned) {
        if !by_call_instruction(tid, regs) {
            return;
        }
        plan::forget_error_of_stop(tid, call);
        let sent = plan::plan(tid, call)
            .is_some_and(|plan| self.send(pid, tid, regs, call, &plan).is_ok());
        if sent {
            self.continued += 1;
        } else if call.result < 0 && call.number != libc::SYS_epoll_pwait2 {
            self.waits.again(tid, regs);
        }
    }

    /// Sends the thread into the code that carries out `plan`.
    fn send(
        &mut self,
        pid: i32,
        tid: i32,
        regs: &Regs,
        call: &Returned,
        plan: &Plan,
    ) -> io::Result<()> {
        let none = || io::Error::from_raw_os_error(libc::ENOENT);
        let (room, used) = self.rooms.get_mut(&pid).ok_or_else(none)?;
        if room.holds(regs.ip()) || under_filter(pid, tid) || !room.intact(tid) {
            return Err(none());
        }
        let free = (0..*used).find(|&i| !room.in_use(pid, tid, i));
        let i = free.unwrap_or(*used);
        if i >= SLOTS {
            return Err(none());
        }
        let at = room.slot(i);
        let slot = slot_of(plan, call, regs, at, tid)?;
        // SAFETY: `Slot` is `repr(C)` and made of integers without padding; it lives as long as the slice.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const slot).cast::<u8>(), std::mem::size_of::<Slot>())
        };
        write_remote(tid, at, bytes)?;
        *used = (*used).max(i + 1);
        // The order matters should this process die in between: the code puts the mask back.
        regs.for_rest(room.code, at).set(tid)?;
        requests::set_signal_mask(tid, ALL_SIGNALS)
    }
}

fn slot_of(plan: &Plan, call: &Returned, regs: &Regs, at: u64, tid: i32) -> io::Result<Slot> {
    let argument = |i: usize| (offset_of!(Slot, args) + 8 * i) as u64;
    let word = |of: usize| of as u64;
    let (saved, back) = regs.saved_for_rest();
    let mask = requests::signal_mask(tid)?;
    let mut slot = Slot {
        state: BUSY,
        tid: tid as u64,
        saved,
        back,
        mask,
        wait_mask: plan.mask.unwrap_or(mask),
        fd: plan.file.map_or(-1, |(fd, _)| fd),
        file: plan.file.map_or([0; 2], |(_, file)| file),
        events: plan.awaits.unwrap_or(0) as u16,
        awaited: u64::from(plan.awaits.is_some()),
        on_timeout: plan.on_timeout as u64,
        call: plan.call as u64,
        args: plan.args,
        limit: plan.limit,
        address_at: plan
            .address
            .map_or(word(offset_of!(Slot, scratch)), argument),
        count_at: plan
            .count
            .map_or(word(offset_of!(Slot, piece)) + 8, argument),
        scale: plan.scale,
        sum: call.result.max(0) as u64,
        ways: plan.ways,
        own_call: call.number as u64,
        ..Slot::default()
    };
    if plan.awaits.is_none() || plan.timeout.is_some() {
        let timeout = plan.timeout.unwrap_or(Duration::ZERO);
        slot.timeout = [timeout.as_secs(), u64::from(timeout.subsec_nanos())];
        slot.timeout_at = at + word(offset_of!(Slot, timeout));
    }
    if plan.count.is_none() {
        slot.args[1] = at + word(offset_of!(Slot, piece));
        slot.address_at = word(offset_of!(Slot, piece));
    }
    if let Some((&[address, length], rest)) = plan.pieces.split_first() {
        slot.left = length;
        if plan.count.is_none() {
            slot.piece[0] = address;
        } else if let Some(i) = plan.address {
            slot.args[i] = address;
        }
        slot.pieces = rest.len() as u64;
        if rest.len() <= SLOT_PIECES {
            slot.next = at + word(offset_of!(Slot, list));
            slot.list[..rest.len()].copy_from_slice(rest);
        } else {
            // The end of the program's own list, which it keeps until the call returns.
            slot.next = plan.list_end - 16 * rest.len() as u64;
        }
    }
    Ok(slot)
}

/// Whether the thread came into the kernel by the instruction that its call numbers are meant for.
fn by_call_instruction(tid: i32, regs: &Regs) -> bool {
    let mut there = [0u8; arch::CALL.len()];
    let at = regs.ip().wrapping_sub(there.len() as u64);
    read_remote(tid, at, &mut there).is_ok() && there == arch::CALL
}

/// Whether the calls of the thread are filtered, or that cannot be told: the rest is made of other calls.
fn under_filter(pid: i32, tid: i32) -> bool {
    Status::of(pid, tid).map_or(true, |status| status.is_filtered())
}

const _: () = assert!(UNUSED != BUSY && LEFT != BUSY);

/// Whether the program ignores the signal, by its own wish or by default.
fn ignores(pid: i32, tid: i32, signal: i32) -> bool {
    const BY_DEFAULT: [i32; 4] = [libc::SIGCHLD, libc::SIGURG, libc::SIGWINCH, libc::SIGCONT];
    let Ok(status) = Status::of(pid, tid) else {
        return false;
    };
    status.has_signal("SigIgn", signal)
        || (BY_DEFAULT.contains(&signal) && !status.has_signal("SigCgt", signal))
}
