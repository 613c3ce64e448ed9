//! What the guard of a target tells of, noted as it is read: discards, moves, unmapping, forks, faults.
//!
//! Nothing is done about it here but to answer faults, for which a thread waits. [`super::stops`] has it read while a stop
//! comes about, [`super::close`] where there is none; [`super::zero_fill`] and [`super::births`] do the rest.

use std::os::fd::{AsRawFd, RawFd};

use super::births::Born;
use super::close::Close;
use super::Target;
use crate::inject::InjectedRegion;
use crate::process::Process;
use crate::ptrace::Events;
use crate::sys::PAGE;
use crate::uffd::{Event, Uffd};

/// The guard's events of one target, as a stop reads them.
pub(super) struct Watch<'a> {
    pub(super) guard: &'a Uffd,
    pub(super) discarded: &'a mut Vec<(u64, u64)>,
    pub(super) moved: &'a mut Vec<(u64, u64, u64)>,
    pub(super) opened: &'a mut Vec<u64>,
    pub(super) born: &'a mut Vec<Born>,
    pub(super) bare: bool,
    pub(super) close: &'a mut Option<Close>,
    pub(super) unstopped: bool,
}

impl Events for Watch<'_> {
    fn descriptor(&self) -> Option<RawFd> {
        Some(self.guard.as_raw_fd())
    }

    fn pending(&self) -> bool {
        self.guard.has_news()
    }

    fn read_one(&mut self) {
        match self.guard.next_event() {
            Ok(Some(Event::Remove { start, end })) => {
                self.discarded.push((start, end));
                if let Some(close) = self.close {
                    close.frames.remove(start, end);
                }
            }
            // A child without merged memory needs no guard.
            Ok(Some(Event::Fork(_))) if self.bare => {}
            Ok(Some(Event::Fork(guard))) => self.born.push(Born {
                guard,
                close: self.close.as_ref().map(Close::inherited),
                unstopped: self.unstopped,
            }),
            Ok(Some(Event::Remap { from, to, len })) => {
                if let Some(close) = self.close {
                    close.moved(from, to, len);
                }
                self.moved.push((from, to, len));
            }
            Ok(Some(Event::Unmap { start, end })) => {
                self.opened.push(start);
                if let Some(close) = self.close {
                    close.frames.remove(start, end);
                }
            }
            Ok(Some(Event::Fault { address })) => match self.close {
                Some(close) => close.answer(self.guard, address),
                // It has waited since before that ended.
                None => self.guard.wake(address & !(PAGE - 1)),
            },
            Ok(Some(Event::Other(_)) | None) | Err(_) => {}
        }
    }
}

impl Target {
    /// To read the guard's events, and apart from that what carries out calls in the target meanwhile.
    pub(super) fn watched(&mut self) -> (Watch<'_>, &Process, &InjectedRegion) {
        let watch = Watch {
            guard: &self.guard,
            discarded: &mut self.discarded,
            moved: &mut self.moved,
            opened: &mut self.opened,
            born: &mut self.born,
            bare: self.bare,
            close: &mut self.close,
            unstopped: self.unstopped,
        };
        (watch, &self.process, &self.region)
    }

    /// Whether a discard, a move or unmapping is known of that has not been dealt with.
    pub fn needs_zero_fill(&self) -> bool {
        !self.discarded.is_empty()
            || !self.moved.is_empty()
            || (!self.opened.is_empty() && !self.is_unstopped())
            || self.has_unanswered()
            || self.overdrawn()
    }

    /// Whether an event waits to be read.
    pub(super) fn pending(&self) -> bool {
        self.guard.has_news()
    }
}
