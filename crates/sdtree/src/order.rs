//! How keys are ordered: what the first key bits of an object are. The one part that decides the depth of the tree
//! and how much of an object a search reads; it never decides what is equal.
//!
//! An object is looked for by the first [`crate::PREFIX`] bits of `first(bytes)`. Objects that have these in common
//! are a class; all of a class but the one that came first are looked for by the bit string
//!
//! ```text
//! whole(bytes): 64 bits | length: 32 bits (variable length only) | the bytes themselves
//! ```
//!
//! `first` and `whole` are functions of the bytes, so equal objects have equal keys; the bytes at the end make keys
//! of different objects differ whatever the two functions do. `whole` is computed only where a search comes to it.

use keyhash::Key;

/// What gives an object its first key bits. Replace it to order a tree otherwise.
///
/// # Safety
/// `first` and `whole` must be functions of the bytes alone: for equal bytes equal results, on every call of every thread,
/// and the same from `first_four` and `whole_four`. A search that is led elsewhere than the one before would take an
/// object for gone that is still in the tree, and its place would be given to another.
pub unsafe trait Order: Send + Sync {
    /// The first key bits, the first most significant (the first [`crate::PREFIX`] are used).
    fn first(&self, bytes: &[u8]) -> u64;
    /// 64 bits that depend on all bytes; asked for where others have the same first bits.
    fn whole(&self, bytes: &[u8]) -> u64;
    /// [`Order::first`] of four objects, side by side where it reads them whole.
    #[inline]
    fn first_four(&self, bytes: [&[u8]; 4]) -> [u64; 4] {
        bytes.map(|b| self.first(b))
    }
    /// [`Order::whole`] of four objects, side by side.
    #[inline]
    fn whole_four(&self, bytes: [&[u8]; 4]) -> [u64; 4] {
        bytes.map(|b| self.whole(b))
    }
    /// Whether [`Order::first`] reads all of an object of `len` bytes, which is long enough to be read as a stream.
    #[inline]
    fn streams(&self, _len: usize) -> bool {
        false
    }
    /// Calls `touch` with the byte offset of each 64-byte line that [`Order::first`] will read of an object of `len`
    /// bytes, so that they can be brought to the caches; all of them if that is all the same.
    fn lines(&self, len: usize, touch: impl FnMut(usize));
}

/// Objects up to this length are read whole.
const SMALL: usize = 512;
/// Bytes sampled at the head: what real data differs in, and what formats put their counters into.
const HEAD: usize = 256;
/// Secret lines sampled between head and tail.
const SECRET_LINES: usize = 1;
/// Objects from this length on are read as streams, several side by side.
pub(crate) const STREAM: usize = 1024;

/// The default: `first` hashes a sample of the object (head, last line, a secret line), `whole` all of it.
///
/// An object that differs from all others in its sample costs a few cache lines; one that does not costs one pass at
/// the speed of memory. Both functions are keyed with a secret of the tree (see [`keyhash`]): who does not know it
/// cannot make keys run into each other, and so not the tree deep.
pub struct SampledHash {
    first: Key,
    second: Key,
    /// Where the secret lines lie, as fractions of what is between head and tail (of 2^32).
    places: [u32; SECRET_LINES],
}

/// Says nothing of the secret.
impl std::fmt::Debug for SampledHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SampledHash").finish_non_exhaustive()
    }
}

impl SampledHash {
    /// Makes the secret from `seed`: give at least 16 random bytes where an adversary may choose the objects.
    pub fn new(seed: &[u8]) -> Self {
        let key = Key::from_seed(seed);
        let part = |label: &[u8]| Key::from_seed(&keyhash::hash64(&key, label).to_le_bytes());
        // Each key keeps all of the seed's randomness: the seed itself with a label in front.
        let derive = |label: u8| Key::from_seed(&[&[label], seed].concat());
        let places = std::array::from_fn(|i| keyhash::hash64(&part(b"places"), &[i as u8]) as u32);
        SampledHash {
            first: derive(1),
            second: derive(2),
            places,
        }
    }

