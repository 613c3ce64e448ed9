//! `_native.files`: the `files` crate, for Python.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use files::scan::{Found, Options, Scan};
use files::verify::Range;
use files::walk::{Files, Kind, Root};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::os_error;

type Array<'py, T> = Bound<'py, PyArray1<T>>;
/// (src, src_at, dst, dst_at, len, long)
type Ranges<'py> = (
    Array<'py, u32>,
    Array<'py, u64>,
    Array<'py, u32>,
    Array<'py, u64>,
    Array<'py, u64>,
    Array<'py, bool>,
);

fn column<'py, R, T: numpy::Element>(
    py: Python<'py>,
    rows: &[R],
    field: impl Fn(&R) -> T,
) -> Array<'py, T> {
    rows.iter().map(field).collect::<Vec<_>>().into_pyarray(py)
}

fn ranges<'py>(py: Python<'py>, rows: &[Range]) -> Ranges<'py> {
    (
        column(py, rows, |row| row.src),
        column(py, rows, |row| row.src_at),
        column(py, rows, |row| row.dst),
        column(py, rows, |row| row.dst_at),
        column(py, rows, |row| row.len),
        column(py, rows, |row| row.long),
    )
}

/// A descriptor of our own for what Python's stands for.
fn duplicate(fd: RawFd) -> PyResult<OwnedFd> {
    // SAFETY: no memory is involved.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if new < 0 {
        return Err(os_error(std::io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// One scan of files; see `pageone.files.scan`.
#[pyclass(frozen, module = "pageone._native.files")]
struct FileScan {
    scan: Scan,
    files: OnceLock<Files>,
    found: OnceLock<Found>,
}

impl FileScan {
    fn listed(&self) -> PyResult<&Files> {
        self.files
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("not listed yet"))
    }

    fn done(&self) -> PyResult<&Found> {
        self.found
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("not scanned yet"))
    }
}

#[pymethods]
impl FileScan {
    #[new]
    #[pyo3(signature = (*, smallest, whole, unit, shortest, threads, memory, across, seed, mask, cpu_share, rate))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        smallest: u64,
        whole: bool,
        unit: u32,
        shortest: u32,
        threads: usize,
        memory: u64,
        across: bool,
        seed: [u8; 32],
        mask: u64,
        cpu_share: f64,
        rate: u64,
    ) -> PyResult<Self> {
        if !unit.is_power_of_two() || !(512..=1 << 20).contains(&unit) {
            return Err(PyValueError::new_err(
                "unit must be a power of two from 512 to 1 MiB",
            ));
        }
        let options = Options {
            smallest,
            whole,
            unit,
            shortest,
            threads,
            memory,
            mask,
            across,
            seed,
        };
        Ok(FileScan {
            scan: Scan::new(options, cpu_share, rate),
            files: OnceLock::new(),
            found: OnceLock::new(),
        })
    }

    /// run(roots, leave, keys): roots are (descriptor, number of the file system, kind 0 to 2)
    fn run(
        &self,
        py: Python<'_>,
        roots: Vec<(RawFd, u32, u8)>,
        leave: Vec<(u64, u64)>,
        keys: RawFd,
    ) -> PyResult<()> {
        let mut list = Vec::with_capacity(roots.len());
        for (fd, fs, kind) in roots {
            let kind = match kind {
                0 => Kind::CannotShare,
                1 => Kind::FreesBlocks,
                2 => Kind::FreesExtents,
                _ => return Err(PyValueError::new_err("kind must be 0 to 2")),
            };
            list.push(Root {
                fd: duplicate(fd)?,
                fs,
                kind,
            });
        }
        let keys = duplicate(keys)?;
        py.detach(|| {
            let files = self.scan.list(list, &leave).map_err(std::io::Error::from)?;
            let files = self.files.get_or_init(|| files);
            let found = self.scan.find(files, &keys)?;
            self.found.get_or_init(|| found);
            Ok(())
        })
        .map_err(os_error)
    }

    /// share(order): shares what is to be shared, by these numbers, in this order; False if it was stopped
    fn share(&self, py: Python<'_>, order: PyReadonlyArray1<'_, u64>) -> PyResult<bool> {
        let (files, found) = (self.listed()?, self.done()?);
        let pick = |&at: &u64| found.to_share.get(at as usize).copied();
        let list: Option<Vec<Range>> = order.as_slice()?.iter().map(pick).collect();
        let list = list.ok_or_else(|| PyValueError::new_err("no such range"))?;
        Ok(py.detach(|| self.scan.share(files, &list)).is_ok())
    }

    /// stop()
    fn stop(&self) {
        self.scan.control.stop();
    }

    /// progress() -> (step, done, total)
    fn progress(&self) -> (&'static str, u64, u64) {
        let (done, total) = self.scan.control.progress();
        (self.scan.step(), done, total)
    }

    /// outcome() -> (bytes shared, calls, bytes that differ, [(error, bytes)])
    fn outcome(&self) -> (u64, u64, u64, Vec<(i32, u64)>) {
        let told = self
            .scan
            .outcome
            .lock()
            .expect("nobody panics with it")
            .clone();
        (
            told.shared,
            told.ranges,
            told.differs,
            told.refused.into_iter().collect(),
        )
    }

    /// path(file) -> (number of the root, path below it)
    fn path<'py>(&self, py: Python<'py>, file: u32) -> PyResult<(u32, Bound<'py, PyBytes>)> {
        let files = self.listed()?;
        if file as usize >= files.rows.len() {
            return Err(PyValueError::new_err("no such file"));
        }
        let (root, path) = files.path(file);
        Ok((root, PyBytes::new(py, &path)))
    }

    /// files() -> (size, bytes allocated, owner, number of the file system)
    #[allow(clippy::type_complexity)]
    fn files<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(
        Array<'py, u64>,
        Array<'py, u64>,
        Array<'py, u32>,
        Array<'py, u32>,
    )> {
        let files = self.listed()?;
        let rows = &files.rows;
        let systems: Vec<u32> = (0..rows.len() as u32).map(|file| files.fs(file)).collect();
        Ok((
            column(py, rows, |row| row.stamp.size),
            column(py, rows, |row| row.blocks * 512),
            column(py, rows, |row| row.uid),
            systems.into_pyarray(py),
        ))
    }

    /// classes() -> (members, ends)
    fn classes<'py>(&self, py: Python<'py>) -> PyResult<(Array<'py, u32>, Array<'py, u64>)> {
        let classes = &self.done()?.classes;
        let mut ends = Vec::with_capacity(classes.len());
        let mut members = Vec::new();
        for class in classes {
            members.extend_from_slice(class);
            ends.push(members.len() as u64);
        }
        Ok((members.into_pyarray(py), ends.into_pyarray(py)))
    }

    /// ranges() -> (src, src_at, dst, dst_at, len, long)
    fn ranges<'py>(&self, py: Python<'py>) -> PyResult<Ranges<'py>> {
        Ok(ranges(py, &self.done()?.ranges))
    }

    /// to_share() -> as ranges()
    fn to_share<'py>(&self, py: Python<'py>) -> PyResult<Ranges<'py>> {
        Ok(ranges(py, &self.done()?.to_share))
    }

    /// counts() -> [(name, number)]
    fn counts(&self) -> PyResult<Vec<(&'static str, u64)>> {
        use std::sync::atomic::Ordering::Relaxed;
        let (files, found) = (self.listed()?, self.done()?);
        let (skipped, account, troubles) = (&files.skipped, &found.account, &self.scan.troubles);
        Ok(vec![
            ("files", files.rows.len() as u64),
            ("blocks", found.blocks),
            ("zero_blocks", found.zero_blocks),
            ("equal_blocks", found.equal_blocks),
            ("equal_block_bytes", found.equal_bytes),
            ("files_from_index", found.from_index),
            ("index_bytes", found.index_bytes),
            ("bytes_read", self.scan.control.bytes()),
            ("already_shared_bytes", account.shared),
            ("frees_bytes", account.frees),
            ("shared_elsewhere_bytes", account.elsewhere),
            ("compressed_bytes", account.compressed),
            ("kept_bytes", account.kept),
            ("inline_bytes", account.inline),
            ("cannot_share_bytes", account.cannot),
            ("unknown_bytes", account.unknown),
            ("hard_links", skipped.hard_links),
            ("symbolic_links", skipped.links),
            ("special_files", skipped.special),
            ("empty_files", skipped.empty),
            ("small_files", skipped.small),
            ("other_mounts", skipped.mounts),
            ("gone_files", skipped.gone),
            ("changed_files", troubles.changed.load(Relaxed)),
            ("denied", skipped.denied + troubles.denied.load(Relaxed)),
            ("failed", skipped.failed + troubles.failed.load(Relaxed)),
        ])
    }
}

/// Adds the submodule `files` to `parent`.
pub fn register(parent: &Bound<'_, PyModule>) -> PyResult<()> {
    let m = PyModule::new(parent.py(), "files")?;
    m.add_class::<FileScan>()?;
    parent.add_submodule(&m)
}
