//! The mappings of a process: `/proc/PID/maps` as arrays.
//!
//! A process may have 65,530 mappings and more; a line is parsed in about 100 ns and a mapping takes 60 bytes.
//! Names are stored once each: most of thousands of mappings share a few dozen.

use std::collections::HashMap;
use std::io::{self, Read};

/// Readable (`r`).
pub const PERM_READ: u8 = 1;
/// Writable (`w`).
pub const PERM_WRITE: u8 = 2;
/// Executable (`x`).
pub const PERM_EXEC: u8 = 4;
/// Shared (`s`); private (`p`) where the bit is clear.
pub const PERM_SHARED: u8 = 8;

/// The mappings of one process, in ascending order; one element a mapping in every array but `names`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Maps {
    /// First byte address.
    pub start: Vec<u64>,
    /// Byte address after the last.
    pub end: Vec<u64>,
    /// Bits `PERM_*`.
    pub perms: Vec<u8>,
    /// Byte offset in the mapped file.
    pub offset: Vec<u64>,
    /// Device of the file, `major << 32 | minor`; 0 for anonymous memory.
    pub dev: Vec<u64>,
    /// Inode of the file; 0 for anonymous memory.
    pub inode: Vec<u64>,
    /// Which of `names` it has.
    pub name: Vec<u32>,
    /// The different names, in order of first appearance: a path, `[heap]`, `[anon:…]`, or empty.
    pub names: Vec<Vec<u8>>,
}

fn hex(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 16 {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = (byte as char).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Cuts the text up to `separator` off `rest`.
fn take<'a>(rest: &mut &'a [u8], separator: u8) -> Option<&'a [u8]> {
    let at = rest.iter().position(|&byte| byte == separator)?;
    let (head, tail) = rest.split_at(at);
    *rest = &tail[1..];
    Some(head)
}

/// A line of `/proc/PID/maps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// First byte address.
    pub start: u64,
    /// Byte address after the last.
    pub end: u64,
    /// Bits `PERM_*`.
    pub perms: u8,
    /// Byte offset in the mapped file.
    pub offset: u64,
    /// Device of the file, `major << 32 | minor`; 0 for anonymous memory.
    pub dev: u64,
    /// Inode of the file; 0 for anonymous memory.
    pub inode: u64,
    /// Its name, which may be any bytes; mostly none.
    pub name: &'a [u8],
}

impl<'a> Line<'a> {
    /// Parses it; None where it is no such line.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut rest = line;
        let start = hex(take(&mut rest, b'-')?)?;
        let end = hex(take(&mut rest, b' ')?)?;
        let perms = take(&mut rest, b' ')?;
        let offset = hex(take(&mut rest, b' ')?)?;
        let major = hex(take(&mut rest, b':')?)?;
        let minor = hex(take(&mut rest, b' ')?)?;
        // The kernel pads with spaces behind the inode only when a name follows.
        let inode_end = rest
            .iter()
            .position(|&byte| byte == b' ')
            .unwrap_or(rest.len());
        let inode = decimal(&rest[..inode_end])?;
        let padded = &rest[inode_end..];
        let name = &padded[padded
            .iter()
            .position(|&byte| byte != b' ')
            .unwrap_or(padded.len())..];
        if perms.len() != 4 || start >= end {
            return None;
        }
        let bit = |at: usize, letter: u8, bit: u8| if perms[at] == letter { bit } else { 0 };
        Some(Self {
            start,
            end,
            perms: bit(0, b'r', PERM_READ)
                | bit(1, b'w', PERM_WRITE)
                | bit(2, b'x', PERM_EXEC)
                | bit(3, b's', PERM_SHARED),
            offset,
            dev: major << 32 | minor,
            inode,
            name,
        })
    }
}

impl Maps {
    fn push(&mut self, line: &[u8], known: &mut HashMap<Vec<u8>, u32>) -> Option<()> {
        let line = Line::parse(line)?;
        let (start, end, offset, inode, name) =
            (line.start, line.end, line.offset, line.inode, line.name);
        // One that has been joined with its neighbour since that was told is told as a whole.
        let told = self
            .end
            .last()
            .map_or(0, |&told| told.saturating_sub(start));
        if told >= end - start {
            return Some(());
        }
        let (start, offset) = match inode {
            0 => (start + told, offset),
            _ => (start + told, offset + told),
        };
        self.perms.push(line.perms);
        self.start.push(start);
        self.end.push(end);
        self.offset.push(offset);
        self.dev.push(line.dev);
        self.inode.push(inode);
        let number = match known.get(name) {
            Some(&number) => number,
            None => {
                let number = self.names.len() as u32;
                self.names.push(name.to_vec());
                known.insert(name.to_vec(), number);
                number
            }
        };
        self.name.push(number);
        Some(())
    }

