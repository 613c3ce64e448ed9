//! `pageone._native`: PyO3 glue. Arrays in, arrays out, errors mapped; no logic lives here.
//!
//! One submodule a core crate: `one` (sdtree), `mem` (pagemem), `duplicates`, `files`, `queue`
//! (crossbeam); with the feature
//! `bench` also `baselines`, and `ksm` (ksmmodel).
//! Every call that may take longer than a few microseconds releases the GIL.

use std::io;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

#[cfg(feature = "bench")]
mod baselines;
mod duplicates;
mod files;
#[cfg(feature = "bench")]
mod ksm;
mod mem;
mod mem_guard;
mod mem_live;
mod mem_read;
mod one;
mod queue;

/// The `OSError` with its number, so that Python can tell one from another: PyO3's own conversion keeps only the text.
pub(crate) fn os_error(error: io::Error) -> PyErr {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => {
            let what = text.trim_end_matches(&format!(" (os error {number})"));
            PyOSError::new_err((number, what.to_owned()))
        }
        None => error.into(),
    }
}

/// Two arrays that belong together are of one length.
pub(crate) fn same_length(a: usize, b: usize, what: &str) -> PyResult<()> {
    if a == b {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "{what} must be of one length, got {a} and {b}"
    )))
}

#[pymodule]
mod _native {
    use super::*;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        m.add("__version__", env!("CARGO_PKG_VERSION"))?;
        one::register(m)?;
        mem::register(m)?;
        duplicates::register(m)?;
        files::register(m)?;
        queue::register(m)?;
        #[cfg(feature = "bench")]
        {
            baselines::register(m)?;
            ksm::register(m)?;
        }
        Ok(())
    }
}
