//! What a directory lists, read from its beginning or from any place: for `/proc`, whose names are mostly numbers.
//!
//! Called for the threads and descriptors of one process ([`crate::process`]) and for all processes
//! ([`crate::processes`]).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::sys::check;

/// Bytes for names of threads or descriptors: some 800 of them in one call.
const NAMES: usize = 1 << 15;
/// A directory entry whose name is a number needs no more than this.
const ENTRY_MAX: usize = 64;

/// The numbers among the names in an open directory, read from its beginning.
pub fn names_in(directory: &File) -> io::Result<Vec<i32>> {
    let fd = directory.as_raw_fd();
    // SAFETY: no pointers.
    check(unsafe { libc::lseek(fd, 0, libc::SEEK_SET) })?;
    let mut out = Vec::new();
    let mut entries = Entries::of::<NAMES>();
    while entries.read(directory, |number, _| out.extend(number))? && !entries.are_last() {}
    Ok(out)
}

/// Entries of a directory, as many as there is room for at once.
#[derive(Debug)]
pub struct Entries<const ROOM: usize> {
    buffer: [u8; ROOM],
    filled: usize,
}

impl Entries<0> {
    /// Room for some.
    pub fn of<const ROOM: usize>() -> Entries<ROOM> {
        Entries {
            buffer: [0; ROOM],
            filled: 0,
        }
    }
}

impl<const ROOM: usize> Entries<ROOM> {
    /// Reads on and calls `each` with what comes: the number, where that is the name, and the place of the next. False
    /// at the end.
    pub fn read(
        &mut self,
        directory: &File,
        mut each: impl FnMut(Option<i32>, i64),
    ) -> io::Result<bool> {
        let (fd, to) = (directory.as_raw_fd(), self.buffer.as_mut_ptr());
        // SAFETY: the kernel writes at most the stated number of bytes into a live buffer of that size.
        let read = check(unsafe { libc::syscall(libc::SYS_getdents64, fd, to, ROOM) })?;
        self.filled = read as usize;
        let mut left = &self.buffer[..self.filled];
        while !left.is_empty() {
            let length = u16::from_ne_bytes([left[16], left[17]]) as usize;
            let place = left[8..16].try_into().map_or(0, i64::from_ne_bytes);
            let name = left[19..length].split(|b| *b == 0).next();
            let name = name.and_then(|name| std::str::from_utf8(name).ok());
            each(name.and_then(|name| name.parse().ok()), place);
            left = &left[length..];
        }
        Ok(self.filled > 0)
    }

    /// Whether there was room for more than came.
    fn are_last(&self) -> bool {
        ROOM - self.filled >= ENTRY_MAX
    }
}
