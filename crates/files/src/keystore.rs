//! Keys of blocks by file, on disk: eight bytes a block, which need no memory and outlive the scan if it is an index.
//!
//! A record has the keys of consecutive blocks of one file, with the file's stamp and a checksum. Records are only
//! appended: whoever is killed leaves at most a torn one at the end, which the next reader cuts off. Nothing in an index
//! is believed to be equal because of it: what has equal keys is compared.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

use crate::sys::{self, Stamp};

/// Blocks of a record at most.
pub const PIECE: usize = 1 << 16;
const MAGIC: &[u8; 8] = b"P1FILES1";
const RECORD: u64 = 0x5031_5245_434f_5244;
const HEAD: usize = 64;
const RECORD_WORDS: usize = 11;
/// Bytes of the seed of keys.
pub const SEED: usize = 32;

/// Keys of consecutive blocks of one file.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Whose.
    pub file: u32,
    /// Number of the first block in the file.
    pub start: u64,
    /// How many.
    pub blocks: u32,
    /// Where the keys are, in bytes.
    pub at: u64,
}

/// What an index has of a file: its pieces (`file` is not set) and what stands for its content.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) digest: u64,
}

/// The keys of all files.
#[derive(Debug)]
pub struct KeyStore {
    fd: OwnedFd,
    /// Of the keys: an index keeps it, so that keys of another day can be compared.
    pub seed: [u8; SEED],
    unit: u32,
    end: Mutex<u64>,
    check: keyhash::Key,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes"))
}

/// Keys of another version of the hash would find nothing: what a fixed block gives tells them.
fn sample(seed: &[u8]) -> u64 {
    keyhash::hash64(
        &keyhash::Key::from_seed(seed),
        b"a block that never changes",
    )
}

/// What stands for the content of a file: its keys by place, blocks of zeros left out, so that a hole counts as one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Digest(u64);

impl Digest {
    /// Takes in the keys of consecutive blocks from block `start` on.
    pub fn add(&mut self, start: u64, keys: &[u64], zero: u64) {
        for (block, &key) in (start..).zip(keys) {
            if key != zero {
                let mixed = (key ^ block.wrapping_mul(0x9E37_79B9_7F4A_7C15))
                    .wrapping_mul(0xD6E8_FEB8_6659_FD93);
                self.0 = (self.0.rotate_left(23) ^ mixed ^ (mixed >> 32))
                    .wrapping_mul(0x9FB2_1C65_1E98_DF25);
            }
        }
    }

    /// What it comes to.
    pub fn value(self) -> u64 {
        self.0
    }
}

impl KeyStore {
    /// An empty store of keys of `unit`-byte blocks in a file that is the caller's alone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(fd: OwnedFd, seed: [u8; SEED], unit: u32) -> io::Result<KeyStore> {
        let mut head = [0u8; HEAD];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&unit.to_le_bytes());
        head[16..48].copy_from_slice(&seed);
        head[48..56].copy_from_slice(&sample(&seed).to_le_bytes());
        // SAFETY: no memory is involved.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        sys::write_at(fd.as_raw_fd(), &head, 0)?;
        Ok(KeyStore {
            fd,
            seed,
            unit,
            end: Mutex::new(HEAD as u64),
            check: keyhash::Key::from_seed(MAGIC),
        })
    }

    /// An index of an earlier scan, and what it knows by stamp; `None` if it is none, of other blocks or of another hash.
    ///
    /// # Errors
    /// The kernel's.
    pub fn load(
        fd: &OwnedFd,
        unit: u32,
        zero_of: impl Fn(&[u8]) -> u64,
    ) -> io::Result<Option<(KeyStore, HashMap<Stamp, Known>)>> {
        let mut head = [0u8; HEAD];
        if sys::read_at(fd.as_raw_fd(), &mut head, 0)? < HEAD {
            return Ok(None);
        }
        let seed: [u8; SEED] = head[16..48].try_into().expect("as long");
        let same = &head[..8] == MAGIC
            && head[8..12] == unit.to_le_bytes()
            && word(&head, 6) == sample(&seed);
        if !same {
            return Ok(None);
        }
        let mut store = KeyStore {
            fd: fd.try_clone()?,
            seed,
            unit,
            end: Mutex::new(0),
            check: keyhash::Key::from_seed(MAGIC),
        };
        let zero = zero_of(&seed);
        let mut known: HashMap<Stamp, Known> = HashMap::new();
        let mut begun: HashMap<Stamp, (Known, Digest, u64)> = HashMap::new();
        let mut at = HEAD as u64;
        let mut record = Vec::new();
        while let Some((stamp, piece, last)) = store.read_record(at, &mut record)? {
            let length = record.len() as u64;
            let keys: Vec<u64> = (RECORD_WORDS..record.len() / 8)
                .map(|i| word(&record, i))
                .collect();
            let (its, digest, next) = begun.entry(stamp).or_default();
            if piece.start < *next {
                // The file was begun anew: by a scan that was killed and one after it.
                *its = Known::default();
                *digest = Digest::default();
            }
            digest.add(piece.start, &keys, zero);
            *next = piece.start + u64::from(piece.blocks);
            if piece.blocks > 0 {
                its.pieces.push(piece);
            }
            if last {
                let (mut its, digest, _) = begun.remove(&stamp).expect("begun above");
                its.digest = digest.value();
                known.insert(stamp, its);
            }
            at += length;
        }
        *store.end.get_mut().expect("nobody has it") = at;
        Ok(Some((store, known)))
    }

    /// The record at `at`, with its bytes; `None` at the end, or where it is torn.
    fn read_record(
        &self,
        at: u64,
        record: &mut Vec<u8>,
    ) -> io::Result<Option<(Stamp, Piece, bool)>> {
        record.clear();
        record.resize(RECORD_WORDS * 8, 0);
        if sys::read_at(self.fd.as_raw_fd(), record, at)? < record.len()
            || word(record, 0) != RECORD
        {
            return Ok(None);
        }
        let blocks = word(record, 8);
        if blocks > PIECE as u64 {
            return Ok(None);
        }
        let head = record.len();
        record.resize(head + blocks as usize * 8, 0);
        if sys::read_at(self.fd.as_raw_fd(), &mut record[head..], at + head as u64)?
            < record.len() - head
        {
            return Ok(None);
        }
        if word(record, 1) != keyhash::hash64(&self.check, &record[16..]) {
            return Ok(None);
        }
        let stamp = Stamp {
            dev: word(record, 2),
            ino: word(record, 3),
            size: word(record, 4),
            mtime: word(record, 5) as i64,
            ctime: word(record, 6) as i64,
        };
        let piece = Piece {
            file: 0,
            start: word(record, 7),
            blocks: blocks as u32,
            at: at + head as u64,
        };
        Ok(Some((stamp, piece, word(record, 9) != 0)))
    }

    /// Bytes of a block.
    pub fn unit(&self) -> usize {
        self.unit as usize
    }

    /// Bytes it takes on disk.
    pub fn bytes(&self) -> u64 {
        *self.end.lock().expect("nobody panics with it")
    }

    /// Reads keys of a piece, `keys.len()` of them from its block `from` on.
    ///
    /// # Errors
    /// The kernel's; `EIO` if the file has become shorter.
    pub fn read(&self, piece: &Piece, from: u32, keys: &mut [u64]) -> io::Result<()> {
        // SAFETY: the same memory as bytes, any of which are valid in either type.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(keys.as_mut_ptr().cast::<u8>(), keys.len() * 8)
        };
        if sys::read_at(self.fd.as_raw_fd(), bytes, piece.at + u64::from(from) * 8)? < bytes.len() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        for key in keys {
            *key = u64::from_le(*key);
        }
        Ok(())
    }

    /// Appends the bytes of whole records; returns where they begin.
    fn append(&self, records: &[u8]) -> io::Result<u64> {
        let mut end = self.end.lock().expect("nobody panics with it");
        let at = *end;
        sys::write_at(self.fd.as_raw_fd(), records, at)?;
        *end += records.len() as u64;
        Ok(at)
    }
}

