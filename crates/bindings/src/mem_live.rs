//! `_native.mem`, the live side: what is asked of running processes beside their pages.

use std::sync::{Mutex, PoisonError};

use pagemem::processes;
use pagemem::sys::Maps;
use pyo3::prelude::*;

use crate::os_error;

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
            let mut maps = processes::through_a_thread(pid, Maps::open, Maps::has_memory)?;
            // What a look that panicked has left is a cache, and at worst empty.
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.behind(pid, &mut maps)
        })
        .map_err(os_error)
    }
}

/// bare_stops(pid, times, apart_s) -> seconds
#[cfg(feature = "bench")]
#[pyfunction]
fn bare_stops(py: Python<'_>, pid: i32, times: usize, apart_s: f64) -> PyResult<Vec<f64>> {
    let apart = crate::mem_guard::seconds(apart_s, "apart_s")?;
    let stops = py
        .detach(move || pagemem::ptrace::bare_stops(pid, times, apart))
        .map_err(os_error)?;
    Ok(stops.iter().map(std::time::Duration::as_secs_f64).collect())
}

/// Adds the live side to the submodule `mem`.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Kinds>()?;
    #[cfg(feature = "bench")]
    m.add_function(wrap_pyfunction!(bare_stops, m)?)?;
    Ok(())
}
