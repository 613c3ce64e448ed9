//! `_native.one`: the `sdtree` crate, for Python.

use pyo3::prelude::*;

/// Adds the submodule `one` to `parent`.
pub fn register(parent: &Bound<'_, PyModule>) -> PyResult<()> {
    let m = PyModule::new(parent.py(), "one")?;
    parent.add_submodule(&m)
}
