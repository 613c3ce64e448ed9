//! A scan from end to end: the steps in their order, and what they have found.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use crate::blocks::Blocks;
use crate::control::{Control, Stopped};
use crate::extents::{self, Account};
use crate::keystore::{KeyStore, Piece, SEED};
use crate::reading::{self, Keys, Troubles};
use crate::share::{self, Outcome};
use crate::verify::{self, Range};
use crate::walk::{Files, Root};
use crate::whole::{self, Group};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of a file at least.
    pub smallest: u64,
    /// Only whole files, not blocks.
    pub whole: bool,
    /// Bytes of a block.
    pub unit: u32,
    /// Blocks of a range that is to be shared, at least.
    pub shortest: u32,
    /// Threads that read and compare.
    pub threads: usize,
    /// Bytes of memory for one pass over the keys.
    pub memory: u64,
    /// Bits of keys that are kept: all, but in tests.
    pub mask: u64,
    /// Whether files of different owners are compared, too.
    pub across: bool,
    /// Of keys and trees: random.
    pub seed: [u8; SEED],
}

/// What a scan has found.
#[derive(Debug, Default)]
pub struct Found {
    /// Equal whole files, the oldest first.
    pub classes: Vec<Group>,
    /// Equal blocks of files that equal no older one, joined to ranges.
    pub ranges: Vec<Range>,
    /// What can be shared, and is not yet.
    pub to_share: Vec<Range>,
    /// What that would free.
    pub account: Account,
    /// Blocks that equal an older one, without zeros, beyond equal whole files; and their bytes.
    pub equal_blocks: u64,
    /// Their bytes.
    pub equal_bytes: u64,
    /// Blocks looked at.
    pub blocks: u64,
    /// Blocks of zeros among them.
    pub zero_blocks: u64,
    /// Files whose keys an index knew.
    pub from_index: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
}

/// The steps, in their order.
pub const STEPS: [&str; 7] = [
    "walking",
    "reading",
    "comparing files",
    "finding blocks",
    "comparing blocks",
    "extents",
    "sharing",
];

/// One scan, and sharing what it has found.
#[derive(Debug)]
pub struct Scan {
    /// Stops it, tells how far it is.
    pub control: Control,
    /// Files that were lost on the way.
    pub troubles: Troubles,
    /// What was shared.
    pub outcome: Mutex<Outcome>,
    step: AtomicUsize,
    options: Options,
}

impl Scan {
    /// A scan with these options under these budgets ([`Control::new`]).
    pub fn new(options: Options, cpu_share: f64, rate: u64) -> Scan {
        Scan {
            control: Control::new(cpu_share, rate),
            troubles: Troubles::default(),
            outcome: Mutex::default(),
            step: AtomicUsize::new(0),
            options,
        }
    }

