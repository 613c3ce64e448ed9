//! `_native.duplicates`: the `duplicates` crate, for Python.

use std::ops::Deref;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64};

use duplicates::{Columns, Place, Target};
use numpy::{IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;

/// Places of removed contents that the tree may leave unused, and of contents told apart by their bytes.
const SLACK: usize = 1 << 20;
/// The error number of a failed read that has none of its own.
const EIO: i32 = 5;

/// A numpy array of zeros, whose elements threads of this crate change atomically without the GIL.
struct Column<T: numpy::Element> {
    array: Py<PyArray1<T>>,
    data: *const T,
    len: usize,
}

// SAFETY: the array is C-contiguous, never resized (nobody else owns it when it is made, and numpy refuses to resize what
// is referred to), and lives as long as `array`; its elements are integers that are changed atomically.
unsafe impl<T: numpy::Element + Send> Send for Column<T> {}
// SAFETY: as above.
unsafe impl<T: numpy::Element + Sync> Sync for Column<T> {}

impl<T: numpy::Element> Column<T> {
    fn zeros(py: Python<'_>, len: usize) -> Self {
        let array = PyArray1::<T>::zeros(py, len, false);
        Column {
            data: array.data(),
            array: array.unbind(),
            len,
        }
    }
}

/// An atomic integer with the layout of `T`.
trait Atomic: numpy::Element {
    type Of;
}
impl Atomic for u32 {
    type Of = AtomicU32;
}
impl Atomic for u64 {
    type Of = AtomicU64;
}

impl<T: Atomic> Deref for Column<T> {
    type Target = [T::Of];

    fn deref(&self) -> &[T::Of] {
        // SAFETY: `len` elements from `data` on, kept by `array`; atomics have the size of their integers, and numpy
        // aligns its arrays by more than that. Python's threads read and write aligned words, too.
        unsafe { std::slice::from_raw_parts(self.data.cast(), self.len) }
    }
}

/// One target: (is a process, PID or descriptor, start, first).
type TargetTuple<'py> = (
    bool,
    i32,
    PyReadonlyArray1<'py, u64>,
    PyReadonlyArray1<'py, i64>,
);
type Array<'py, T> = Bound<'py, PyArray1<T>>;
/// Doubtful pages: (page, id, key); shared pages: (page, pagemap entry); error number or 0.
type Outcome<'py> = (
    (Array<'py, u32>, Array<'py, u32>, Array<'py, u64>),
    (Array<'py, u32>, Array<'py, u64>),
    i32,
);

/// One field of each of `rows`, as an array.
fn column<'py, R, T: numpy::Element>(
    py: Python<'py>,
    rows: &[R],
    field: impl Fn(&R) -> T,
) -> Array<'py, T> {
    rows.iter().map(field).collect::<Vec<_>>().into_pyarray(py)
}

/// The count of equal pages; see `pageone.scan.duplicates`.
#[pyclass(frozen, module = "pageone._native.duplicates")]
struct DuplicateCount {
    inner: duplicates::DuplicateCount,
    ids: Column<u32>,
    extra: Column<u32>,
    representative: Column<u32>,
    keys: Option<Column<u64>>,
}

#[pymethods]
impl DuplicateCount {
    #[new]
    fn new(
        py: Python<'_>,
        targets: Vec<TargetTuple<'_>>,
        page_size: usize,
        seed: &[u8],
        mask: u64,
        remember: bool,
    ) -> PyResult<Self> {
        if page_size == 0 {
            return Err(PyValueError::new_err("page_size must not be 0"));
        }
        let mut list = Vec::with_capacity(targets.len());
        for (is_process, id, start, first) in &targets {
            let (start, first) = (start.as_slice()?, first.as_slice()?);
            if first.len() != start.len() + 1 || first[0] != 0 || !first.is_sorted() {
                return Err(PyValueError::new_err(
                    "first must ascend from 0 and have one element more than start",
                ));
            }
            if *is_process && page_size != pagemem::pagemap::PAGE_SIZE as usize {
                return Err(PyValueError::new_err(
                    "page_size must be 4096 for a process",
                ));
            }
            list.push(Target {
                place: if *is_process {
                    Place::Process(*id)
                } else {
                    Place::File(*id as RawFd)
                },
                start: start.to_vec(),
                first: first.iter().map(|&first| first as u64).collect(),
            });
        }
        let inner = duplicates::DuplicateCount::new(list, page_size, seed, mask);
        let pages = inner.pages() as usize;
        if pages > (u32::MAX - 2) as usize - SLACK {
            return Err(PyValueError::new_err("more pages than can be numbered"));
        }
        Ok(DuplicateCount {
            inner,
            ids: Column::zeros(py, pages),
            extra: Column::zeros(py, pages + SLACK),
            representative: Column::zeros(py, pages + SLACK),
            keys: remember.then(|| Column::zeros(py, pages)),
        })
    }

    /// count(target, low, high) -> ((page, id, key), (shared page, entry), error)
    fn count<'py>(
        &self,
        py: Python<'py>,
        target: usize,
        low: u64,
        high: u64,
    ) -> PyResult<Outcome<'py>> {
        if low > high || high > self.inner.pages_of(target).unwrap_or(0) {
            return Err(PyValueError::new_err("no such pages"));
        }
        let counted = py
            .detach(|| {
                let columns = Columns {
                    ids: &self.ids,
                    extra: &self.extra,
                    representative: &self.representative,
                    keys: self.keys.as_deref(),
                };
                self.inner.count(&columns, target, low..high)
            })
            .map_err(|full| PyMemoryError::new_err(full.to_string()))?;
        let (doubts, shared) = (&counted.doubts, &counted.shared);
        let error = counted
            .stopped
            .map_or(0, |error| error.raw_os_error().unwrap_or(EIO));
        Ok((
            (
                column(py, doubts, |doubt| doubt.page),
                column(py, doubts, |doubt| doubt.id),
                column(py, doubts, |doubt| doubt.key),
            ),
            (
                column(py, shared, |&(page, _)| page),
                column(py, shared, |&(_, entry)| entry),
            ),
            error,
        ))
    }

    /// add(ids): one more page of each content
    fn add(&self, ids: PyReadonlyArray1<'_, u32>) -> PyResult<()> {
        for &id in ids.as_slice()? {
            let slot = self.extra.get(id as usize);
            let slot = slot.ok_or_else(|| PyValueError::new_err("no such content"))?;
            slot.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
    }

    #[getter]
    fn ids(&self, py: Python<'_>) -> Py<PyArray1<u32>> {
        self.ids.array.clone_ref(py)
    }

    #[getter]
    fn extra(&self, py: Python<'_>) -> Py<PyArray1<u32>> {
        self.extra.array.clone_ref(py)
    }

    #[getter]
    fn representative(&self, py: Python<'_>) -> Py<PyArray1<u32>> {
        self.representative.array.clone_ref(py)
    }

    #[getter]
    fn keys(&self, py: Python<'_>) -> Option<Py<PyArray1<u64>>> {
        self.keys.as_ref().map(|keys| keys.array.clone_ref(py))
    }
}

/// Adds the submodule `duplicates` to `parent`.
pub fn register(parent: &Bound<'_, PyModule>) -> PyResult<()> {
    let m = PyModule::new(parent.py(), "duplicates")?;
    m.add_class::<DuplicateCount>()?;
    parent.add_submodule(&m)
}
