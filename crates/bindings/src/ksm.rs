//! `_native.ksm`: the `ksmmodel` crate, for Python.

use pyo3::prelude::*;

/// Adds the submodule `ksm` to `parent`.
pub fn register(parent: &Bound<'_, PyModule>) -> PyResult<()> {
    let m = PyModule::new(parent.py(), "ksm")?;
    parent.add_submodule(&m)
}
