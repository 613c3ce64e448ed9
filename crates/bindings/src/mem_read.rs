//! The read side of `_native.mem`: maps, pagemap, reads and keys of pages. Nothing here changes a process, but for
//! `pagemap_scan` with `SCAN_WP_MATCHING`.

use std::io;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadwriteArray1};
use pagemem::hold;
use pagemem::maps::{self, Maps};
use pagemem::pagemap::{self, Found, Query};
use pagemem::read::{self, AddressSpace, Source};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::{os_error, same_length};

type Array<'py, T> = Bound<'py, PyArray1<T>>;
type MapsTuple<'py> = (
    Array<'py, u64>,
    Array<'py, u64>,
    Array<'py, u8>,
    Array<'py, u64>,
    Array<'py, u64>,
    Array<'py, u64>,
    Array<'py, u32>,
    Vec<String>,
);

/// The secret that the keys of pages depend on. Boxed: it is aligned to 64 bytes, which Python's allocator is not.
#[pyclass(module = "pageone._native.mem", frozen)]
pub struct Key(pub(crate) Box<keyhash::Key>);

#[pymethods]
impl Key {
    #[new]
    fn new(seed: &[u8]) -> Key {
        Key(Box::new(keyhash::Key::from_seed(seed)))
    }
}

fn process(pid: i32) -> impl FnOnce() -> io::Result<Source> {
    move || Ok(Source::Process(AddressSpace::open(pid)?))
}

fn some_size(page_size: usize) -> PyResult<()> {
    if page_size == 0 {
        return Err(PyValueError::new_err("page_size must not be 0"));
    }
    Ok(())
}

fn maps_tuple(py: Python<'_>, maps: Maps) -> MapsTuple<'_> {
    // A path is bytes; what is no UTF-8 is shown, not lost the process for.
    let names = maps
        .names
        .iter()
        .map(|name| String::from_utf8_lossy(name).into_owned());
    (
        maps.start.into_pyarray(py),
        maps.end.into_pyarray(py),
        maps.perms.into_pyarray(py),
        maps.offset.into_pyarray(py),
        maps.dev.into_pyarray(py),
        maps.inode.into_pyarray(py),
        maps.name.into_pyarray(py),
        names.collect(),
    )
}

/// maps(pid) -> (start, end, perms, offset, dev, inode, name, names)
#[pyfunction]
#[pyo3(name = "maps")]
fn read_maps(py: Python<'_>, pid: i32) -> PyResult<MapsTuple<'_>> {
    Ok(maps_tuple(
        py,
        py.detach(|| Maps::read(pid)).map_err(os_error)?,
    ))
}

/// parse_maps(text) -> as maps()
#[pyfunction]
fn parse_maps<'py>(py: Python<'py>, text: &[u8]) -> PyResult<MapsTuple<'py>> {
    Ok(maps_tuple(py, Maps::parse(text).map_err(os_error)?))
}

/// pagemap_available() -> bool
#[pyfunction]
fn pagemap_available() -> bool {
    pagemap::available()
}

/// pagemap_scan(fd, start, end, *, flags=0, inverted=0, mask=0, anyof=0, returned=0) -> (start, end, categories)
#[pyfunction]
#[pyo3(signature = (fd, start, end, *, flags=0, inverted=0, mask=0, anyof=0, returned=0))]
#[allow(clippy::too_many_arguments)]
fn pagemap_scan<'py>(
    py: Python<'py>,
    fd: i32,
    start: PyReadonlyArray1<'py, u64>,
    end: PyReadonlyArray1<'py, u64>,
    flags: u64,
    inverted: u64,
    mask: u64,
    anyof: u64,
    returned: u64,
) -> PyResult<(Array<'py, u64>, Array<'py, u64>, Array<'py, u64>)> {
    let (start, end) = (start.as_slice()?, end.as_slice()?);
    same_length(start.len(), end.len(), "start and end")?;
    let query = Query {
        flags,
        inverted,
        mask,
        anyof,
        returned,
    };
    let Found {
        start,
        end,
        categories,
    } = py
        .detach(|| pagemap::scan(fd, start, end, &query))
        .map_err(os_error)?;
    Ok((
        start.into_pyarray(py),
        end.into_pyarray(py),
        categories.into_pyarray(py),
    ))
}

/// pagemap_entries(fd, start, end) -> entries
#[pyfunction]
fn pagemap_entries<'py>(
    py: Python<'py>,
    fd: i32,
    start: PyReadonlyArray1<'py, u64>,
    end: PyReadonlyArray1<'py, u64>,
) -> PyResult<Array<'py, u64>> {
    let (start, end) = (start.as_slice()?, end.as_slice()?);
    same_length(start.len(), end.len(), "start and end")?;
    let entries = py
        .detach(|| pagemap::entries(fd, start, end))
        .map_err(os_error)?;
    Ok(entries.into_pyarray(py))
}