    /// The step it is at.
    pub fn step(&self) -> &'static str {
        STEPS[self.step.load(Ordering::Relaxed)]
    }

    fn at(&self, step: usize, total: u64) {
        self.control.begin(total);
        self.step.store(step, Ordering::Relaxed);
    }

    /// Lists the files. `leave`: inodes to be left out.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn list(&self, roots: Vec<Root>, leave: &[(u64, u64)]) -> Result<Files, Stopped> {
        self.at(0, 0);
        Files::walk(roots, self.options.smallest, leave, &self.control)
    }

    /// Finds what is equal. Keys are kept in `keys`: an index, or an empty file.
    ///
    /// # Errors
    /// `ECANCELED`, or the kernel's when keys cannot be kept.
    pub fn find(&self, files: &Files, keys: &OwnedFd) -> io::Result<Found> {
        let mut order: Vec<u32> = (0..files.rows.len() as u32).collect();
        order.sort_by_key(|&file| {
            let stamp = &files.rows[file as usize].stamp;
            (stamp.mtime, stamp.dev, stamp.ino)
        });
        let domains = self.domains(files);
        let mut found = Found::default();
        if self.options.whole {
            let groups = groups(&order, |file| {
                let size = files.rows[file as usize].stamp.size;
                Some((domains[file as usize], size, 0))
            });
            found.classes = self.classes(files, groups)?;
        } else {
            self.blocks(files, &order, &domains, keys, &mut found)?;
        }
        self.at(5, 0);
        let wanted = plan(files, &found.classes, &found.ranges);
        (found.to_share, found.account) = extents::account(files, &wanted, &self.control)?;
        Ok(found)
    }

    /// By file: a number for all that may share with each other.
    fn domains(&self, files: &Files) -> Vec<u32> {
        let mut numbers = HashMap::new();
        (0..files.rows.len() as u32)
            .map(|file| {
                let owner = if self.options.across {
                    0
                } else {
                    files.rows[file as usize].uid
                };
                let next = numbers.len() as u32;
                *numbers.entry((files.fs(file), owner)).or_insert(next)
            })
            .collect()
    }

    fn classes(&self, files: &Files, groups: Vec<Group>) -> io::Result<Vec<Group>> {
        let bytes = groups
            .iter()
            .map(|group| files.rows[group[0] as usize].stamp.size * group.len() as u64)
            .sum();
        self.at(2, bytes);
        whole::classes(
            files,
            groups,
            &self.options.seed,
            self.options.threads,
            &self.control,
            &self.troubles,
        )
    }

    fn blocks(
        &self,
        files: &Files,
        order: &[u32],
        domains: &[u32],
        keys_file: &OwnedFd,
        found: &mut Found,
    ) -> io::Result<()> {
        let options = &self.options;
        let make_keys = |seed: &[u8]| Keys::new(seed, options.mask, options.unit as usize);
        let loaded = KeyStore::load(keys_file, options.unit, |seed| make_keys(seed).zero)?;
        let (store, mut known) = match loaded {
            Some(loaded) => loaded,
            None => (
                KeyStore::create(keys_file.try_clone()?, options.seed, options.unit)?,
                HashMap::new(),
            ),
        };
        let keys = make_keys(&store.seed);
        let mut digests: Vec<Option<u64>> = vec![None; files.rows.len()];
        let mut pieces: Vec<Piece> = Vec::new();
        let mut unknown = Vec::new();
        for (file, row) in files.rows.iter().enumerate() {
            match known.remove(&row.stamp) {
                Some(its) => {
                    digests[file] = Some(its.digest);
                    pieces.extend(its.pieces.iter().map(|piece| Piece {
                        file: file as u32,
                        ..*piece
                    }));
                    found.from_index += 1;
                }
                None => unknown.push(file as u32),
            }
        }
        drop(known);
        // As they are likely to lie on the disk.
        unknown.sort_by_key(|&file| {
            let stamp = &files.rows[file as usize].stamp;
            (stamp.dev, stamp.ino)
        });
        let size = |file: u32| {
            let row = &files.rows[file as usize];
            row.stamp.size.min(row.blocks * 512)
        };
        self.at(1, unknown.iter().map(|&file| size(file)).sum());
        let (new, told) = reading::read_all(
            files,
            &unknown,
            &keys,
            &store,
            options.threads,
            &self.control,
            &self.troubles,
        )?;
        pieces.extend(new);
        for (file, digest) in unknown.into_iter().zip(told) {
            digests[file as usize] = digest;
        }
        found.index_bytes = store.bytes();

        let groups = groups(order, |file| {
            let size = files.rows[file as usize].stamp.size;
            digests[file as usize].map(|digest| (domains[file as usize], size, digest))
        });
        found.classes = self.classes(files, groups)?;
        let mut is_copy = vec![false; files.rows.len()];
        for class in &found.classes {
            for &copy in &class[1..] {
                is_copy[copy as usize] = true;
            }
        }
        let mut rank = vec![0u32; files.rows.len()];
        for (at, &file) in order.iter().enumerate() {
            rank[file as usize] = at as u32;
        }
        found.blocks = pieces.iter().map(|piece| u64::from(piece.blocks)).sum();
        pieces.retain(|piece| !is_copy[piece.file as usize]);
        pieces.sort_unstable_by_key(|piece| (rank[piece.file as usize], piece.start));
        // Spread over all bits, so that no key of one domain is another's of another.
        let salt = domains
            .iter()
            .map(|&domain| u64::from(domain).wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .collect();
        let blocks = Blocks::new(&store, pieces, salt, keys.zero)?;
        self.at(3, 0);
        let (twins, zeros) = blocks.twins(options.memory, &options.seed, &self.control)?;
        found.zero_blocks = zeros;
        let runs = blocks.runs(&twins, options.shortest)?;
        drop(twins);
        self.at(4, 0);
        let verified = verify::verify(
            files,
            &blocks,
            options.unit as usize,
            &runs,
            options.threads,
            &self.control,
            &self.troubles,
        )?;
        found.ranges = verified.ranges;
        found.equal_blocks = verified.blocks;
        found.equal_bytes = verified.bytes;
        Ok(())
    }

    /// Shares ranges in this order. Meanwhile `outcome` tells how far it is.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn share(&self, files: &Files, ranges: &[Range]) -> Result<(), Stopped> {
        self.at(6, 0);
        share::share(
            files,
            ranges,
            self.options.across,
            &self.control,
            &self.outcome,
        )
    }
}

/// The files in `order` that agree in what `by` tells, if there are two or more.
fn groups(order: &[u32], by: impl Fn(u32) -> Option<(u32, u64, u64)>) -> Vec<Group> {
    let mut keyed: Vec<_> = order
        .iter()
        .enumerate()
        .filter_map(|(at, &file)| by(file).map(|key| (key, at, file)))
        .collect();
    keyed.sort_unstable();
    keyed
        .chunk_by(|a, b| a.0 == b.0)
        .filter(|group| group.len() > 1)
        .map(|group| group.iter().map(|&(_, _, file)| file).collect())
        .collect()
}

/// What is to be shared with what: long ranges, and whole copies with their oldest one, or with what parts of that are to
/// be shared with.
fn plan(files: &Files, classes: &[Group], ranges: &[Range]) -> Vec<Range> {
    let mut wanted: Vec<Range> = ranges.iter().filter(|range| range.long).copied().collect();
    wanted.sort_unstable_by_key(|range| (range.dst, range.dst_at));
    let long = wanted.clone();
    for class in classes {
        let first = class[0];
        let size = files.rows[first as usize].stamp.size;
        let its = &long[long.partition_point(|range| range.dst < first)..];
        let its = &its[..its.partition_point(|range| range.dst == first)];
        let mut parts = Vec::new();
        let mut at = 0;
        for range in its {
            if at < range.dst_at {
                parts.push((first, at, at, range.dst_at - at));
            }
            parts.push((range.src, range.src_at, range.dst_at, range.len));
            at = range.dst_at + range.len;
        }
        if at < size {
            parts.push((first, at, at, size - at));
        }
        for &copy in &class[1..] {
            wanted.extend(parts.iter().map(|&(src, src_at, dst_at, len)| Range {
                src,
                src_at,
                dst: copy,
                dst_at,
                len,
                long: true,
            }));
        }
    }
    wanted
}
