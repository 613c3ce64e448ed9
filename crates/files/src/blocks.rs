//! Which blocks may be equal, and how they join to ranges: by keys alone; `verify` compares the bytes.
//!
//! Blocks are counted over all files in the order in which those are given, the oldest first. A block's *twin* is the
//! first block with its key. The tree of keys needs up to 28 bytes a key, so keys are looked at in several passes, each
//! for its share of all keys, if they are more than the memory allowed holds. Of blocks of zeros none is a twin: they
//! belong to a range only inside it.

use std::io;

use sdtree::KeyTree;

use crate::control::Control;
use crate::keystore::{KeyStore, Piece};

/// In place of a twin: none.
pub const NONE: u32 = u32::MAX;
/// Bytes of memory a key of a pass: the tree's entry, the block that had it first, and room to grow.
const KEY_BYTES: u64 = 40;
/// Keys worked on at a time.
const BATCH: usize = 8192;

/// Blocks counted over all files: the pieces in order, with the number of the first block of each.
pub struct Blocks<'a> {
    store: &'a KeyStore,
    /// The pieces, those of a file together, in the order of the files.
    pub pieces: Vec<Piece>,
    /// By piece: the number of its first block; then the number of all.
    first: Vec<u32>,
    /// By file: mixed into its keys. Files that must not share differ in it.
    salt: Vec<u64>,
    zero: u64,
}

/// Blocks `dst..dst + len` may equal `src..src + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First block of the older ones.
    pub src: u32,
    /// First block of the others.
    pub dst: u32,
    /// How many.
    pub len: u32,
}

/// What was found by keys.
#[derive(Debug, Default)]
pub struct Runs {
    /// Long enough to be shared, by `dst`; no `src` is part of another's `dst`.
    pub long: Vec<Run>,
    /// The others.
    pub short: Vec<Run>,
}

/// Keys by number of the block, a window of them at a time.
struct Cursor<'b, 'a> {
    blocks: &'b Blocks<'a>,
    piece: usize,
    from: u32,
    keys: Vec<u64>,
}

const WINDOW: u32 = 4096;

impl<'a> Blocks<'a> {
    /// `pieces` in order; `salt` by file.
    ///
    /// # Errors
    /// `EFBIG` for more blocks than can be numbered.
    pub fn new(
        store: &'a KeyStore,
        pieces: Vec<Piece>,
        salt: Vec<u64>,
        zero: u64,
    ) -> io::Result<Self> {
        let mut first = Vec::with_capacity(pieces.len() + 1);
        let mut total = 0u64;
        for piece in &pieces {
            first.push(total as u32);
            total += u64::from(piece.blocks);
        }
        if total >= u64::from(NONE) {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        first.push(total as u32);
        Ok(Blocks {
            store,
            pieces,
            first,
            salt,
            zero,
        })
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.first[self.pieces.len()]
    }

    fn piece_of(&self, block: u32) -> usize {
        self.first.partition_point(|&first| first <= block) - 1
    }

    /// The file of a block, and its number in it.
    pub fn place(&self, block: u32) -> (u32, u64) {
        let piece = self.piece_of(block);
        let its = &self.pieces[piece];
        (its.file, its.start + u64::from(block - self.first[piece]))
    }

    /// Whether block + 1 follows it in its file.
    fn goes_on(&self, block: u32, piece: usize) -> bool {
        if block + 1 < self.first[piece + 1] {
            return true;
        }
        let its = &self.pieces[piece];
        let next = self.pieces.get(piece + 1);
        next.is_some_and(|next| {
            next.file == its.file && next.start == its.start + u64::from(its.blocks)
        })
    }

    /// Calls `each` with the number of the first block and the keys, for all blocks in order.
    fn each_keys(
        &self,
        mut each: impl FnMut(u32, u32, &[u64]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut keys = Vec::new();
        for (piece, &first) in self.pieces.iter().zip(&self.first) {
            let mut at = 0;
            while at < piece.blocks {
                let many = (piece.blocks - at).min(BATCH as u32);
                keys.resize(many as usize, 0);
                self.store.read(piece, at, &mut keys)?;
                each(first + at, piece.file, &keys)?;
                at += many;
            }
        }
        Ok(())
    }

    /// The twin of each block, or [`NONE`]; and the number of blocks of zeros (by keys). `memory`: bytes of a pass.
    ///
    /// # Errors
    /// The kernel's; `ECANCELED`.
    pub fn twins(
        &self,
        memory: u64,
        seed: &[u8],
        control: &Control,
    ) -> io::Result<(Vec<u32>, u64)> {
        let total = u64::from(self.count());
        let passes = (total * KEY_BYTES).div_ceil(memory.max(1)).max(1);
        let room = (total / passes + total / passes / 16 + 1) as usize;
        let mut twins = vec![NONE; total as usize];
        let mut zeros = 0;
        control.begin(total * passes);
        for pass in 0..passes {
            let tree = KeyTree::new(room, seed);
            let mut first: Vec<u32> = Vec::new();
            let mut batch = Vec::with_capacity(2 * BATCH);
            let mut at = Vec::with_capacity(2 * BATCH);
            let mut flush = |batch: &mut Vec<u64>, at: &mut Vec<u32>| {
                let done = tree.intern_each(batch, |i, id, new| {
                    if new {
                        // One thread gives numbers in first-seen order.
                        first.push(at[i]);
                    } else {
                        twins[at[i] as usize] = first[id as usize];
                    }
                });
                batch.clear();
                at.clear();
                done.map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))
            };
            self.each_keys(|block, file, keys| {
                let salt = self.salt[file as usize];
                for (block, &key) in (block..).zip(keys) {
                    if key == self.zero {
                        zeros += u64::from(pass == 0);
                        continue;
                    }
                    let key = key ^ salt;
                    // The upper half of a product: an even share of all keys.
                    let share = (u128::from(key.wrapping_mul(0x9E37_79B9_7F4A_7C15))
                        * u128::from(passes))
                        >> 64;
                    if share as u64 == pass {
                        batch.push(key);
                        at.push(block);
                    }
                }
                control.advance(keys.len() as u64);
                control.spend(0)?;
                if batch.len() >= BATCH {
                    flush(&mut batch, &mut at)?;
                }
                Ok(())
            })?;
            flush(&mut batch, &mut at)?;
        }
        Ok((twins, zeros))
    }