    /// The offsets of the sampled lines of an object of `len > SMALL` bytes.
    #[inline]
    fn sample(&self, len: usize) -> [u32; HEAD / 64 + SECRET_LINES + 1] {
        let mut lines = [0; HEAD / 64 + SECRET_LINES + 1];
        for (i, line) in lines.iter_mut().take(HEAD / 64).enumerate() {
            *line = 64 * i as u32;
        }
        // Whole lines between the head and the last line.
        let between = ((len - 64 - HEAD) / 64) as u64;
        for (line, &place) in lines[HEAD / 64..].iter_mut().zip(&self.places) {
            *line = (HEAD as u64 + 64 * ((between * place as u64) >> 32)) as u32;
        }
        lines[HEAD / 64 + SECRET_LINES] = (len - 64) as u32;
        lines
    }
}

// SAFETY: hashes of bytes chosen by their number, with a key that never changes.
unsafe impl Order for SampledHash {
    #[inline]
    fn first(&self, bytes: &[u8]) -> u64 {
        if bytes.len() <= SMALL {
            keyhash::hash64(&self.first, bytes)
        } else {
            keyhash::hash64_lines(&self.first, bytes, &self.sample(bytes.len()))
        }
    }

    #[inline]
    fn first_four(&self, bytes: [&[u8]; 4]) -> [u64; 4] {
        let len = bytes[0].len();
        if len > SMALL && bytes.iter().all(|b| b.len() == len) {
            keyhash::hash64_lines_four(&self.first, bytes, &self.sample(len))
        } else {
            bytes.map(|b| self.first(b))
        }
    }

    #[inline]
    fn whole(&self, bytes: &[u8]) -> u64 {
        keyhash::hash64(&self.second, bytes)
    }

    #[inline]
    fn whole_four(&self, bytes: [&[u8]; 4]) -> [u64; 4] {
        keyhash::hash64_four(&self.second, bytes)
    }

    #[inline]
    fn lines(&self, len: usize, mut touch: impl FnMut(usize)) {
        if len <= SMALL {
            (0..len).step_by(64).for_each(touch);
        } else {
            self.sample(len).iter().for_each(|&at| touch(at as usize));
        }
    }
}

/// Hashes all bytes for `first`, too: reads each object once, whole, and nothing of an object without a twin but it.
/// For objects that are in the caches anyway.
#[derive(Debug)]
pub struct Hashed {
    first: Key,
    second: Key,
}

impl Hashed {
    /// Makes the secret from `seed`: give at least 16 random bytes where an adversary may choose the objects.
    pub fn new(seed: &[u8]) -> Self {
        let derive = |label: u8| Key::from_seed(&[&[label], seed].concat());
        Hashed {
            first: derive(1),
            second: derive(2),
        }
    }
}

// SAFETY: hashes of all bytes, with a key that never changes.
unsafe impl Order for Hashed {
    #[inline]
    fn first(&self, bytes: &[u8]) -> u64 {
        keyhash::hash64(&self.first, bytes)
    }

    #[inline]
    fn whole(&self, bytes: &[u8]) -> u64 {
        keyhash::hash64(&self.second, bytes)
    }

    #[inline]
    fn first_four(&self, bytes: [&[u8]; 4]) -> [u64; 4] {
        keyhash::hash64_four(&self.first, bytes)
    }

    #[inline]
    fn whole_four(&self, bytes: [&[u8]; 4]) -> [u64; 4] {
        keyhash::hash64_four(&self.second, bytes)
    }

    #[inline]
    fn streams(&self, len: usize) -> bool {
        len >= STREAM
    }

    #[inline]
    fn lines(&self, len: usize, touch: impl FnMut(usize)) {
        (0..len.min(256)).step_by(64).for_each(touch);
    }
}

