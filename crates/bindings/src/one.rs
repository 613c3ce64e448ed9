//! `_native.one`: the `sdtree` crate, for Python.

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::{PyMemoryError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The statistics of a tree as a dictionary.
fn stats_dict<'py>(py: Python<'py>, stats: &sdtree::Stats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("objects", stats.objects)?;
    dict.set_item("id_bound", stats.id_bound)?;
    dict.set_item("index_bytes", stats.index_bytes)?;
    dict.set_item("object_bytes", stats.object_bytes)?;
    dict.set_item(
        "bytes_per_object",
        if stats.objects == 0 {
            0.0
        } else {
            stats.index_bytes as f64 / stats.objects as f64
        },
    )?;
    dict.set_item("depth_mean", stats.shape.depth_mean)?;
    dict.set_item("depth_max", stats.shape.depth_max)?;
    dict.set_item("table_bits", stats.shape.table_bits)?;
    Ok(dict)
}

fn full(error: sdtree::Full) -> PyErr {
    PyMemoryError::new_err(error.to_string())
}

/// The elements of a one-dimensional, C-contiguous uint64 array.
fn keys_of<'a, 'py>(keys: &'a PyReadonlyArray1<'py, u64>) -> PyResult<&'a [u64]> {
    keys.as_slice().map_err(|_| {
        PyTypeError::new_err("keys must be a C-contiguous, one-dimensional array of uint64")
    })
}

/// An array of `n` zeros and its elements, to be filled before Python sees it.
fn output<'py, T: numpy::Element>(py: Python<'py>, n: usize) -> Bound<'py, PyArray1<T>> {
    PyArray1::zeros(py, n, false)
}

/// A set of uint64 keys with dense ids; see `pageone.one.KeyTree`.
#[pyclass(frozen, module = "pageone._native.one")]
struct KeyTree {
    tree: sdtree::KeyTree,
}

/// `(ids, is_new)`.
type Interned<'py> = (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<bool>>);

#[pymethods]
impl KeyTree {
    #[new]
    fn new(capacity: usize, seed: &[u8]) -> Self {
        KeyTree {
            tree: sdtree::KeyTree::new(capacity, seed),
        }
    }

    fn intern<'py>(
        &self,
        py: Python<'py>,
        keys: PyReadonlyArray1<'py, u64>,
    ) -> PyResult<Interned<'py>> {
        let keys = keys_of(&keys)?;
        let (ids, new) = (
            output::<u32>(py, keys.len()),
            output::<bool>(py, keys.len()),
        );
        {
            let (mut ids, mut new) = (ids.readwrite(), new.readwrite());
            let (ids, new) = (ids.as_slice_mut()?, new.as_slice_mut()?);
            py.detach(|| self.tree.intern(keys, ids, new))
                .map_err(full)?;
        }
        Ok((ids, new))
    }

    fn find<'py>(
        &self,
        py: Python<'py>,
        keys: PyReadonlyArray1<'py, u64>,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let keys = keys_of(&keys)?;
        let ids = output::<i64>(py, keys.len());
        {
            let mut ids = ids.readwrite();
            let ids = ids.as_slice_mut()?;
            py.detach(|| self.tree.find(keys, ids));
        }
        Ok(ids)
    }

    fn remove<'py>(
        &self,
        py: Python<'py>,
        keys: PyReadonlyArray1<'py, u64>,
    ) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let keys = keys_of(&keys)?;
        let removed = output::<bool>(py, keys.len());
        {
            let mut removed = removed.readwrite();
            let removed = removed.as_slice_mut()?;
            py.detach(|| self.tree.remove(keys, removed));
        }
        Ok(removed)
    }

    fn items<'py>(
        &self,
        py: Python<'py>,
    ) -> (Bound<'py, PyArray1<u64>>, Bound<'py, PyArray1<u32>>) {
        let (keys, ids): (Vec<u64>, Vec<u32>) = py.detach(|| self.tree.items().into_iter().unzip());
        (PyArray1::from_vec(py, keys), PyArray1::from_vec(py, ids))
    }

    fn __len__(&self) -> usize {
        self.tree.len()
    }

    #[getter]
    fn id_bound(&self) -> usize {
        self.tree.id_bound()
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = py.detach(|| self.tree.stats());
        stats_dict(py, &stats)
    }
}

/// Adds the submodule `one` to `parent`.
pub fn register(parent: &Bound<'_, PyModule>) -> PyResult<()> {
    let m = PyModule::new(parent.py(), "one")?;
    m.add_class::<KeyTree>()?;
    parent.add_submodule(&m)
}
