//! Equal whole files: those of one size are read side by side, and part where their bytes do.
//!
//! No hash of a file is made: the next bytes of all files that are still equal are compared, by the SD tree where there
//! are many. So a file is read as far as it equals another one, and once.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use sdtree::{RowBatch, SdTree};

use crate::control::Control;
use crate::reading::{in_threads, Buffer, Troubles};
use crate::sys;
use crate::walk::{Files, Opened};

/// Bytes that are compared at a time, of all files together.
const BUDGET: usize = 4 << 20;
/// Of each file: at first, and later.
const FIRST: usize = 16 << 10;
const MOST: usize = 512 << 10;
const LEAST: usize = 512;
/// So many files are kept open from one part to the next.
const OPEN: usize = 128;
/// From so many rows on the tree tells equal ones; fewer are compared each with each content.
const MANY: usize = 8;

/// Files of one size that may be equal.
pub type Group = Vec<u32>;

/// Finds the equal files within each group. A group's first file comes first in its class.
///
/// # Errors
/// `ECANCELED`.
pub fn classes(
    files: &Files,
    mut groups: Vec<Group>,
    seed: &[u8],
    threads: usize,
    control: &Control,
    troubles: &Troubles,
) -> io::Result<Vec<Group>> {
    // The largest first: no thread is left alone with one of them at the end.
    let bytes = |group: &Group| files.rows[group[0] as usize].stamp.size * group.len() as u64;
    groups.sort_by_key(|group| std::cmp::Reverse(bytes(group)));
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    in_threads(threads, &|| {
        let mut buffer = Buffer::new();
        let mut mine = Vec::new();
        while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            split(
                files,
                group,
                seed,
                &mut buffer,
                control,
                troubles,
                &mut mine,
            )?;
        }
        found
            .lock()
            .expect("nobody panics with it")
            .append(&mut mine);
        Ok(())
    })?;
    let mut found = found.into_inner().expect("nobody panics with it");
    found.sort_unstable();
    Ok(found)
}

struct Part {
    files: Vec<(u32, Option<Opened>)>,
    at: u64,
    chunk: usize,
}

fn split(
    files: &Files,
    group: &Group,
    seed: &[u8],
    buffer: &mut Buffer,
    control: &Control,
    troubles: &Troubles,
    found: &mut Vec<Group>,
) -> io::Result<()> {
    let size = files.rows[group[0] as usize].stamp.size;
    let mut parts = vec![Part {
        files: group.iter().map(|&file| (file, None)).collect(),
        at: 0,
        chunk: FIRST,
    }];
    while let Some(mut part) = parts.pop() {
        if part.files.len() < 2 {
            continue;
        }
        let each = (BUDGET / part.files.len()).clamp(LEAST, part.chunk);
        let len = (each as u64).min(size - part.at) as usize;
        let ends = part.at + len as u64 == size;
        let keep = part.files.len() <= OPEN && !ends;
        let rows = buffer.lend(len * part.files.len());
        let mut filled = 0;
        part.files.retain_mut(|(file, its)| {
            let row = &mut rows[filled * len..(filled + 1) * len];
            match read(files, *file, its, row, part.at, ends) {
                Ok(()) => {
                    if !keep {
                        *its = None;
                    }
                    filled += 1;
                    true
                }
                Err(error) => {
                    troubles.count(&error);
                    false
                }
            }
        });
        control.spend((len * filled) as u64)?;
        control.advance((len * filled) as u64);
        let ids = number(&rows[..len * filled], len, seed);
        let mut equal: Vec<Vec<(u32, Option<Opened>)>> = Vec::new();
        for (member, id) in part.files.into_iter().zip(ids) {
            if equal.len() <= id as usize {
                equal.resize_with(id as usize + 1, Vec::new);
            }
            equal[id as usize].push(member);
        }
        for members in equal.into_iter().filter(|members| members.len() > 1) {
            if ends {
                found.push(members.into_iter().map(|(file, _)| file).collect());
            } else {
                parts.push(Part {
                    files: members,
                    at: part.at + len as u64,
                    chunk: (part.chunk * 8).min(MOST),
                });
            }
        }
    }
    Ok(())
}

/// Reads the next bytes of a file; the last ones only if it has not been written meanwhile.
fn read(
    files: &Files,
    file: u32,
    its: &mut Option<Opened>,
    row: &mut [u8],
    at: u64,
    last: bool,
) -> io::Result<()> {
    let opened = match its {
        Some(opened) => opened,
        None => its.insert(files.open_unchanged(file)?),
    };
    let short = sys::read_at(opened.fd(), row, at)? < row.len();
    if short || (last && !opened.is_unchanged()) {
        return Err(io::Error::from_raw_os_error(libc::ESTALE));
    }
    Ok(())
}

/// A number for each row, the same for equal ones, in first-seen order.
fn number(rows: &[u8], len: usize, seed: &[u8]) -> Vec<u32> {
    let count = rows.len() / len;
    if count >= MANY {
        let tree = SdTree::rows(rows, len, count, seed);
        return tree
            .intern(&RowBatch::new(rows, len))
            .expect("far fewer than 2^32 rows")
            .ids;
    }
    let row = |i: usize| &rows[i * len..(i + 1) * len];
    let mut first: Vec<usize> = Vec::new();
    (0..count)
        .map(|i| {
            let id = first.iter().position(|&other| row(other) == row(i));
            id.unwrap_or_else(|| {
                first.push(i);
                first.len() - 1
            }) as u32
        })
        .collect()
}
