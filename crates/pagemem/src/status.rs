//! The lines of `/proc/PID/task/TID/status`: what they are is told here and nowhere else.

use std::fs;
use std::io;

/// What the kernel tells of one thread, as it was when it was read.
#[derive(Debug)]
pub struct Status(Vec<u8>);

impl Status {
    /// Of thread `tid` of process `pid`. Read whole: a list of groups, of any length, stands before most lines.
    pub fn of(pid: i32, tid: i32) -> io::Result<Self> {
        fs::read(format!("/proc/{pid}/task/{tid}/status")).map(Self)
    }

    /// The numbers of the line `name`, written to base `radix`; None where there is no such line of numbers.
    pub fn numbers(&self, name: &str, radix: u32) -> Option<Vec<u64>> {
        let line = std::str::from_utf8(value(&self.0, name)?).ok()?;
        let words = line.split_ascii_whitespace();
        words.map(|w| u64::from_str_radix(w, radix).ok()).collect()
    }

    /// The first number of the line `name`, written in decimal digits; what follows it is a unit.
    pub fn number(&self, name: &str) -> Option<u64> {
        let line = std::str::from_utf8(value(&self.0, name)?).ok()?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }

    /// Whether the set of signals in the line `name` has `signal`.
    pub fn has_signal(&self, name: &str, signal: i32) -> bool {
        let set = self
            .numbers(name, 16)
            .and_then(|sets| sets.first().copied());
        set.is_some_and(|bits| bits >> (signal - 1) & 1 == 1)
    }

    /// Whether system calls of the thread are filtered. A kernel without filters has no such line.
    pub fn is_filtered(&self) -> bool {
        filtered(&self.0).unwrap_or(false)
    }
}

/// The value of the line `name` (without its colon) of a status; None where that line is not, or not wholly, in `text`.
fn value<'a>(text: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut lines = text.split_inclusive(|b| *b == b'\n');
    let line =
        lines.find(|l| l.starts_with(name.as_bytes()) && l.get(name.len()) == Some(&b':'))?;
    line[name.len() + 1..].strip_suffix(b"\n")
}

/// Whether a status, or the beginning of one, says that system calls are filtered; None where it does not say so yet.
pub fn filtered(text: &[u8]) -> Option<bool> {
    Some(value(text, "Seccomp")?.trim_ascii() != b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_of_a_filter_only_by_its_own_line() {
        let none = b"Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n";
        assert_eq!(filtered(none), Some(false));
        let some = b"Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert_eq!(filtered(some), Some(true));
        assert_eq!(filtered(b"Name:\tSeccomp:\nGroups:\t0 1\n"), None);
        assert_eq!(filtered(b"Name:\tx\nSeccomp:\t"), None);
    }

    #[test]
    fn a_name_of_any_bytes_hides_no_other_line() {
        let text = b"Name:\t\xff\xfe)(\nUid:\t1\t2\t3\t4\nVmLck:\t      12 kB\nSigIgn:\t0000000000010001\n";
        let status = Status(text.to_vec());
        assert_eq!(status.numbers("Uid", 10), Some(vec![1, 2, 3, 4]));
        assert_eq!(status.number("VmLck"), Some(12));
        assert_eq!(
            (status.number("VmPin"), status.numbers("Name", 10)),
            (None, None)
        );
        assert!(status.has_signal("SigIgn", 1) && status.has_signal("SigIgn", 17));
        assert!(!status.has_signal("SigIgn", 2) && !status.has_signal("SigCgt", 1));
    }

    #[test]
    fn this_thread_is_told_of() {
        let me = std::process::id();
        let status = Status::of(me as i32, me as i32).expect("its own");
        assert_eq!(status.number("Tgid"), Some(u64::from(me)));
        assert!(!status.is_filtered());
    }
}