/// The bits of the object as they are, the order of the original SD tree. No secret, nothing hashed, the least read;
/// but real data makes it deep, and an adversary makes it as deep as the object has bits. For measurements, and for
/// keys that are hashes already.
#[derive(Clone, Copy, Debug)]
pub struct Raw;

impl Raw {
    #[inline]
    fn word(bytes: &[u8]) -> [u8; 16] {
        let mut word = [0; 16];
        let n = bytes.len().min(16);
        word[..n].copy_from_slice(&bytes[..n]);
        word
    }
}

// SAFETY: the bytes themselves.
unsafe impl Order for Raw {
    #[inline]
    fn first(&self, bytes: &[u8]) -> u64 {
        (u128::from_be_bytes(Raw::word(bytes)) >> 64) as u64
    }

    #[inline]
    fn whole(&self, bytes: &[u8]) -> u64 {
        (u128::from_be_bytes(Raw::word(bytes)) << crate::PREFIX >> 64) as u64
    }

    #[inline]
    fn lines(&self, len: usize, mut touch: impl FnMut(usize)) {
        if len > 0 {
            touch(0);
        }
    }
}

/// An order chosen when the tree is made.
#[derive(Debug)]
pub enum AnyOrder {
    /// See [`SampledHash`].
    Sampled(Box<SampledHash>),
    /// See [`Hashed`].
    Hashed(Box<Hashed>),
    /// See [`Raw`].
    Raw,
}

impl AnyOrder {
    /// The order of that name: `sampled`, `hashed` or `raw`.
    pub fn named(name: &str, seed: &[u8]) -> Option<AnyOrder> {
        Some(match name {
            "sampled" => AnyOrder::Sampled(Box::new(SampledHash::new(seed))),
            "hashed" => AnyOrder::Hashed(Box::new(Hashed::new(seed))),
            "raw" => AnyOrder::Raw,
            _ => return None,
        })
    }
}

// SAFETY: one of the above, always the same.
unsafe impl Order for AnyOrder {
    #[inline]
    fn first(&self, bytes: &[u8]) -> u64 {
        match self {
            AnyOrder::Sampled(o) => o.first(bytes),
            AnyOrder::Hashed(o) => o.first(bytes),
            AnyOrder::Raw => Raw.first(bytes),
        }
    }

    #[inline]
    fn whole(&self, bytes: &[u8]) -> u64 {
        match self {
            AnyOrder::Sampled(o) => o.whole(bytes),
            AnyOrder::Hashed(o) => o.whole(bytes),
            AnyOrder::Raw => Raw.whole(bytes),
        }
    }

    #[inline]
    fn first_four(&self, bytes: [&[u8]; 4]) -> [u64; 4] {
        match self {
            AnyOrder::Sampled(o) => o.first_four(bytes),
            AnyOrder::Hashed(o) => o.first_four(bytes),
            AnyOrder::Raw => Raw.first_four(bytes),
        }
    }

    #[inline]
    fn whole_four(&self, bytes: [&[u8]; 4]) -> [u64; 4] {
        match self {
            AnyOrder::Sampled(o) => o.whole_four(bytes),
            AnyOrder::Hashed(o) => o.whole_four(bytes),
            AnyOrder::Raw => Raw.whole_four(bytes),
        }
    }

    #[inline]
    fn streams(&self, len: usize) -> bool {
        match self {
            AnyOrder::Sampled(o) => o.streams(len),
            AnyOrder::Hashed(o) => o.streams(len),
            AnyOrder::Raw => Raw.streams(len),
        }
    }

    #[inline]
    fn lines(&self, len: usize, touch: impl FnMut(usize)) {
        match self {
            AnyOrder::Sampled(o) => o.lines(len, touch),
            AnyOrder::Hashed(o) => o.lines(len, touch),
            AnyOrder::Raw => Raw.lines(len, touch),
        }
    }
}
