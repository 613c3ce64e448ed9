//! Where the objects of a tree are: copied into the tree, of one length or of any, or left where they lie.

use crate::arena::Arena;
use crate::primitive::{AtomicPtr, AtomicU32, Ordering, Zeroed};
use std::alloc::{alloc, dealloc, handle_alloc_error, Layout};
use std::marker::PhantomData;

/// The largest object, in bytes: bit positions have 29 bits.
pub const MAX_OBJECT: usize = (1 << 26) - 64;

mod sealed {
    /// Keeps [`super::Store`] to the stores of this crate.
    pub trait Sealed {}
    impl Sealed for super::Fixed {}
    impl Sealed for super::Variable {}
    impl Sealed for super::Rows<'_> {}
}

/// Where objects are: [`Fixed`], [`Variable`] or [`Rows`]. Its functions are the tree's.
///
/// Ids are handed out by the tree; an id that is handed out belongs to one caller until it is in the tree, and is not
/// placed again before nobody can read it.
///
/// ```compile_fail,E0133
/// use sdtree::{Fixed, Store};
/// Fixed::new(8).place(0, b"short"); // unsafe: only the tree knows whose an id is
/// ```
pub trait Store: sealed::Sealed + Send + Sync {
    /// Whether lengths may differ, so that the length is a part of the key.
    const VARIABLE: bool;
    /// Whether `place` copies.
    const COPIES: bool;
    /// Whether objects of so many bytes may be placed.
    fn fits(&self, len: usize) -> bool;
    /// What is wrong with an object that does not fit.
    fn misfit(&self, len: usize) -> String;
    /// Puts an object in the place of `id`; returns where it is now. From then on `bytes` returns it, until `release`.
    ///
    /// # Safety
    /// `bytes` must be readable and fit, and `id` be the caller's alone: not placed, or released since.
    unsafe fn place(&self, id: u32, bytes: *const [u8]) -> *const [u8];
    /// The object `id`.
    ///
    /// # Safety
    /// `id` must have been placed and not been released since.
    unsafe fn bytes(&self, id: u32) -> &[u8];
    /// Brings what `bytes` reads to find object `id` to the caches.
    ///
    /// # Safety
    /// `id` must have been placed, at any time.
    unsafe fn prefetch_record(&self, _id: u32) {}
    /// Object `id` is read by nobody any more.
    ///
    /// # Safety
    /// `id` must have been placed and not been released since, and nobody may hold its bytes.
    unsafe fn release(&self, id: u32);
    /// Bytes allocated to find objects by id.
    fn index_bytes(&self) -> usize;
    /// Bytes allocated for the objects themselves.
    fn object_bytes(&self) -> usize;
}

// SAFETY: a byte.
unsafe impl Zeroed for u8 {
    fn zeroed() -> Self {
        0
    }
}

// SAFETY: an atomic pointer; zeros are null.
unsafe impl Zeroed for AtomicPtr<u8> {
    fn zeroed() -> Self {
        AtomicPtr::new(std::ptr::null_mut())
    }
}

/// Copies of objects of one length, side by side.
pub struct Fixed {
    size: usize,
    data: Arena<u8>,
}

impl std::fmt::Debug for Fixed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fixed")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Fixed {
    /// For objects of `size` bytes.
    ///
    /// # Panics
    /// If `size` is larger than [`MAX_OBJECT`].
    pub fn new(size: usize) -> Self {
        assert!(size <= MAX_OBJECT, "{}", too_long(size));
        Fixed {
            size,
            data: Arena::new(size),
        }
    }
}

fn too_long(len: usize) -> String {
    format!("an object of {len} bytes; at most {MAX_OBJECT}")
}

fn of_another_length(len: usize, size: usize) -> String {
    format!("an object of {len} bytes in a tree of {size}")
}

impl Store for Fixed {
    const VARIABLE: bool = false;
    const COPIES: bool = true;