    /// Parses the text of `/proc/PID/maps`.
    ///
    /// # Errors
    /// `InvalidData`, naming the line, where the text is not what the kernel writes.
    pub fn parse(text: &[u8]) -> io::Result<Maps> {
        let mut maps = Maps::default();
        let mut known = HashMap::new();
        for line in text
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            maps.push(line, &mut known).ok_or_else(|| {
                let line = String::from_utf8_lossy(line).into_owned();
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("not a line of /proc/PID/maps: {line:?}"),
                )
            })?;
        }
        Ok(maps)
    }

    /// Reads and parses the maps of process `pid`.
    ///
    /// The kernel takes a fresh look for each few kilobytes: in a process that maps and unmaps meanwhile, lines
    /// may be of different moments, but no mapping that stayed is missed. One that meanwhile grew over what has been told
    /// before begins behind that here: mappings never overlap.
    ///
    /// # Errors
    /// `NotFound` when there is no such process, `PermissionDenied` when it may not be looked at.
    pub fn read(pid: i32) -> io::Result<Maps> {
        let mut text = Vec::with_capacity(64 << 10);
        std::fs::File::open(format!("/proc/{pid}/maps"))?.read_to_end(&mut text)?;
        Maps::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_that_grew_over_what_was_told_before_begins_behind_it() {
        let text = b"1000-3000 rw-p 00000000 00:00 0\n1000-6000 rw-p 00000000 00:00 0\n\
            7000-9000 rw-p 00002000 00:01 5\n7000-8000 rw-p 00002000 00:01 5\n7000-c000 rw-p 00002000 00:01 5\n";
        let maps = Maps::parse(text).unwrap();
        assert_eq!(maps.start, [0x1000, 0x3000, 0x7000, 0x9000]);
        assert_eq!(maps.end, [0x3000, 0x6000, 0x9000, 0xc000]);
        assert_eq!(maps.offset, [0, 0, 0x2000, 0x4000]);
    }

    #[test]
    fn every_field_of_a_line_is_parsed() {
        let text =
            b"55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]\n\
            7f0000000000-7f0000001000 r-xs 0001f000 fe:01 131 /a b/lib (deleted)\n\
            7f0000002000-7f0000003000 ---p 00000000 00:00 0 \n\
            7f0000003000-7f0000004000 rw-p 00000000 00:00 0 \n";
        let maps = Maps::parse(text).unwrap();
        assert_eq!(
            maps.start,
            [
                0x55d0c0a00000,
                0x7f0000000000,
                0x7f0000002000,
                0x7f0000003000
            ]
        );
        assert_eq!(maps.end[1], 0x7f0000001000);
        assert_eq!(
            maps.perms,
            [
                PERM_READ | PERM_WRITE,
                PERM_READ | PERM_EXEC | PERM_SHARED,
                0,
                3
            ]
        );
        assert_eq!(maps.offset[1], 0x1f000);
        assert_eq!(maps.dev[1], 0xfe << 32 | 1);
        assert_eq!(maps.inode, [0, 131, 0, 0]);
        assert_eq!(maps.name, [0, 1, 2, 2]);
        assert_eq!(
            maps.names,
            [
                b"[heap]".to_vec(),
                b"/a b/lib (deleted)".to_vec(),
                b"".to_vec()
            ]
        );
    }

    #[test]
    fn text_that_is_no_maps_file_is_refused_and_the_line_is_named() {
        for bad in [
            &b"hello"[..],
            b"2000-1000 rw-p 00000000 00:00 0",
            b"1000-2000 rw-p 0 00:00",
            b"-2000 rw-p 0 00:00 0",
        ] {
            let error = Maps::parse(bad).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error
                .to_string()
                .contains(std::str::from_utf8(bad).unwrap()));
        }
    }

    #[test]
    fn the_own_stack_is_found() {
        let maps = Maps::read(std::process::id() as i32).unwrap();
        let here = &maps as *const _ as u64;
        let at = maps.start.partition_point(|&start| start <= here) - 1;
        assert!(here < maps.end[at]);
        assert_eq!(
            maps.perms[at] & (PERM_READ | PERM_WRITE),
            PERM_READ | PERM_WRITE
        );
    }
}
