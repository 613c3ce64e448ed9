//! The guardian in `_native.mem`: its main loop, and the engine's ends of its two connections.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pagemem::guard::Client;
use pagemem::sys::FileId;
use pagemem::target::{Outcome, PageRun, StopLimits, Way};
use pagemem::wire::{Failure, WaitOn};
use pyo3::exceptions::{PyEOFError, PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::{os_error, same_length};

type Array<'py, T> = Bound<'py, PyArray1<T>>;
type Column<'py, T> = PyReadonlyArray1<'py, T>;
type Done<'py> = (Array<'py, u8>, Array<'py, f64>, f64, f64);

/// `OSError` with its number where something is refused, `EOFError` where nobody answers; what a signal handler raised is
/// raised as it is.
fn failed(failure: Failure) -> PyErr {
    match failure {
        Failure::Refused(number, text) => PyOSError::new_err((number, text)),
        Failure::Ended(e) if e.get_ref().is_some_and(|inner| inner.is::<PyErr>()) => e.into(),
        Failure::Ended(e) => PyEOFError::new_err(e.to_string()),
    }
}

/// Runs Python's signal handlers; what one raises ends the wait.
fn wait_on() -> WaitOn {
    Box::new(|| Python::attach(|py| py.check_signals()).map_err(std::io::Error::other))
}

/// Takes over a descriptor of a connected socket.
fn taken_over(fd: i32) -> PyResult<UnixStream> {
    if fd < 0 {
        return Err(PyValueError::new_err("the descriptor must be open"));
    }
    // SAFETY: the caller vouches that it is open and that nobody else closes it.
    Ok(UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn runs(addr: &[u64], pages: &[u32], frame: Option<&[u32]>) -> PyResult<Vec<PageRun>> {
    same_length(addr.len(), pages.len(), "addr and pages")?;
    if let Some(frame) = frame {
        same_length(addr.len(), frame.len(), "addr and frame")?;
    }
    let frame = |i| frame.map_or(0, |frame| frame[i]);
    Ok((0..addr.len())
        .map(|i| PageRun {
            addr: addr[i],
            pages: pages[i],
            frame: frame(i),
        })
        .collect())
}

/// Makes a request about runs, with Python free for other threads.
fn done(
    py: Python<'_>,
    request: impl FnOnce() -> Result<(Outcome, Duration), Failure> + Send,
) -> PyResult<Done<'_>> {
    let (outcome, cpu) = py.detach(request).map_err(failed)?;
    Ok((
        outcome.codes.into_pyarray(py),
        outcome.pauses.into_pyarray(py),
        outcome.injected,
        cpu.as_secs_f64(),
    ))
}

/// The engine's end of a guardian.
#[pyclass(frozen, module = "pageone._native.mem")]
pub struct GuardianClient(Client);

#[pymethods]
impl GuardianClient {
    #[new]
    fn new(fd: i32) -> PyResult<Self> {
        Ok(Self(Client::new(taken_over(fd)?, wait_on())))
    }

    /// of_pool(device, inode, patience_s) -> (client, pid, uid)
    #[staticmethod]
    fn of_pool(
        py: Python<'_>,
        device: u64,
        inode: u64,
        patience_s: f64,
    ) -> PyResult<(Self, i32, u32)> {
        let patience = seconds(patience_s, "patience_s")?;
        let pool = FileId { device, inode };
        let (client, pid, uid) = py
            .detach(|| Client::of_pool(pool, patience, wait_on()))
            .map_err(os_error)?;
        Ok((Self(client), pid, uid))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }

    fn set_limits(&self, py: Python<'_>, pause_s: f64, stop_timeout_s: f64) -> PyResult<()> {
        let limits = StopLimits {
            pause: seconds(pause_s, "pause_s")?,
            stop_timeout: seconds(stop_timeout_s, "stop_timeout_s")?,
        };
        py.detach(|| self.0.set_limits(limits)).map_err(failed)
    }

    /// pool() -> (device, inode, apart)
    fn pool(&self, py: Python<'_>) -> PyResult<(u64, u64, bool)> {
        let (file, apart) = py.detach(|| self.0.pool()).map_err(failed)?;
        Ok((file.device, file.inode, apart))
    }

    /// attach(pid, forks) -> (start, end)
    fn attach(&self, py: Python<'_>, pid: i32, forks: bool) -> PyResult<(u64, u64)> {
        py.detach(|| self.0.attach(pid, forks)).map_err(failed)
    }

    /// arm(pid, start, end) -> errno
    fn arm<'py>(
        &self,
        py: Python<'py>,
        pid: i32,
        start: Column<'py, u64>,
        end: Column<'py, u64>,
    ) -> PyResult<Array<'py, i32>> {
        let (start, end) = (start.as_slice()?, end.as_slice()?);
        same_length(start.len(), end.len(), "start and end")?;
        let ranges: Vec<_> = start.iter().copied().zip(end.iter().copied()).collect();
        let told = py.detach(|| self.0.arm(pid, &ranges)).map_err(failed)?;
        Ok(told.into_pyarray(py))
    }

    /// merge(pid, addr, pages, frame) -> (code, pauses_s, injected_s, cpu_s)
    fn merge<'py>(
        &self,
        py: Python<'py>,
        pid: i32,
        addr: Column<'py, u64>,
        pages: Column<'py, u32>,
        frame: Column<'py, u32>,
    ) -> PyResult<Done<'py>> {
        let runs = runs(addr.as_slice()?, pages.as_slice()?, Some(frame.as_slice()?))?;
        done(py, || self.0.merge(pid, &runs))
    }

    /// drop_zero(pid, addr, pages) -> (code, pauses_s, injected_s, cpu_s)
    fn drop_zero<'py>(
        &self,
        py: Python<'py>,
        pid: i32,
        addr: Column<'py, u64>,
        pages: Column<'py, u32>,
    ) -> PyResult<Done<'py>> {
        let runs = runs(addr.as_slice()?, pages.as_slice()?, None)?;
        done(py, || self.0.drop_zero(pid, &runs))
    }

    /// unmerge(pid, addr, pages, apart) -> (code, pauses_s, injected_s, cpu_s)
    fn unmerge<'py>(
        &self,
        py: Python<'py>,
        pid: i32,
        addr: Column<'py, u64>,
        pages: Column<'py, u32>,
        apart: bool,
    ) -> PyResult<Done<'py>> {
        let runs = runs(addr.as_slice()?, pages.as_slice()?, None)?;
        let way = if apart { Way::Apart } else { Way::Joined };
        done(py, || self.0.unmerge(pid, &runs, way))
    }

    /// close_ends(pid, addr, pages) -> (code, pauses_s, injected_s, cpu_s)
    fn close_ends<'py>(
        &self,
        py: Python<'py>,
        pid: i32,
        addr: Column<'py, u64>,
        pages: Column<'py, u32>,
    ) -> PyResult<Done<'py>> {
        let runs = runs(addr.as_slice()?, pages.as_slice()?, None)?;
        done(py, || self.0.close_ends(pid, &runs))
    }

    fn detach(&self, py: Python<'_>, pid: i32) -> PyResult<()> {
        py.detach(|| self.0.detach(pid)).map_err(failed)
    }

    /// targets() -> PIDs
    fn targets(&self, py: Python<'_>) -> PyResult<Vec<i32>> {
        py.detach(|| self.0.targets()).map_err(failed)
    }
}