    #[inline]
    fn fits(&self, len: usize) -> bool {
        len == self.size
    }

    fn misfit(&self, len: usize) -> String {
        of_another_length(len, self.size)
    }

    unsafe fn place(&self, id: u32, bytes: *const [u8]) -> *const [u8] {
        let to = self.data.reserve(id);
        // SAFETY: reserved in the line above: `size` bytes, nobody else's (given), and so many can be read (given).
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.cast::<u8>(), to, self.size);
            std::ptr::slice_from_raw_parts(to, self.size)
        }
    }

    #[inline]
    unsafe fn bytes(&self, id: u32) -> &[u8] {
        // SAFETY: placed (given), so that it is reserved and initialised, and nobody writes there.
        unsafe { std::slice::from_raw_parts(self.data.ptr(id), self.size) }
    }

    unsafe fn release(&self, _id: u32) {}

    fn index_bytes(&self) -> usize {
        0
    }

    fn object_bytes(&self) -> usize {
        self.data.bytes()
    }
}

/// Copies of objects of any length, each an allocation of its own: its length in four bytes, then the bytes.
pub struct Variable {
    blobs: Arena<AtomicPtr<u8>>,
    bytes: crate::primitive::AtomicUsize,
}

/// Bytes in front of a blob.
const HEADER: usize = 4;

fn blob_layout(len: usize) -> Layout {
    Layout::from_size_align(HEADER + len, 4).expect("a length below MAX_OBJECT")
}

impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Variable").finish_non_exhaustive()
    }
}

impl Variable {
    /// For objects of up to [`MAX_OBJECT`] bytes.
    pub fn new() -> Self {
        Variable {
            blobs: Arena::new(1),
            bytes: crate::primitive::AtomicUsize::new(0),
        }
    }
}

impl Default for Variable {
    fn default() -> Self {
        Variable::new()
    }
}

impl Store for Variable {
    const VARIABLE: bool = true;
    const COPIES: bool = true;

    #[inline]
    fn fits(&self, len: usize) -> bool {
        len <= MAX_OBJECT
    }

    fn misfit(&self, len: usize) -> String {
        too_long(len)
    }

    unsafe fn place(&self, id: u32, bytes: *const [u8]) -> *const [u8] {
        let len = bytes.len();
        self.blobs.reserve(id);
        self.bytes.fetch_add(len, Ordering::Relaxed);
        let layout = blob_layout(len);
        // SAFETY: the layout is at least HEADER long; the blob has room for the header and `len` bytes, and so many can be
        // read (given).
        unsafe {
            let blob = alloc(layout);
            if blob.is_null() {
                handle_alloc_error(layout);
            }
            blob.cast::<u32>().write(len as u32);
            std::ptr::copy_nonoverlapping(bytes.cast::<u8>(), blob.add(HEADER), len);
            // The edge that makes the id known is published with Release.
            self.blobs.get(id).store(blob, Ordering::Release);
            std::ptr::slice_from_raw_parts(blob.add(HEADER), len)
        }
    }

    #[inline]
    unsafe fn bytes(&self, id: u32) -> &[u8] {
        // SAFETY: placed and not released (given): a whole blob.
        unsafe {
            let blob = self.blobs.get(id).load(Ordering::Acquire);
            std::slice::from_raw_parts(blob.add(HEADER), blob.cast::<u32>().read() as usize)
        }
    }

    #[inline]
    unsafe fn prefetch_record(&self, id: u32) {
        // SAFETY: placed (given), so that it is reserved.
        crate::prefetch::prefetch(unsafe { self.blobs.ptr(id) });
    }

    unsafe fn release(&self, id: u32) {
        // SAFETY: placed (given), so that it is reserved; what was placed there is read by nobody (given), and was made
        // with this layout.
        unsafe {
            let blob = self
                .blobs
                .get(id)
                .swap(std::ptr::null_mut(), Ordering::AcqRel);
            if !blob.is_null() {
                let len = blob.cast::<u32>().read() as usize;
                self.bytes.fetch_sub(len, Ordering::Relaxed);
                dealloc(blob, blob_layout(len));
            }
        }
    }

