//! Chunks that fit the second-level cache: scratch to read one into, and threads that work on many.
//!
//! Used by [`super::keys`], [`mod@super::compare`] and [`super::own`]; the buffer by whoever reads pages in bulk.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use super::PAGE;

/// Bytes read before their keys are computed: half of a common second-level cache.
pub const CHUNK_BYTES: usize = 256 << 10;

/// A buffer that begins on a page boundary, to read into.
///
/// The alignment is what makes reading cheap: on Zen 3 the kernel's copy (`rep movsb`) of a page to 16 bytes behind a
/// page boundary, which is where `malloc` puts large blocks, takes four times as long as to any other place (2.5 µs
/// against 0.65, measured).
#[derive(Debug, Default)]
pub struct PageBuffer(Vec<u8>);

impl PageBuffer {
    /// An empty buffer.
    pub const fn new() -> PageBuffer {
        PageBuffer(Vec::new())
    }

    /// `len` bytes from a page boundary on; what they hold is not defined. It grows as needed and never shrinks.
    pub fn lend(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len + PAGE {
            self.0 = vec![0; len + PAGE];
        }
        let aligned = self.0.as_ptr().align_offset(PAGE);
        &mut self.0[aligned..aligned + len]
    }
}

thread_local! {
    /// Scratch for a chunk, kept between calls: fresh memory would cost a page fault for each page read.
    static SCRATCH: RefCell<PageBuffer> = const { RefCell::new(PageBuffer::new()) };
}

pub(super) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| f(scratch.lend(len)))
}

/// Runs `work` on every item, from `threads` threads that take the next item when they are done with one. The first
/// error ends it. One thread means the calling one.
pub(super) fn each<T: Send>(
    items: Vec<T>,
    threads: usize,
    work: impl Fn(T) -> io::Result<()> + Sync,
) -> io::Result<()> {
    if threads <= 1 || items.len() <= 1 {
        return items.into_iter().try_for_each(work);
    }
    let workers = threads.min(items.len());
    let items: Vec<Mutex<Option<T>>> = items
        .into_iter()
        .map(|item| Mutex::new(Some(item)))
        .collect();
    let next = AtomicUsize::new(0);
    let run = || -> io::Result<()> {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(item) = item
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .take()
            {
                if let Err(error) = work(item) {
                    next.store(items.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(run)).collect();
        let mut outcome = run();
        for other in others {
            let ended = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome = outcome.and(ended);
        }
        outcome
    })
}

pub(super) fn chunk_pages(page_size: usize) -> usize {
    (CHUNK_BYTES / page_size).max(1)
}
