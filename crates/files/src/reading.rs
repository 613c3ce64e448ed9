//! Keys of all blocks: each file read once, holes left out, by as many threads as asked for.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Mutex;

use crate::control::{Control, Stopped};
use crate::keystore::{Appender, Digest, KeyStore, Piece, PIECE};
use crate::sys;
use crate::walk::{Files, Opened};

/// Bytes read at a time: they stay in the second-level cache until they are hashed.
const CHUNK: usize = 256 << 10;

/// A buffer that begins on a page: elsewhere the kernel's copy may take four times as long (Zen 3).
pub(crate) struct Buffer {
    memory: Vec<u8>,
}

impl Buffer {
    pub(crate) fn new() -> Self {
        Buffer { memory: Vec::new() }
    }

    pub(crate) fn lend(&mut self, len: usize) -> &mut [u8] {
        const PAGE: usize = 4096;
        if self.memory.len() < len + PAGE {
            self.memory = vec![0; len + PAGE];
        }
        let at = self.memory.as_ptr().align_offset(PAGE);
        &mut self.memory[at..at + len]
    }
}

/// What has become of the files that were to be read or compared.
#[derive(Debug, Default)]
pub struct Troubles {
    /// Written, replaced or gone since they were listed.
    pub changed: AtomicU64,
    /// Not to be opened by this caller.
    pub denied: AtomicU64,
    /// Failed otherwise.
    pub failed: AtomicU64,
    /// The latest error number of those.
    pub error: AtomicU64,
}

impl Troubles {
    /// Counts one file.
    pub fn count(&self, error: &io::Error) {
        let kind = match error.raw_os_error() {
            Some(libc::ESTALE | libc::ENOENT | libc::ELOOP | libc::ENOTDIR | libc::EXDEV) => {
                &self.changed
            }
            Some(libc::EACCES | libc::EPERM) => &self.denied,
            other => {
                self.error
                    .store(other.unwrap_or(0) as u64, Ordering::Relaxed);
                &self.failed
            }
        };
        kind.fetch_add(1, Ordering::Relaxed);
    }
}

/// Makes keys of blocks.
pub struct Keys {
    key: Box<keyhash::Key>,
    mask: u64,
    unit: usize,
    /// The key of a block of zeros.
    pub zero: u64,
}

impl Keys {
    /// `mask` keeps bits of each key: all, but in tests.
    pub fn new(seed: &[u8], mask: u64, unit: usize) -> Keys {
        let key = Box::new(keyhash::Key::from_seed(seed));
        let zero = keyhash::hash64(&key, &vec![0; unit]) & mask;
        Keys {
            key,
            mask,
            unit,
            zero,
        }
    }

    /// Appends the keys of all blocks in `bytes`, of which the last may be short.
    fn of(&self, bytes: &[u8], keys: &mut Vec<u64>) {
        let whole = bytes.len() / self.unit;
        let from = keys.len();
        keys.resize(from + whole, 0);
        keyhash::hash64_rows(
            &self.key,
            &bytes[..whole * self.unit],
            self.unit,
            &mut keys[from..],
        );
        if whole * self.unit < bytes.len() {
            keys.push(keyhash::hash64(&self.key, &bytes[whole * self.unit..]));
        }
        for (key, block) in keys[from..].iter_mut().zip(bytes.chunks(self.unit)) {
            *key &= self.mask;
            // The key of zeros is that of zeros alone, and of all of them: the end of a file may be a hole, too.
            if keyhash::is_zero(block) {
                *key = self.zero;
            } else if *key == self.zero {
                *key ^= 1;
            }
        }
    }
}

/// What stands for a file's content, if it could be read.
pub type Digests = Vec<Option<u64>>;

