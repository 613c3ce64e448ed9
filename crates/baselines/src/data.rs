//! The families of pages that indexes are measured on.

/// The names that [`fill`] knows.
pub const KINDS: [&str; 11] = [
    "random",
    "head",
    "zerohead",
    "tail",
    "near",
    "middle",
    "thermometer",
    "onebit",
    "ladder",
    "equal",
    "text",
];

/// xorshift64*: fast enough to fill memory, good enough to fill pages.
pub struct Rng(u64);

impl Rng {
    /// A generator from a seed other than 0.
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 more bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn fill_random(row: &mut [u8], seed: u64) {
    let mut rng = Rng::new(seed);
    for part in row.chunks_mut(8) {
        part.copy_from_slice(&rng.next_u64().to_le_bytes()[..part.len()]);
    }
}

/// Fills `row` with member `v` of a family; the same `v` gives the same bytes, different `v` different ones (as far
/// as the family has so many). Returns false if there is no such family.
///
/// * `random`: all bytes random.
/// * `head`: a fixed random page but for its first 3 bytes, which are `v`.
/// * `zerohead`: zeros but for 4 bytes at `(v & 63) * 4`, which are `v` (and a 0x80, so that it is not all zeros).
/// * `tail`: all 0xaa but for the last 8 bytes, which are `v`.
/// * `near`: one random page with one bit flipped, at random, thrice.
/// * `middle`: one random page but for 8 bytes in its middle, which are `v`.
/// * `thermometer`: `v` ones, then zeros (a page has 32,769 of them; above, a counter at the end).
/// * `onebit`: bit `v` alone (a page has 32,768 of them; above, a counter in the bytes before the end).
/// * `ladder`: zeros up to bit `v`, random after it.
/// * `equal`: all the same.
/// * `text`: a line of text, again and again, with a number in it.
pub fn fill(kind: &str, row: &mut [u8], v: u64, seed: u64) -> bool {
    let n = row.len();
    let bits = 8 * n as u64;
    match kind {
        "random" => fill_random(row, v.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed),
        "head" => {
            fill_random(row, seed);
            let k = n.min(3);
            row[..k].copy_from_slice(&v.to_le_bytes()[..k]);
        }
        "zerohead" => {
            row.fill(0);
            let at = ((v & 63) * 4) as usize % n.saturating_sub(4).max(1);
            let k = (n - at).min(4);
            row[at..at + k].copy_from_slice(&((v as u32) | 0x8000_0000).to_be_bytes()[..k]);
        }
        "tail" => {
            row.fill(0xaa);
            let k = n.min(8);
            row[n - k..].copy_from_slice(&v.to_be_bytes()[8 - k..]);
        }
        "near" => {
            fill_random(row, seed);
            let mut rng = Rng::new(v ^ seed << 32);
            for _ in 0..3 {
                let bit = rng.next_u64() % bits;
                row[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
        }
        "middle" => {
            fill_random(row, seed);
            let at = n / 2;
            let k = (n - at).min(8);
            row[at..at + k].copy_from_slice(&v.to_le_bytes()[..k]);
        }
        "thermometer" => {
            row.fill(0);
            let ones = v % (bits + 1);
            row[..(ones / 8) as usize].fill(0xff);
            if !ones.is_multiple_of(8) {
                row[(ones / 8) as usize] = !(0xff >> (ones % 8));
            }
            let k = n.min(8);
            for (byte, more) in row[n - k..].iter_mut().zip((v / (bits + 1)).to_be_bytes()) {
                *byte ^= more;
            }
        }
        "onebit" => {
            row.fill(0);
            let bit = v % bits;
            row[(bit / 8) as usize] = 0x80 >> (bit % 8);
            let k = n.min(8);
            for (byte, more) in row[n - k..].iter_mut().zip((v / bits).to_be_bytes()) {
                *byte ^= more;
            }
        }
        "ladder" => {
            fill_random(row, v.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed);
            let zeros = v % bits.saturating_sub(64).max(1);
            row[..(zeros / 8) as usize].fill(0);
            row[(zeros / 8) as usize] &= 0xff >> (zeros % 8);
        }
        "equal" => fill_random(row, seed),
        "text" => {
            let line = format!(
                "{v:016x} the quick brown fox jumps over the lazy dog {}\n",
                v % 97
            );
            for part in row.chunks_mut(line.len()) {
                part.copy_from_slice(&line.as_bytes()[..part.len()]);
            }
        }
        _ => return false,
    }
    true
}

/// Fills `rows`, rows of `size` bytes end to end, with members of a family, each `copies` times, far from each other.
/// Returns false if there is no such family.
pub fn fill_all(kind: &str, rows: &mut [u8], copies: usize, size: usize, seed: u64) -> bool {
    let distinct = (rows.len() / size / copies.max(1)).max(1) as u64;
    rows.chunks_exact_mut(size)
        .enumerate()
        .all(|(i, row)| fill(kind, row, i as u64 % distinct, seed))
}

/// Rows that begin at a page, as pages do.
pub struct Aligned {
    pages: Vec<Page>,
    len: usize,
}

#[derive(Clone)]
#[repr(align(4096))]
struct Page(#[allow(dead_code)] [u8; 4096]);

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the pages lie end to end and have no padding: at least `len` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }
}

/// As [`fill_all`], `count` rows in memory of their own; `None` if there is no such family.
pub fn make(kind: &str, count: usize, copies: usize, size: usize, seed: u64) -> Option<Aligned> {
    let len = count * size;
    let mut pages = vec![Page([0; 4096]); len.div_ceil(4096)];
    // SAFETY: as in `deref`.
    let rows = unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast::<u8>(), len) };
    fill_all(kind, rows, copies, size, seed).then_some(Aligned { pages, len })
}
