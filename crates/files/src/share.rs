//! Shares ranges: asks the kernel, which compares all bytes itself, with both files locked, and changes no byte.
//!
//! Files are opened for reading alone: that suffices for their owner and for root. The work may end at any instant:
//! each call either has shared its bytes or has not.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use crate::control::{Control, Stopped};
use crate::sys::{self, Shared};
use crate::verify::Range;
use crate::walk::{Files, OpenFiles};

/// Bytes of a call: as much as every kernel takes at once, and as long as a writer may have to wait.
const CHUNK: u64 = 16 << 20;
/// Where bytes differ, halves are tried down to this.
const LEAST: u64 = 128 << 10;

/// What has been shared, and what has not.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Bytes that refer to one place now.
    pub shared: u64,
    /// Calls that shared.
    pub ranges: u64,
    /// Bytes that are not equal any more.
    pub differs: u64,
    /// Bytes not shared, by the kernel's error number; `ESTALE`: the file was replaced.
    pub refused: BTreeMap<i32, u64>,
}

/// Shares ranges in the order given. `across`: also where owners differ now.
///
/// # Errors
/// [`Stopped`]; what was shared until then is in `outcome`.
pub fn share(
    files: &Files,
    ranges: &[Range],
    across: bool,
    control: &Control,
    outcome: &Mutex<Outcome>,
) -> Result<(), Stopped> {
    let mut open = OpenFiles::new(files);
    control.begin(ranges.iter().map(|range| range.len).sum());
    for range in ranges {
        if let Err(error) = share_one(&mut open, range, across, control, outcome) {
            if control.is_stopped() {
                return Err(Stopped);
            }
            refuse(outcome, &error, range.len);
            control.advance(range.len);
        }
    }
    Ok(())
}

fn refuse(outcome: &Mutex<Outcome>, error: &io::Error, bytes: u64) {
    let number = error.raw_os_error().unwrap_or(libc::EIO);
    *outcome
        .lock()
        .expect("nobody panics with it")
        .refused
        .entry(number)
        .or_default() += bytes;
}

fn share_one(
    open: &mut OpenFiles<'_>,
    range: &Range,
    across: bool,
    control: &Control,
    outcome: &Mutex<Outcome>,
) -> io::Result<()> {
    let (from, to) = open.pair(range.src, range.dst)?;
    if from.status.uid != to.status.uid && !across {
        return Err(io::Error::from_raw_os_error(libc::ESTALE));
    }
    let (src, dst) = (from.fd(), to.fd());
    let mut parts = Vec::new();
    let mut at = 0;
    while at < range.len {
        parts.push((at, CHUNK.min(range.len - at)));
        at += CHUNK;
    }
    parts.reverse();
    while let Some((at, len)) = parts.pop() {
        control.spend(0)?;
        sys::will_need(src, range.src_at + at, len);
        sys::will_need(dst, range.dst_at + at, len);
        let done = sys::dedupe(src, range.src_at + at, dst, range.dst_at + at, len);
        let mut told = outcome.lock().expect("nobody panics with it");
        match done {
            Ok(Shared::Bytes(0)) => {
                *told.refused.entry(libc::EIO).or_default() += len;
            }
            Ok(Shared::Bytes(bytes)) => {
                told.shared += bytes;
                told.ranges += 1;
                if bytes < len {
                    parts.push((at + bytes, len - bytes));
                }
                drop(told);
                control.advance(bytes);
                control.spend(2 * bytes)?;
                continue;
            }
            Ok(Shared::Differs) if len > LEAST => {
                let half = (len / 2).next_multiple_of(LEAST);
                drop(told);
                parts.push((at + half, len - half));
                parts.push((at, half));
                control.spend(len)?;
                continue;
            }
            Ok(Shared::Differs) => told.differs += len,
            Err(error) => {
                *told
                    .refused
                    .entry(error.raw_os_error().unwrap_or(libc::EIO))
                    .or_default() += len;
            }
        }
        drop(told);
        control.advance(len);
    }
    Ok(())
}