/// Reads the files `which` and stores their keys. Returns the pieces, and by place in `which` what stands for each.
///
/// # Errors
/// [`Stopped`] as `ECANCELED`, or the kernel's when keys cannot be stored.
pub fn read_all(
    files: &Files,
    which: &[u32],
    keys: &Keys,
    store: &KeyStore,
    threads: usize,
    control: &Control,
    troubles: &Troubles,
) -> io::Result<(Vec<Piece>, Digests)> {
    let next = AtomicUsize::new(0);
    let pieces = Mutex::new(Vec::new());
    let digests = Mutex::new(vec![None; which.len()]);
    let work = || -> io::Result<()> {
        let mut appender = Appender::new(store);
        let mut buffer = Buffer::new();
        let mut row = Vec::with_capacity(PIECE);
        let mut mine = Vec::new();
        let mut result = Ok(());
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(&file) = which.get(at) else { break };
            match read_one(
                files,
                file,
                keys,
                &mut appender,
                &mut buffer,
                &mut row,
                control,
            ) {
                Ok(digest) => mine.push((at, digest)),
                Err(Failed::Store(error)) => {
                    result = Err(error);
                    control.stop();
                    break;
                }
                Err(Failed::Stopped) => {
                    appender.abandon()?;
                    result = Err(Stopped.into());
                    break;
                }
                Err(Failed::File(error)) => {
                    appender.abandon()?;
                    troubles.count(&error);
                }
            }
        }
        // Also of a scan that was stopped: an index has what was read until then.
        pieces
            .lock()
            .expect("nobody panics with it")
            .append(&mut appender.finish()?);
        let mut all = digests.lock().expect("nobody panics with it");
        for (at, digest) in mine {
            all[at] = Some(digest);
        }
        result
    };
    in_threads(threads, &work)?;
    Ok((
        pieces.into_inner().expect("nobody panics with it"),
        digests.into_inner().expect("nobody panics with it"),
    ))
}

/// Runs `work` in so many threads; returns the first error.
pub(crate) fn in_threads(
    threads: usize,
    work: &(dyn Fn() -> io::Result<()> + Sync),
) -> io::Result<()> {
    if threads <= 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter()
            .map(|thread| thread.join().expect("a worker does not panic"))
            .fold(Ok(()), io::Result::and)
    })
}

enum Failed {
    File(io::Error),
    Store(io::Error),
    Stopped,
}

impl From<Stopped> for Failed {
    fn from(_: Stopped) -> Self {
        Failed::Stopped
    }
}

/// The next range of a file that is data; sparse ones are asked for it.
fn data_from(opened: &Opened, at: u64) -> io::Result<Option<(u64, u64)>> {
    let size = opened.status.stamp.size;
    if at >= size {
        return Ok(None);
    }
    if opened.status.blocks * 512 >= size {
        return Ok(Some((at, size)));
    }
    sys::next_data(opened.fd(), at, size)
}

fn read_one(
    files: &Files,
    file: u32,
    keys: &Keys,
    appender: &mut Appender<'_>,
    buffer: &mut Buffer,
    row: &mut Vec<u64>,
    control: &Control,
) -> Result<u64, Failed> {
    let opened = files.open_unchanged(file).map_err(Failed::File)?;
    let stamp = opened.status.stamp;
    let unit = keys.unit as u64;
    let chunk = (CHUNK / keys.unit).max(1) * keys.unit;
    let mut digest = Digest::default();
    let mut at = 0;
    row.clear();
    let mut row_start = 0;
    while let Some((low, high)) = data_from(&opened, at).map_err(Failed::File)? {
        let high = high.next_multiple_of(unit).min(stamp.size);
        let mut low = (low / unit * unit).max(at);
        if !row.is_empty() && low / unit != row_start + row.len() as u64 {
            emit(
                appender,
                file,
                &stamp,
                row_start,
                row,
                &mut digest,
                keys.zero,
            )?;
        }
        while low < high {
            let len = (chunk as u64).min(high - low) as usize;
            let bytes = buffer.lend(len);
            if sys::read_at(opened.fd(), bytes, low).map_err(Failed::File)? < len {
                return Err(Failed::File(io::Error::from_raw_os_error(libc::ESTALE)));
            }
            if row.is_empty() {
                row_start = low / unit;
            }
            keys.of(bytes, row);
            low += len as u64;
            if row.len() + chunk / keys.unit > PIECE {
                emit(
                    appender,
                    file,
                    &stamp,
                    row_start,
                    row,
                    &mut digest,
                    keys.zero,
                )?;
            }
            control.advance(len as u64);
            control.spend(len as u64)?;
        }
        at = high;
    }
    if !opened.is_unchanged() {
        return Err(Failed::File(io::Error::from_raw_os_error(libc::ESTALE)));
    }
    digest.add(row_start, row, keys.zero);
    appender
        .add(file, &stamp, row_start, row, true)
        .map_err(Failed::Store)?;
    Ok(digest.value())
}

fn emit(
    appender: &mut Appender<'_>,
    file: u32,
    stamp: &sys::Stamp,
    start: u64,
    row: &mut Vec<u64>,
    digest: &mut Digest,
    zero: u64,
) -> Result<(), Failed> {
    digest.add(start, row, zero);
    appender
        .add(file, stamp, start, row, false)
        .map_err(Failed::Store)?;
    row.clear();
    Ok(())
}