    /// Joins twins to ranges; those of fewer than `shortest` blocks are short. A range goes on over blocks whose keys are
    /// those of the blocks that follow its source, whatever their own twins.
    ///
    /// # Errors
    /// The kernel's.
    pub fn runs(&self, twins: &[u32], shortest: u32) -> io::Result<Runs> {
        let mut dst_keys = Cursor::new(self);
        let mut src_keys = Cursor::new(self);
        let mut runs = Runs::default();
        let mut joined: Vec<Run> = Vec::new();
        let mut at = 0u32;
        let total = self.count();
        // The end of the last long range: nothing before it is looked at again.
        let mut settled = 0u32;
        while at < total {
            let src = twins[at as usize];
            if src == NONE {
                at += 1;
                continue;
            }
            let mut run = Run {
                src,
                dst: at,
                len: 1,
            };
            let same_file = self.place(src).0 == self.place(at).0;
            loop {
                let (s, d) = (run.src + run.len - 1, run.dst + run.len - 1);
                let goes_on =
                    self.goes_on(d, dst_keys.find(d)) && self.goes_on(s, src_keys.find(s));
                // A file's own blocks: a range must not reach into itself.
                if !goes_on || (same_file && s + 1 >= run.dst) {
                    break;
                }
                if src_keys.get(s + 1)? != dst_keys.get(d + 1)? {
                    break;
                }
                run.len += 1;
            }
            at = run.dst + run.len;
            // Backwards over what belongs to no long range: blocks of zeros, short ones, first ones.
            while run.dst > settled && run.src > 0 {
                let (s, d) = (run.src - 1, run.dst - 1);
                let follows =
                    self.goes_on(d, dst_keys.find(d)) && self.goes_on(s, src_keys.find(s));
                let overlaps = same_file && s + run.len + 1 > d;
                if !follows || overlaps || src_keys.get(s)? != dst_keys.get(d)? {
                    break;
                }
                run = Run {
                    src: s,
                    dst: d,
                    len: run.len + 1,
                };
            }
            if run.len >= shortest {
                while let Some(last) = runs.short.last_mut() {
                    if last.dst + last.len <= run.dst {
                        break;
                    }
                    last.len = run.dst.saturating_sub(last.dst);
                    if last.len > 0 {
                        break;
                    }
                    runs.short.pop();
                }
                settled = at;
                joined.push(run);
            } else {
                // Alone it is only what its twins say.
                let from = run.dst.max(
                    runs.short
                        .last()
                        .map_or(settled, |last| (last.dst + last.len).max(settled)),
                );
                let cut = from - run.dst;
                runs.short.push(Run {
                    src: run.src + cut,
                    dst: from,
                    len: run.len - cut,
                });
            }
        }
        runs.long = resolve(&joined);
        Ok(runs)
    }