fn keys_from<'py>(
    py: Python<'py>,
    open: impl FnOnce() -> io::Result<Source> + Send,
    at: &[u64],
    page_size: usize,
    key: &Key,
    threads: usize,
    keep: Option<PyReadwriteArray1<'py, u8>>,
) -> PyResult<(Array<'py, u64>, Array<'py, u8>)> {
    some_size(page_size)?;
    let (mut keys, mut code) = (vec![0u64; at.len()], vec![0u8; at.len()]);
    let mut keep = keep;
    let keep = match &mut keep {
        Some(keep) => {
            let keep = keep.as_slice_mut()?;
            same_length(keep.len(), at.len() * page_size, "keep and the pages")?;
            Some(keep)
        }
        None => None,
    };
    py.detach(|| {
        read::read_keys(
            &open()?,
            at,
            page_size,
            &key.0,
            &mut keys,
            &mut code,
            keep,
            threads,
        )
    })
    .map_err(os_error)?;
    Ok((keys.into_pyarray(py), code.into_pyarray(py)))
}

/// read_keys(pid, addr, key, threads=1, keep=None) -> (keys, code)
#[pyfunction]
#[pyo3(signature = (pid, addr, key, threads=1, keep=None))]
fn read_keys<'py>(
    py: Python<'py>,
    pid: i32,
    addr: PyReadonlyArray1<'py, u64>,
    key: &Key,
    threads: usize,
    keep: Option<PyReadwriteArray1<'py, u8>>,
) -> PyResult<(Array<'py, u64>, Array<'py, u8>)> {
    let size = pagemap::PAGE_SIZE as usize;
    keys_from(py, process(pid), addr.as_slice()?, size, key, threads, keep)
}

/// read_own_keys(pid, addr, key) -> (keys, code)
#[pyfunction]
fn read_own_keys<'py>(
    py: Python<'py>,
    pid: i32,
    addr: PyReadonlyArray1<'py, u64>,
    key: &Key,
) -> PyResult<(Array<'py, u64>, Array<'py, u8>)> {
    let at = addr.as_slice()?;
    let (mut keys, mut code) = (vec![0u64; at.len()], vec![0u8; at.len()]);
    py.detach(|| read::read_own_keys(&AddressSpace::open(pid)?, at, &key.0, &mut keys, &mut code))
        .map_err(os_error)?;
    Ok((keys.into_pyarray(py), code.into_pyarray(py)))
}

/// pagemap_holds(fd, addr) -> hold
#[pyfunction]
fn pagemap_holds<'py>(
    py: Python<'py>,
    fd: i32,
    addr: PyReadonlyArray1<'py, u64>,
) -> PyResult<Array<'py, u8>> {
    let at = addr.as_slice()?;
    let holds = py.detach(|| hold::holds(fd, at)).map_err(os_error)?;
    Ok(holds.into_pyarray(py))
}

/// file_keys(fd, offset, page_size, key, threads=1, keep=None) -> (keys, code)
#[pyfunction]
#[pyo3(signature = (fd, offset, page_size, key, threads=1, keep=None))]
fn file_keys<'py>(
    py: Python<'py>,
    fd: i32,
    offset: PyReadonlyArray1<'py, u64>,
    page_size: usize,
    key: &Key,
    threads: usize,
    keep: Option<PyReadwriteArray1<'py, u8>>,
) -> PyResult<(Array<'py, u64>, Array<'py, u8>)> {
    keys_from(
        py,
        || Ok(Source::File(fd)),
        offset.as_slice()?,
        page_size,
        key,
        threads,
        keep,
    )
}

/// keys_of(buffer, page_size, key, threads=1) -> (keys, code)
#[cfg(feature = "bench")]
#[pyfunction]
#[pyo3(signature = (buffer, page_size, key, threads=1))]
fn keys_of<'py>(
    py: Python<'py>,
    buffer: PyReadonlyArray1<'py, u8>,
    page_size: usize,
    key: &Key,
    threads: usize,
) -> PyResult<(Array<'py, u64>, Array<'py, u8>)> {
    some_size(page_size)?;
    let bytes = buffer.as_slice()?;
    let pages = bytes.len() / page_size;
    let (mut keys, mut code) = (vec![0u64; pages], vec![0u8; pages]);
    py.detach(|| read::keys_of(bytes, page_size, &key.0, &mut keys, &mut code, threads));
    Ok((keys.into_pyarray(py), code.into_pyarray(py)))
}

