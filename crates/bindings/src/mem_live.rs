//! `_native.mem`, the live side: the pool of frames and the guardian's main loop.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::os_error;

/// The pool of frames, as the engine that made it sees it.
#[pyclass(frozen, module = "pageone._native.mem")]
pub struct Pool {
    inner: Arc<pagemem::pool::Pool>,
}

#[pymethods]
impl Pool {
    #[new]
    fn new(frames: u32) -> PyResult<Self> {
        Ok(Self {
            inner: Arc::new(pagemem::pool::Pool::create(frames).map_err(os_error)?),
        })
    }

    /// Descriptor of the pool; it stays the pool's.
    fn fileno(&self) -> i32 {
        self.inner.as_raw_fd()
    }

    #[getter]
    fn frames(&self) -> u32 {
        self.inner.frames()
    }

    #[getter]
    fn inode(&self) -> u64 {
        self.inner.file().inode
    }

    /// Device of the pool's inode, encoded as `maps` tells devices.
    #[getter]
    fn device(&self) -> u64 {
        self.inner.file().device
    }

    fn fill<'py>(
        &self,
        py: Python<'py>,
        pid: i32,
        addr: PyReadonlyArray1<'py, u64>,
        frame: PyReadonlyArray1<'py, u32>,
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let (addr, frame) = (addr.as_slice()?.to_vec(), frame.as_slice()?.to_vec());
        if addr.len() != frame.len() || frame.iter().any(|f| *f >= self.inner.frames()) {
            return Err(PyValueError::new_err(
                "addr and frame must have one length, frames must be in the pool",
            ));
        }
        let pool = Arc::clone(&self.inner);
        let ok = py.detach(move || {
            let mut ok = vec![0u8; addr.len()];
            pool.fill(pid, &addr, &frame, &mut ok);
            ok
        });
        Ok(PyArray1::from_vec(py, ok))
    }

    fn punch(&self, py: Python<'_>, first: u32, count: u32) -> PyResult<()> {
        if first
            .checked_add(count)
            .is_none_or(|e| e > self.inner.frames())
        {
            return Err(PyValueError::new_err("frames must be in the pool"));
        }
        let pool = Arc::clone(&self.inner);
        py.detach(move || pool.punch(first, count))
            .map_err(os_error)
    }
}

/// Tells what lets the memory of a process be written behind its page tables, asked again and again.
#[pyclass(frozen, module = "pageone._native.mem")]
#[derive(Default)]
pub struct Kinds {
    inner: Mutex<pagemem::kinds::Kinds>,
}

#[pymethods]
impl Kinds {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn behind(&self, py: Python<'_>, pid: i32) -> PyResult<Option<String>> {
        py.detach(|| {
            let mut maps = pagemem::sys::Maps::open(pagemem::sys::memory_tid(pid))?;
            // What a look that panicked has left is a cache, and at worst empty.
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.behind(pid, &mut maps)
        })
        .map_err(os_error)
    }
}

/// Runs the guardian over the two inherited descriptors until its work is done.
#[pyfunction]
fn guardian(py: Python<'_>, control: i32, pool: i32) -> PyResult<()> {
    if control < 0 || pool < 0 {
        return Err(PyValueError::new_err("descriptors must be open"));
    }
    // SAFETY: the caller vouches that both descriptors are open for the length of this call; they are only borrowed to be
    // duplicated.
    let (control, pool) = unsafe {
        (
            BorrowedFd::borrow_raw(control),
            BorrowedFd::borrow_raw(pool),
        )
    };
    let duplicate = |fd: BorrowedFd| fd.try_clone_to_owned().map_err(os_error);
    let (control, pool) = (duplicate(control)?, duplicate(pool)?);
    py.detach(move || pagemem::guard::run(control, pool))
        .map_err(os_error)
}

/// bare_stops(pid, times, apart_s) -> seconds
#[pyfunction]
fn bare_stops(py: Python<'_>, pid: i32, times: usize, apart_s: f64) -> PyResult<Vec<f64>> {
    let apart = Duration::try_from_secs_f64(apart_s)
        .map_err(|_| PyValueError::new_err("apart_s must be a time"))?;
    let stops = py
        .detach(move || pagemem::ptrace::bare_stops(pid, times, apart))
        .map_err(os_error)?;
    Ok(stops.iter().map(Duration::as_secs_f64).collect())
}

/// Adds the live side to the submodule `mem`.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Pool>()?;
    m.add_class::<Kinds>()?;
    m.add_function(wrap_pyfunction!(bare_stops, m)?)?;
    m.add_function(wrap_pyfunction!(guardian, m)?)
}
