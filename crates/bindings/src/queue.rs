//! `_native.queue`: crossbeam's unbounded lock-free queue, holding Python objects.

use crossbeam_queue::SegQueue;
use pyo3::prelude::*;

/// An unbounded first-in first-out queue for any number of producing and consuming threads.
///
/// No operation waits for another thread: a thread that is stopped in the middle of `push` or `pop` blocks nobody
/// but whoever pops the very element it is writing.
#[pyclass(frozen, module = "pageone._native.queue")]
pub struct BatchQueue {
    queue: SegQueue<Py<PyAny>>,
}

#[pymethods]
impl BatchQueue {
    #[new]
    fn new() -> Self {
        Self {
            queue: SegQueue::new(),
        }
    }

    /// Appends an object.
    fn push(&self, item: Py<PyAny>) {
        self.queue.push(item);
    }

    /// Takes the oldest object; `None` when there is none.
    fn pop(&self) -> Option<Py<PyAny>> {
        self.queue.pop()
    }

    fn __len__(&self) -> usize {
        self.queue.len()
    }
}

/// Adds the submodule `queue` to `parent`.
pub fn register(parent: &Bound<'_, PyModule>) -> PyResult<()> {
    let m = PyModule::new(parent.py(), "queue")?;
    m.add_class::<BatchQueue>()?;
    parent.add_submodule(&m)
}
