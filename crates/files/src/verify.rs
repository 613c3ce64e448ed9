//! Decides equality: reads both ends of each range and compares all bytes.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use crate::blocks::{Blocks, Run, Runs};
use crate::control::Control;
use crate::reading::{in_threads, Buffer, Troubles};
use crate::sys;
use crate::walk::{Files, OpenFiles};

/// Bytes compared at a time: both buffers stay in the second-level cache.
const CHUNK: usize = 128 << 10;

/// Bytes of one file that equal those of an older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The file that has others refer to it.
    pub src: u32,
    /// Where in it.
    pub src_at: u64,
    /// The file that is to refer to it.
    pub dst: u32,
    /// Where in it.
    pub dst_at: u64,
    /// Bytes.
    pub len: u64,
    /// Long enough to be shared.
    pub long: bool,
}

/// What the bytes say.
#[derive(Debug, Default)]
pub struct Verified {
    /// Equal ranges, by `dst` and `dst_at`.
    pub ranges: Vec<Range>,
    /// Blocks in them that are not zeros.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

#[derive(Default)]
struct Mine {
    ranges: Vec<Range>,
    blocks: u64,
    bytes: u64,
    doubts: Vec<u32>,
}

/// Both buffers and the files open for them.
struct Reader<'a> {
    open: OpenFiles<'a>,
    left: Buffer,
    right: Buffer,
    troubles: &'a Troubles,
    /// Files that cannot be read as they were listed: counted once.
    lost: HashSet<u32>,
}

impl Reader<'_> {
    fn read(&mut self, right: bool, file: u32, at: u64, len: usize) -> bool {
        if self.lost.contains(&file) {
            return false;
        }
        let into = if right {
            &mut self.right
        } else {
            &mut self.left
        };
        let done = self.open.get(file, true).and_then(|opened| {
            if sys::read_at(opened.fd(), into.lend(len), at)? < len {
                return Err(io::Error::from_raw_os_error(libc::ESTALE));
            }
            Ok(())
        });
        if let Err(error) = &done {
            self.troubles.count(error);
            self.lost.insert(file);
        }
        done.is_ok()
    }
}

/// Compares the ranges found by keys. What only had equal keys is looked for again among all blocks with that key, so
/// that no equal pair is missed.
///
/// # Errors
/// `ECANCELED`, or the kernel's when keys cannot be read.
pub fn verify(
    files: &Files,
    blocks: &Blocks<'_>,
    unit: usize,
    runs: &Runs,
    threads: usize,
    control: &Control,
    troubles: &Troubles,
) -> io::Result<Verified> {
    let work: Vec<(Run, bool)> = runs
        .long
        .iter()
        .map(|&run| (run, true))
        .chain(runs.short.iter().map(|&run| (run, false)))
        .collect();
    control.begin(
        work.iter()
            .map(|(run, _)| u64::from(run.len) * unit as u64)
            .sum(),
    );
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Mine::default());
    in_threads(threads, &|| {
        let mut reader = Reader {
            open: OpenFiles::new(files),
            left: Buffer::new(),
            right: Buffer::new(),
            troubles,
            lost: HashSet::new(),
        };
        let mut mine = Mine::default();
        while let Some(&(run, is_long)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            compare(
                files,
                blocks,
                unit,
                run,
                is_long,
                &mut reader,
                &mut mine,
                control,
            )?;
        }
        let mut all = all.lock().expect("nobody panics with it");
        all.ranges.append(&mut mine.ranges);
        all.doubts.append(&mut mine.doubts);
        all.blocks += mine.blocks;
        all.bytes += mine.bytes;
        Ok(())
    })?;
    let mut all = all.into_inner().expect("nobody panics with it");
    if !all.doubts.is_empty() {
        settle(files, blocks, unit, &mut all, troubles)?;
    }
    all.ranges
        .sort_unstable_by_key(|range| (range.dst, range.dst_at));
    Ok(Verified {
        ranges: all.ranges,
        blocks: all.blocks,
        bytes: all.bytes,
    })
}

