//! `_native.baselines`: the `baselines` crate, for `pageone bench tree`. Only with the feature `bench`.

use ::baselines::{data, make, on_cpu, Peer, Rows, FLOORS, NAMES};
use numpy::{PyReadonlyArray1, PyReadwriteArray1};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Rows handed to a baseline at a time.
const BATCH: usize = 4096;

/// What one pass over all rows took and counted.
struct Pass {
    wall_ns: f64,
    cpu_ns: f64,
    counted: usize,
}

/// Gives the rows to `work` in batches, on `threads` threads; each takes the next batch when it is done.
fn pass(rows: usize, threads: usize, work: impl Fn(Range<usize>) -> usize + Sync) -> Pass {
    let next = AtomicUsize::new(0);
    let run = || {
        let cpu = on_cpu();
        let mut counted = 0;
        loop {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            if start >= rows {
                break (counted, on_cpu() - cpu);
            }
            counted += work(start..rows.min(start + BATCH));
        }
    };
    let start = Instant::now();
    let parts: Vec<(usize, f64)> = if threads == 1 {
        vec![run()]
    } else {
        std::thread::scope(|s| {
            let handles: Vec<_> = (0..threads).map(|_| s.spawn(run)).collect();
            handles
                .into_iter()
                .map(|h| h.join().unwrap_or((0, 0.0)))
                .collect()
        })
    };
    Pass {
        wall_ns: start.elapsed().as_nanos() as f64,
        cpu_ns: parts.iter().map(|p| p.1).sum(),
        counted: parts.iter().map(|p| p.0).sum(),
    }
}

/// The names of all baselines.
#[pyfunction]
fn names() -> Vec<&'static str> {
    NAMES.to_vec()
}

/// The names of the baselines that find nothing, but say what the machine can do.
#[pyfunction]
fn floors() -> Vec<&'static str> {
    FLOORS.to_vec()
}

/// The names of all families of pages.
#[pyfunction]
fn kinds() -> Vec<&'static str> {
    data::KINDS.to_vec()
}

/// Fills `rows`, rows of `size` bytes end to end, with members of a family, each `copies` times.
#[pyfunction]
fn fill(
    py: Python<'_>,
    kind: &str,
    mut rows: PyReadwriteArray1<'_, u8>,
    copies: usize,
    size: usize,
    seed: u64,
) -> PyResult<()> {
    let rows = rows
        .as_slice_mut()
        .map_err(|_| PyTypeError::new_err("rows must be C-contiguous"))?;
    if size == 0 || rows.len() % size != 0 {
        return Err(PyValueError::new_err("whole rows"));
    }
    if !py.detach(|| data::fill_all(kind, rows, copies, size, seed)) {
        return Err(PyValueError::new_err(format!(
            "no family {kind:?}; there are {}",
            data::KINDS.join(", ")
        )));
    }
    Ok(())
}

/// Measures one baseline, once: all `rows` inserted (or found), found again, `misses` looked for, all removed. Returns
/// `{operation: (wall ns, CPU ns, counted)}` a pass, `bytes`, `depth_mean`, `depth_max` where it has them.
#[pyfunction]
fn measure<'py>(
    py: Python<'py>,
    name: &str,
    rows: PyReadonlyArray1<'py, u8>,
    misses: PyReadonlyArray1<'py, u8>,
    size: usize,
    threads: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let bad = |_| PyTypeError::new_err("rows must be C-contiguous");
    let (rows, misses) = (
        rows.as_slice().map_err(bad)?,
        misses.as_slice().map_err(bad)?,
    );
    if size == 0 || rows.len() % size != 0 || misses.len() % size != 0 || threads == 0 {
        return Err(PyValueError::new_err("whole rows, and at least one thread"));
    }
    let (rows, misses) = (Rows { data: rows, size }, Rows { data: misses, size });
    let Some(peer) = py.detach(|| make(name, rows)) else {
        return Err(PyValueError::new_err(format!(
            "no baseline {name:?}; there are {}",
            NAMES.join(", ")
        )));
    };
    if threads > 1 && !peer.concurrent() {
        return Err(PyValueError::new_err(format!("{name} is for one thread")));
    }
    let n = rows.count();
    let result = PyDict::new(py);
    let put =
        |operation: &str, p: Pass| result.set_item(operation, (p.wall_ns, p.cpu_ns, p.counted));
    let peer: &dyn Peer = &*peer;
    put(
        "insert",
        py.detach(|| pass(n, threads, |range| peer.insert(range))),
    )?;
    let (bytes, depth) = py.detach(|| (peer.bytes(), peer.depth()));
    put(
        "hit",
        py.detach(|| pass(n, threads, |range| peer.find(rows, range))),
    )?;
    put(
        "miss",
        py.detach(|| pass(misses.count(), threads, |range| peer.find(misses, range))),
    )?;
    if py.detach(|| peer.remove(0..0)).is_some() {
        put(
            "remove",
            py.detach(|| pass(n, threads, |range| peer.remove(range).unwrap_or(0))),
        )?;
    }
    result.set_item("bytes", bytes)?;
    result.set_item("depth_mean", depth.map(|d| d.mean))?;
    result.set_item("depth_max", depth.map(|d| d.max))?;
    Ok(result)
}

/// Adds the submodule `baselines` to `parent`.
pub fn register(parent: &Bound<'_, PyModule>) -> PyResult<()> {
    let m = PyModule::new(parent.py(), "baselines")?;
    m.add_function(wrap_pyfunction!(names, &m)?)?;
    m.add_function(wrap_pyfunction!(floors, &m)?)?;
    m.add_function(wrap_pyfunction!(kinds, &m)?)?;
    m.add_function(wrap_pyfunction!(fill, &m)?)?;
    m.add_function(wrap_pyfunction!(measure, &m)?)?;
    parent.add_submodule(&m)
}