/// The engine's end of a guardian's pool.
#[pyclass(frozen, module = "pageone._native.mem")]
pub struct PoolClient(pagemem::filling::Client);

#[pymethods]
impl PoolClient {
    #[new]
    fn new(fd: i32) -> PyResult<Self> {
        let stream = taken_over(fd)?;
        Ok(Self(pagemem::filling::Client::new(stream, wait_on())))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }

    /// fill(pid, addr, frame) -> (code, cpu_s)
    fn fill<'py>(
        &self,
        py: Python<'py>,
        pid: i32,
        addr: Column<'py, u64>,
        frame: Column<'py, u32>,
    ) -> PyResult<(Array<'py, u8>, f64)> {
        let (addr, frame) = (addr.as_slice()?, frame.as_slice()?);
        same_length(addr.len(), frame.len(), "addr and frame")?;
        let told = py.detach(|| self.0.fill(pid, addr, frame));
        let (code, cpu) = told.map_err(failed)?;
        Ok((code.into_pyarray(py), cpu))
    }

    fn free<'py>(
        &self,
        py: Python<'py>,
        first: Column<'py, u64>,
        count: Column<'py, u64>,
    ) -> PyResult<()> {
        let (first, count) = (first.as_slice()?, count.as_slice()?);
        same_length(first.len(), count.len(), "first and count")?;
        py.detach(|| self.0.free(first, count)).map_err(failed)
    }

    fn bytes(&self, py: Python<'_>) -> PyResult<u64> {
        py.detach(|| self.0.bytes()).map_err(failed)
    }
}

/// A time from its seconds.
pub(crate) fn seconds(value: f64, name: &str) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| PyValueError::new_err(format!("{name} must be a time")))
}

/// Runs the guardian over the two inherited descriptors until its work is done.
#[pyfunction]
fn guardian(py: Python<'_>, control: i32, filling: i32, frames: u32) -> PyResult<()> {
    if control < 0 || filling < 0 {
        return Err(PyValueError::new_err("descriptors must be open"));
    }
    // SAFETY: the caller vouches that both descriptors are open for the length of this call; they are only borrowed to be
    // duplicated.
    let (control, filling) = unsafe {
        (
            BorrowedFd::borrow_raw(control),
            BorrowedFd::borrow_raw(filling),
        )
    };
    let duplicate = |fd: BorrowedFd| fd.try_clone_to_owned().map_err(os_error);
    let (control, filling) = (duplicate(control)?, duplicate(filling)?);
    py.detach(move || pagemem::guard::run(control, filling, frames))
        .map_err(os_error)
}

/// Adds the guardian to the submodule `mem`.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<GuardianClient>()?;
    m.add_class::<PoolClient>()?;
    m.add_function(wrap_pyfunction!(guardian, m)?)
}
