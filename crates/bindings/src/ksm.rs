//! `_native.ksm`: the `ksmmodel` crate, for Python.

use ksmmodel::{Checksum, Config, Counts, PAGE_SIZE};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// KSM's algorithm over an array of pages.
#[pyclass(module = "pageone._native.ksm")]
struct Model {
    inner: ksmmodel::Model,
}

fn checksum_named(name: &str) -> PyResult<Checksum> {
    Checksum::from_name(name).ok_or_else(|| {
        let names: Vec<_> = Checksum::ALL.iter().map(|(name, _)| *name).collect();
        PyValueError::new_err(format!(
            "no checksum {name:?}: choose one of {}",
            names.join(", ")
        ))
    })
}

/// The bytes of an array of pages, shape (n, 4096), C order.
fn bytes_of<'a>(pages: &'a PyReadonlyArray2<'_, u8>) -> PyResult<&'a [u8]> {
    if pages.shape()[1] != PAGE_SIZE {
        return Err(PyValueError::new_err(format!(
            "pages have {PAGE_SIZE} bytes, not {}",
            pages.shape()[1]
        )));
    }
    pages
        .as_slice()
        .map_err(|_| PyValueError::new_err("pages must be contiguous, in C order"))
}

#[pymethods]
impl Model {
    #[new]
    fn new(
        pages: usize,
        checksum: &str,
        smart_scan: bool,
        use_zero_pages: bool,
        max_page_sharing: u32,
    ) -> PyResult<Self> {
        let config = Config {
            checksum: checksum_named(checksum)?,
            smart_scan,
            use_zero_pages,
            max_page_sharing,
        };
        let inner = ksmmodel::Model::new(pages, config).ok_or_else(|| {
            PyValueError::new_err("max_page_sharing must be 2 or more, and pages fewer than 2^32")
        })?;
        Ok(Model { inner })
    }

    /// (CPU-seconds, seconds, comparisons) of one scan.
    fn scan(
        &mut self,
        py: Python<'_>,
        pages: PyReadonlyArray2<'_, u8>,
        threads: usize,
    ) -> PyResult<(f64, f64, u64)> {
        let bytes = bytes_of(&pages)?;
        if bytes.len() != self.inner.pages() * PAGE_SIZE {
            return Err(PyValueError::new_err(format!(
                "the model has {} pages, the array {}",
                self.inner.pages(),
                bytes.len() / PAGE_SIZE
            )));
        }
        if threads == 0 {
            return Err(PyValueError::new_err("threads must be 1 or more"));
        }
        let model = &mut self.inner;
        let report = py.detach(|| model.scan(bytes, threads));
        Ok((report.cpu_s, report.wall_s, report.compared))
    }

    fn written(&mut self, py: Python<'_>, pages: PyReadonlyArray1<'_, u32>) -> PyResult<()> {
        let pages = pages
            .as_slice()
            .map_err(|_| PyValueError::new_err("page numbers must be contiguous"))?;
        if pages
            .iter()
            .any(|page| *page as usize >= self.inner.pages())
        {
            return Err(PyValueError::new_err(format!(
                "the model has pages 0 to {}",
                self.inner.pages() - 1
            )));
        }
        let model = &mut self.inner;
        py.detach(|| model.written(pages));
        Ok(())
    }

    /// (shared, sharing, unshared, volatile, zero, skipped, scans, chains, dups).
    fn counts(&self) -> [u64; 9] {
        let Counts {
            pages_shared,
            pages_sharing,
            pages_unshared,
            pages_volatile,
            ksm_zero_pages,
            pages_skipped,
            full_scans,
            stable_node_chains,
            stable_node_dups,
        } = self.inner.counts();
        [
            pages_shared,
            pages_sharing,
            pages_unshared,
            pages_volatile,
            ksm_zero_pages,
            pages_skipped,
            full_scans,
            stable_node_chains,
            stable_node_dups,
        ]
    }

    fn frames<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        self.inner.frames().into_pyarray(py)
    }

    fn metadata_bytes(&self) -> usize {
        self.inner.metadata_bytes()
    }
}

/// The checksum of each page, `uint32`.
#[pyfunction]
fn checksums<'py>(
    py: Python<'py>,
    name: &str,
    pages: PyReadonlyArray2<'py, u8>,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let checksum = checksum_named(name)?;
    let bytes = bytes_of(&pages)?;
    let sums: Vec<u32> = py.detach(|| {
        bytes
            .chunks_exact(PAGE_SIZE)
            .map(|page| checksum.of(page))
            .collect()
    });
    Ok(sums.into_pyarray(py))
}

/// Adds the submodule `ksm` to `parent`.
pub fn register(parent: &Bound<'_, PyModule>) -> PyResult<()> {
    let m = PyModule::new(parent.py(), "ksm")?;
    m.add_class::<Model>()?;
    m.add_function(wrap_pyfunction!(checksums, &m)?)?;
    parent.add_submodule(&m)
}