    /// All blocks whose keys (with their files' salt) are among `wanted`, by key, in order.
    ///
    /// # Errors
    /// The kernel's.
    pub fn with_keys(
        &self,
        wanted: &std::collections::HashSet<u64>,
    ) -> io::Result<Vec<(u64, u32)>> {
        let mut found = Vec::new();
        self.each_keys(|block, file, keys| {
            let salt = self.salt[file as usize];
            found.extend(
                (block..)
                    .zip(keys)
                    .map(|(block, &key)| (key ^ salt, block))
                    .filter(|(key, _)| wanted.contains(key)),
            );
            Ok(())
        })?;
        found.sort_unstable();
        Ok(found)
    }

    /// Whether a block was of zeros when its key was made.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_zero(&self, block: u32) -> io::Result<bool> {
        let piece = &self.pieces[self.piece_of(block)];
        Ok(self.key(block)? ^ self.salt[piece.file as usize] == self.zero)
    }

    /// The key of a block, with its file's salt.
    ///
    /// # Errors
    /// The kernel's.
    pub fn key(&self, block: u32) -> io::Result<u64> {
        let piece = self.piece_of(block);
        let mut key = [0];
        self.store
            .read(&self.pieces[piece], block - self.first[piece], &mut key)?;
        Ok(key[0] ^ self.salt[self.pieces[piece].file as usize])
    }
}

/// Splits ranges so that no source is another's destination: what is shared first stays where it is.
fn resolve(joined: &[Run]) -> Vec<Run> {
    let mut done: Vec<Run> = Vec::with_capacity(joined.len());
    for run in joined {
        let (mut src, mut dst, end) = (run.src, run.dst, run.src + run.len);
        let mut at = done.partition_point(|other| other.dst + other.len <= src);
        // Those of this very range come later in `done`, and no source reaches them.
        let known = done.len();
        while src < end {
            let other = (at < known)
                .then(|| done[at])
                .filter(|other| other.dst < end);
            let piece = match other {
                Some(other) if other.dst <= src => {
                    let len = (other.dst + other.len).min(end) - src;
                    at += 1;
                    Run {
                        src: other.src + (src - other.dst),
                        dst,
                        len,
                    }
                }
                Some(other) => Run {
                    src,
                    dst,
                    len: other.dst - src,
                },
                None => Run {
                    src,
                    dst,
                    len: end - src,
                },
            };
            src += piece.len;
            dst += piece.len;
            done.push(piece);
        }
    }
    done
}

impl<'b, 'a> Cursor<'b, 'a> {
    fn new(blocks: &'b Blocks<'a>) -> Self {
        Cursor {
            blocks,
            piece: 0,
            from: 0,
            keys: Vec::new(),
        }
    }

    /// The piece of a block.
    fn find(&mut self, block: u32) -> usize {
        let first = &self.blocks.first;
        if !(first[self.piece] <= block && block < first[self.piece + 1]) {
            self.piece = self.blocks.piece_of(block);
            self.keys.clear();
        }
        self.piece
    }

    fn get(&mut self, block: u32) -> io::Result<u64> {
        let piece = self.find(block);
        let at = block - self.blocks.first[piece];
        if self.keys.is_empty() || at < self.from || at >= self.from + self.keys.len() as u32 {
            let its = &self.blocks.pieces[piece];
            self.from = at / WINDOW * WINDOW;
            self.keys
                .resize((its.blocks - self.from).min(WINDOW) as usize, 0);
            self.blocks.store.read(its, self.from, &mut self.keys)?;
        }
        Ok(self.keys[(at - self.from) as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_is_itself_shared_leads_to_what_stays() {
        let run = |src, dst, len| Run { src, dst, len };
        // 10..14 goes to 0..4; then 20..30 to 8..18 goes there for its middle.
        let done = resolve(&[run(0, 10, 4), run(8, 20, 10)]);
        assert_eq!(
            done,
            [run(0, 10, 4), run(8, 20, 2), run(0, 22, 4), run(14, 26, 4)]
        );
    }
}