/// read_pages(pid, addr, out) -> code
#[pyfunction]
fn read_pages<'py>(
    py: Python<'py>,
    pid: i32,
    addr: PyReadonlyArray1<'py, u64>,
    mut out: PyReadwriteArray1<'py, u8>,
) -> PyResult<Array<'py, u8>> {
    let (at, out) = (addr.as_slice()?, out.as_slice_mut()?);
    let size = pagemap::PAGE_SIZE as usize;
    same_length(out.len(), at.len() * size, "out and the pages")?;
    let mut code = vec![0u8; at.len()];
    py.detach(|| process(pid)()?.read(at, None, size, out, &mut code))
        .map_err(os_error)?;
    Ok(code.into_pyarray(py))
}

/// compare(a, at_a, b, at_b, page_size) -> verdict; a and b: (is a process, its PID or the descriptor)
#[pyfunction]
fn compare<'py>(
    py: Python<'py>,
    a: (bool, i32),
    at_a: PyReadonlyArray1<'py, u64>,
    b: (bool, i32),
    at_b: PyReadonlyArray1<'py, u64>,
    page_size: usize,
) -> PyResult<Array<'py, u8>> {
    some_size(page_size)?;
    let (at_a, at_b) = (at_a.as_slice()?, at_b.as_slice()?);
    same_length(at_a.len(), at_b.len(), "at_a and at_b")?;
    if (a.0 || b.0) && page_size != pagemap::PAGE_SIZE as usize {
        return Err(PyValueError::new_err(
            "page_size must be 4096 for a process",
        ));
    }
    let mut verdict = vec![0u8; at_a.len()];
    let open = |(is_process, id)| {
        if is_process {
            process(id)()
        } else {
            Ok(Source::File(id))
        }
    };
    py.detach(|| {
        read::compare(
            (&open(a)?, at_a),
            (&open(b)?, at_b),
            page_size,
            &mut verdict,
        )
    })
    .map_err(os_error)?;
    Ok(verdict.into_pyarray(py))
}

/// Adds the functions of this file to the submodule `mem`.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Key>()?;
    m.add_function(wrap_pyfunction!(read_maps, m)?)?;
    m.add_function(wrap_pyfunction!(parse_maps, m)?)?;
    m.add_function(wrap_pyfunction!(pagemap_available, m)?)?;
    m.add_function(wrap_pyfunction!(pagemap_scan, m)?)?;
    m.add_function(wrap_pyfunction!(pagemap_entries, m)?)?;
    m.add_function(wrap_pyfunction!(pagemap_holds, m)?)?;
    m.add_function(wrap_pyfunction!(read_keys, m)?)?;
    m.add_function(wrap_pyfunction!(read_own_keys, m)?)?;
    m.add_function(wrap_pyfunction!(file_keys, m)?)?;
    #[cfg(feature = "bench")]
    m.add_function(wrap_pyfunction!(keys_of, m)?)?;
    m.add_function(wrap_pyfunction!(read_pages, m)?)?;
    m.add_function(wrap_pyfunction!(compare, m)?)?;
    for (name, value) in [
        ("PERM_READ", u64::from(maps::PERM_READ)),
        ("PERM_WRITE", u64::from(maps::PERM_WRITE)),
        ("PERM_EXEC", u64::from(maps::PERM_EXEC)),
        ("PERM_SHARED", u64::from(maps::PERM_SHARED)),
        ("PAGE_IS_WPALLOWED", pagemap::PAGE_IS_WPALLOWED),
        ("PAGE_IS_WRITTEN", pagemap::PAGE_IS_WRITTEN),
        ("PAGE_IS_FILE", pagemap::PAGE_IS_FILE),
        ("PAGE_IS_PRESENT", pagemap::PAGE_IS_PRESENT),
        ("PAGE_IS_SWAPPED", pagemap::PAGE_IS_SWAPPED),
        ("PAGE_IS_PFNZERO", pagemap::PAGE_IS_PFNZERO),
        ("PAGE_IS_HUGE", pagemap::PAGE_IS_HUGE),
        ("ENTRY_PRESENT", pagemap::ENTRY_PRESENT),
        ("ENTRY_SWAPPED", pagemap::ENTRY_SWAPPED),
        ("ENTRY_FILE", pagemap::ENTRY_FILE),
        ("ENTRY_EXCLUSIVE", pagemap::ENTRY_EXCLUSIVE),
        ("ENTRY_FRAME", pagemap::ENTRY_FRAME),
        ("SCAN_WP_MATCHING", pagemap::SCAN_WP_MATCHING),
        ("SCAN_CHECK_WPASYNC", pagemap::SCAN_CHECK_WPASYNC),
    ] {
        m.add(name, value)?;
    }
    Ok(())
}