/// Records of one thread on their way to the store, and the pieces that they make.
pub struct Appender<'a> {
    store: &'a KeyStore,
    records: Vec<u8>,
    /// Of files whose last record was taken; places relative to `records` until it is written.
    complete: Vec<Piece>,
    waiting: Vec<Piece>,
    current: Vec<Piece>,
}

/// Bytes of records written at a time.
const BATCH: usize = 256 << 10;

impl<'a> Appender<'a> {
    /// For one thread.
    pub fn new(store: &'a KeyStore) -> Self {
        Appender {
            store,
            records: Vec::new(),
            complete: Vec::new(),
            waiting: Vec::new(),
            current: Vec::new(),
        }
    }

    /// Takes the keys of consecutive blocks of a file; `last`: they are the last ones of it (there may be none).
    ///
    /// # Errors
    /// The kernel's.
    pub fn add(
        &mut self,
        file: u32,
        stamp: &Stamp,
        start: u64,
        keys: &[u64],
        last: bool,
    ) -> io::Result<()> {
        let begin = self.records.len();
        let words = [
            RECORD,
            0,
            stamp.dev,
            stamp.ino,
            stamp.size,
            stamp.mtime as u64,
            stamp.ctime as u64,
            start,
            keys.len() as u64,
            u64::from(last),
            0,
        ];
        for word in words.iter().chain(keys) {
            self.records.extend_from_slice(&word.to_le_bytes());
        }
        let check = keyhash::hash64(&self.store.check, &self.records[begin + 16..]);
        self.records[begin + 8..begin + 16].copy_from_slice(&check.to_le_bytes());
        if !keys.is_empty() {
            self.current.push(Piece {
                file,
                start,
                blocks: keys.len() as u32,
                at: (begin + RECORD_WORDS * 8) as u64,
            });
        }
        if last {
            self.waiting.append(&mut self.current);
        }
        if self.records.len() >= BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// The file under way is not to count.
    ///
    /// # Errors
    /// The kernel's.
    pub fn abandon(&mut self) -> io::Result<()> {
        // Its records without a last one stay, and are of no file.
        self.current.clear();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let base = self.store.append(&self.records)?;
        self.records.clear();
        for piece in self.waiting.iter_mut().chain(&mut self.current) {
            // Those of a file that has been under way for longer have their places.
            if piece.at < FLUSHED {
                piece.at += base + FLUSHED;
            }
        }
        self.complete.append(&mut self.waiting);
        Ok(())
    }

    /// Writes what is left; returns the pieces of all complete files.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(mut self) -> io::Result<Vec<Piece>> {
        self.flush()?;
        for piece in &mut self.complete {
            piece.at -= FLUSHED;
        }
        Ok(self.complete)
    }
}

/// Added to places that are known, until the end: no batch is so long.
const FLUSHED: u64 = 1 << 56;
