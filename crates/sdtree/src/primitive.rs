//! The atomics that everything shared is made of: those of `std`, or of `loom` when a model is checked, so that
//! the code that is checked is the code that runs.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{
    fence, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicU8, AtomicUsize, Ordering,
};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{
    fence, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicU8, AtomicUsize, Ordering,
};

/// A value that memory of zeros is a valid instance of (outside of loom models, which build them one by one).
///
/// # Safety
/// All-zero bytes must be a valid value, and dropping one must do nothing.
pub(crate) unsafe trait Zeroed: Sized {
    /// The value that memory of zeros has.
    #[cfg_attr(not(loom), allow(dead_code))]
    fn zeroed() -> Self;
}

// SAFETY: an atomic integer has the layout of its integer and no drop glue.
unsafe impl Zeroed for AtomicU64 {
    fn zeroed() -> Self {
        AtomicU64::new(0)
    }
}

// SAFETY: as above.
unsafe impl Zeroed for AtomicU32 {
    fn zeroed() -> Self {
        AtomicU32::new(0)
    }
}

// SAFETY: as above.
unsafe impl Zeroed for AtomicU8 {
    fn zeroed() -> Self {
        AtomicU8::new(0)
    }
}

/// Allocates `n` zeroed values; the system provides the memory lazily where it can.
pub(crate) fn zeroed_box<T: Zeroed>(n: usize) -> Box<[T]> {
    #[cfg(loom)]
    {
        (0..n).map(|_| T::zeroed()).collect()
    }
    #[cfg(not(loom))]
    {
        let layout = std::alloc::Layout::array::<T>(n).expect("a size that fits the address space");
        if layout.size() == 0 {
            return Vec::new().into_boxed_slice();
        }
        // SAFETY: the layout is not empty; zeros are valid values of T (`Zeroed`); the box frees with the same
        // layout.
        unsafe {
            let p = std::alloc::alloc_zeroed(layout);
            if p.is_null() {
                std::alloc::handle_alloc_error(layout);
            }
            Box::from_raw(std::ptr::slice_from_raw_parts_mut(p.cast::<T>(), n))
        }
    }
}