    fn index_bytes(&self) -> usize {
        self.blobs.bytes()
    }

    fn object_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Variable {
    fn drop(&mut self) {
        self.blobs.for_each(|p| {
            let blob = p.load(Ordering::Relaxed);
            if !blob.is_null() {
                // SAFETY: made by `place` with this layout; `&mut self` says that nobody else is here.
                unsafe { dealloc(blob, blob_layout(blob.cast::<u32>().read() as usize)) };
            }
        });
    }
}

/// Objects that stay where they lie: rows of one length, end to end, known by their row number.
pub struct Rows<'a> {
    base: *const u8,
    size: usize,
    /// How many there are.
    count: usize,
    rows: Arena<AtomicU32>,
    life: PhantomData<&'a [u8]>,
}

// SAFETY: `base` is shared, immutable memory for 'a; the rest is atomics.
unsafe impl Send for Rows<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rows<'_> {}

impl std::fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows")
            .field("size", &self.size)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl<'a> Rows<'a> {
    /// For the rows of `size` bytes in `data`.
    ///
    /// # Panics
    /// If `size` is 0 or larger than [`MAX_OBJECT`], or there are more rows than 2^32.
    pub fn new(data: &'a [u8], size: usize) -> Self {
        assert!(size > 0, "rows of no bytes");
        assert!(size <= MAX_OBJECT, "{}", too_long(size));
        let count = data.len() / size;
        assert!(count as u64 <= 1 << 32, "more than 2^32 rows");
        Rows {
            base: data.as_ptr(),
            size,
            count,
            rows: Arena::new(1),
            life: PhantomData,
        }
    }

    /// The row of object `id`.
    ///
    /// # Safety
    /// `id` must have been placed, at any time.
    pub(crate) unsafe fn row(&self, id: u32) -> u32 {
        // SAFETY: placed (given), so that it is reserved.
        unsafe { self.rows.get(id) }.load(Ordering::Relaxed)
    }
}

impl Store for Rows<'_> {
    const VARIABLE: bool = false;
    const COPIES: bool = false;

    #[inline]
    fn fits(&self, len: usize) -> bool {
        len == self.size
    }

    fn misfit(&self, len: usize) -> String {
        of_another_length(len, self.size)
    }

    /// # Panics
    /// If `bytes` is not one of the rows.
    #[inline]
    unsafe fn place(&self, id: u32, bytes: *const [u8]) -> *const [u8] {
        let at = (bytes.cast::<u8>().addr()).wrapping_sub(self.base.addr());
        // Most sizes are powers of two, and a division takes as long as the rest of this.
        let row = if self.size.is_power_of_two() {
            at >> self.size.trailing_zeros()
        } else {
            at / self.size
        };
        let is_row = row < self.count && row * self.size == at;
        assert!(is_row, "an object that is none of the tree's rows");
        // SAFETY: reserved by this very call.
        unsafe { &*self.rows.reserve(id) }.store(row as u32, Ordering::Relaxed);
        bytes
    }

    #[inline]
    unsafe fn bytes(&self, id: u32) -> &[u8] {
        // SAFETY: the row was placed (given), so it is one of those in the data, which is borrowed for as long as this lives.
        unsafe {
            std::slice::from_raw_parts(self.base.add(self.row(id) as usize * self.size), self.size)
        }
    }

    #[inline]
    unsafe fn prefetch_record(&self, id: u32) {
        // SAFETY: placed (given), so that it is reserved.
        crate::prefetch::prefetch(unsafe { self.rows.ptr(id) });
    }

    unsafe fn release(&self, _id: u32) {}

    fn index_bytes(&self) -> usize {
        self.rows.bytes()
    }

    fn object_bytes(&self) -> usize {
        0
    }
}
