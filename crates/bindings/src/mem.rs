//! `_native.mem`: the `pagemem` crate, for Python.

use pyo3::prelude::*;

/// Adds the submodule `mem` to `parent`.
pub fn register(parent: &Bound<'_, PyModule>) -> PyResult<()> {
    let m = PyModule::new(parent.py(), "mem")?;
    crate::mem_read::register(&m)?;
    crate::mem_live::register(&m)?;
    crate::mem_guard::register(&m)?;
    parent.add_submodule(&m)
}