#[allow(clippy::too_many_arguments)]
fn compare(
    files: &Files,
    blocks: &Blocks<'_>,
    unit: usize,
    run: Run,
    is_long: bool,
    reader: &mut Reader<'_>,
    mine: &mut Mine,
    control: &Control,
) -> io::Result<()> {
    let ((src, src_block), (dst, dst_block)) = (blocks.place(run.src), blocks.place(run.dst));
    let (src_at, dst_at) = (src_block * unit as u64, dst_block * unit as u64);
    let end = |file: u32, at: u64| files.rows[file as usize].stamp.size - at;
    let (src_end, dst_end) = (end(src, src_at), end(dst, dst_at));
    let mut len = (u64::from(run.len) * unit as u64).min(dst_end).min(src_end);
    if len % unit as u64 != 0 && src_end != dst_end {
        // A file that ends in zeros, and one that goes on: the kernel shares an end with an end only.
        len -= len % unit as u64;
        mine.doubts.push(run.dst + (len / unit as u64) as u32);
    }
    let chunk = ((CHUNK / unit).max(1) * unit) as u64;
    let mut equal: Option<(u64, u64)> = None;
    let take = |mine: &mut Mine, equal: &mut Option<(u64, u64)>| {
        if let Some((from, to)) = equal.take() {
            mine.ranges.push(Range {
                src,
                src_at: src_at + from,
                dst,
                dst_at: dst_at + from,
                len: to - from,
                long: is_long,
            });
        }
    };
    let mut at = 0;
    while at < len {
        let many = chunk.min(len - at) as usize;
        control.spend(2 * many as u64)?;
        control.advance(many as u64);
        if !reader.read(false, src, src_at + at, many) || !reader.read(true, dst, dst_at + at, many)
        {
            break;
        }
        let (left, right) = (&*reader.left.lend(many), &*reader.right.lend(many));
        let whole = left == right;
        for low in (0..many).step_by(unit) {
            let high = (low + unit).min(many);
            let (a, b) = (&left[low..high], &right[low..high]);
            let zeros = keyhash::is_zero(b);
            if whole || a == b {
                if !zeros {
                    mine.blocks += 1;
                    mine.bytes += b.len() as u64;
                }
                let from = equal.map_or(at + low as u64, |(from, _)| from);
                equal = Some((from, at + high as u64));
            } else {
                take(mine, &mut equal);
                mine.doubts
                    .push(run.dst + ((at + low as u64) / unit as u64) as u32);
            }
        }
        at += many as u64;
    }
    take(mine, &mut equal);
    Ok(())
}

/// Blocks whose keys are equal and whose bytes are not those of the range's source: each is compared with all older blocks
/// of its key, as a content of its own.
fn settle(
    files: &Files,
    blocks: &Blocks<'_>,
    unit: usize,
    all: &mut Mine,
    troubles: &Troubles,
) -> io::Result<()> {
    let mut doubts = HashSet::new();
    let mut wanted = HashSet::new();
    for &block in &all.doubts {
        // Of zeros none is looked for: where they are no longer zeros, the file has been written.
        if !blocks.is_zero(block)? && doubts.insert(block) {
            wanted.insert(blocks.key(block)?);
        }
    }
    let mut reader = Reader {
        open: OpenFiles::new(files),
        left: Buffer::new(),
        right: Buffer::new(),
        troubles,
        lost: HashSet::new(),
    };
    // Of one key: the contents met, each with its first block.
    let mut contents: Vec<(Vec<u8>, u32)> = Vec::new();
    let mut of_key = None;
    for (key, block) in blocks.with_keys(&wanted)? {
        if of_key != Some(key) {
            contents.clear();
            of_key = Some(key);
        }
        let (file, number) = blocks.place(block);
        let at = number * unit as u64;
        let len = (files.rows[file as usize].stamp.size - at).min(unit as u64) as usize;
        if !reader.read(false, file, at, len) {
            continue;
        }
        let bytes = &*reader.left.lend(len);
        match contents.iter().find(|(content, _)| content == bytes) {
            None => contents.push((bytes.to_vec(), block)),
            Some(&(_, first)) if doubts.contains(&block) => {
                let (src, src_number) = blocks.place(first);
                all.ranges.push(Range {
                    src,
                    src_at: src_number * unit as u64,
                    dst: file,
                    dst_at: at,
                    len: len as u64,
                    long: false,
                });
                if !keyhash::is_zero(bytes) {
                    all.blocks += 1;
                    all.bytes += len as u64;
                }
            }
            Some(_) => {}
        }
    }
    Ok(())
}
