//! `_native.one`: the `sdtree` crate, for Python.

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::{PyKeyError, PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use sdtree::{AnyOrder, Batch, Fixed, RowBatch, SdTree, Variable};

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

/// How Python is told an id, or that there is none.
fn or_minus_one(id: Option<u32>) -> i64 {
    id.map_or(-1, i64::from)
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
            let write = |i, id, is_new| (ids[i], new[i]) = (id, is_new);
            py.detach(|| self.tree.intern_each(keys, write))
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
            let write = |i, id| ids[i] = or_minus_one(id);
            py.detach(|| self.tree.find_each(keys, write));
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
            py.detach(|| {
                self.tree
                    .remove_each(keys, |i, was_there| removed[i] = was_there)
            });
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

/// The elements of a one-dimensional, C-contiguous array.
fn slice_of<'a, T: numpy::Element>(array: &'a PyReadonlyArray1<'_, T>) -> PyResult<&'a [T]> {
    array
        .as_slice()
        .map_err(|_| PyTypeError::new_err("the array must be C-contiguous"))
}

/// Byte strings end to end: number `i` lies from `offsets[i]` to `offsets[i + 1]`.
struct Strings<'a> {
    data: &'a [u8],
    /// A copy: the array is Python's, and another thread might write to it after it was looked at.
    offsets: Vec<i64>,
}

impl<'a> Strings<'a> {
    fn new(data: &'a [u8], offsets: &[i64]) -> PyResult<Self> {
        let offsets = offsets.to_vec();
        let ordered = offsets
            .windows(2)
            .all(|w| w[0] <= w[1] && (w[1] - w[0]) as usize <= sdtree::MAX_OBJECT);
        let inside = offsets.first().is_some_and(|&o| o >= 0)
            && offsets.last().is_some_and(|&o| o as usize <= data.len());
        if !ordered || !inside {
            return Err(PyValueError::new_err(format!(
                "offsets must rise from 0 to at most the length of the data ({}), by at most {} each",
                data.len(),
                sdtree::MAX_OBJECT
            )));
        }
        Ok(Strings { data, offsets })
    }
}

impl Batch for Strings<'_> {
    fn len(&self) -> usize {
        self.offsets.len() - 1
    }
    fn get(&self, i: usize) -> &[u8] {
        &self.data[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }
}

/// The byte strings of a list.
struct Listed<'a>(Vec<&'a [u8]>);

impl Batch for Listed<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn get(&self, i: usize) -> &[u8] {
        self.0[i]
    }
}

/// A tree of copies of objects, of one length or of any.
enum AnyTree {
    Fixed(SdTree<Fixed, AnyOrder>, usize),
    /// Of the given length, or of any (0).
    Variable(SdTree<Variable, AnyOrder>, usize),
}

/// Rows up to this length lie side by side in pieces of 128 and more; longer ones are allocated one by one.
const SIDE_BY_SIDE: usize = 1 << 16;

/// Runs `$body` with `$tree` bound to the tree, of whichever kind.
macro_rules! with_tree {
    ($self:expr, $tree:ident => $body:expr) => {
        match &$self.tree {
            AnyTree::Fixed($tree, _) => $body,
            AnyTree::Variable($tree, _) => $body,
        }
    };
}

/// A batch as Python gives it, held for the time of a call.
enum Input<'py> {
    Rows(PyReadonlyArray1<'py, u8>),
    Strings(PyReadonlyArray1<'py, u8>, PyReadonlyArray1<'py, i64>),
    List(Vec<Bound<'py, PyBytes>>),
}

impl<'py> Input<'py> {
    /// From rows end to end (`offsets` None), strings end to end, or a list of `bytes`.
    fn new(
        data: &Bound<'py, PyAny>,
        offsets: Option<PyReadonlyArray1<'py, i64>>,
    ) -> PyResult<Self> {
        if let Ok(list) = data.cast::<PyList>() {
            let items: Result<Vec<_>, _> = list
                .iter()
                .map(|item| item.cast_into::<PyBytes>())
                .collect();
            return Ok(Input::List(
                items.map_err(|_| PyTypeError::new_err("objects must be bytes"))?,
            ));
        }
        let data = data.extract()?;
        Ok(match offsets {
            Some(offsets) => Input::Strings(data, offsets),
            None => Input::Rows(data),
        })
    }
}

/// Calls `$body` with `$batch` bound to the batch of `$input` for a tree of rows of `$size` bytes (0: any).
macro_rules! with_batch {
    ($input:expr, $size:expr, $batch:ident => $body:expr) => {
        match &$input {
            Input::Rows(data) => {
                let data = slice_of(data)?;
                if $size == 0 || data.len() % $size != 0 {
                    return Err(PyValueError::new_err(format!(
                        "{} bytes are no whole rows",
                        data.len()
                    )));
                }
                let $batch = RowBatch::new(data, $size);
                $body
            }
            Input::Strings(data, offsets) => {
                let $batch = Strings::new(slice_of(data)?, slice_of(offsets)?)?;
                refuse_rows($size, &$batch)?;
                $body
            }
            Input::List(items) => {
                let $batch = Listed(items.iter().map(|b| b.as_bytes()).collect());
                refuse_rows($size, &$batch)?;
                $body
            }
        }
    };
}

/// Byte strings for a tree of rows must have their length; for any tree, one that the tree can hold.
fn refuse_rows(size: usize, batch: &impl Batch) -> PyResult<()> {
    let wrong = |len: usize| {
        if size > 0 {
            len != size
        } else {
            len > sdtree::MAX_OBJECT
        }
    };
    match (0..batch.len())
        .map(|i| batch.get(i).len())
        .find(|&len| wrong(len))
    {
        None => Ok(()),
        Some(len) if size > 0 => Err(PyValueError::new_err(format!(
            "an object of {len} bytes in a tree of {size}"
        ))),
        Some(len) => Err(PyValueError::new_err(format!(
            "an object of {len} bytes; at most {} can be held",
            sdtree::MAX_OBJECT
        ))),
    }
}

/// A set of byte strings with dense ids; see `pageone.one.SDTree`.
#[pyclass(frozen, module = "pageone._native.one")]
struct SDTree {
    tree: AnyTree,
}

impl SDTree {
    /// Bytes of an object, 0 for any.
    fn size(&self) -> usize {
        match &self.tree {
            AnyTree::Fixed(_, size) | AnyTree::Variable(_, size) => *size,
        }
    }
}

#[pymethods]
impl SDTree {
    #[new]
    fn new(
        object_size: Option<usize>,
        order: &str,
        capacity: usize,
        seed: &[u8],
    ) -> PyResult<Self> {
        let Some(order) = AnyOrder::named(order, seed) else {
            return Err(PyValueError::new_err(format!(
                "order must be sampled, hashed or raw, not {order:?}"
            )));
        };
        let tree = match object_size {
            None => AnyTree::Variable(SdTree::with(Variable::new(), order, capacity), 0),
            Some(size) if (1..=SIDE_BY_SIDE).contains(&size) => {
                AnyTree::Fixed(SdTree::with(Fixed::new(size), order, capacity), size)
            }
            Some(size) if (1..=sdtree::MAX_OBJECT).contains(&size) => {
                AnyTree::Variable(SdTree::with(Variable::new(), order, capacity), size)
            }
            Some(size) => {
                return Err(PyValueError::new_err(format!(
                    "object_size must be 1 to {} bytes, not {size}",
                    sdtree::MAX_OBJECT
                )))
            }
        };
        Ok(SDTree { tree })
    }

    #[pyo3(signature = (data, offsets = None))]
    fn intern<'py>(
        &self,
        py: Python<'py>,
        data: &Bound<'py, PyAny>,
        offsets: Option<PyReadonlyArray1<'py, i64>>,
    ) -> PyResult<Interned<'py>> {
        let input = Input::new(data, offsets)?;
        with_batch!(input, self.size(), batch => {
            let (ids, new) = (output::<u32>(py, batch.len()), output::<bool>(py, batch.len()));
            {
                let (mut ids, mut new) = (ids.readwrite(), new.readwrite());
                let (ids, new) = (ids.as_slice_mut()?, new.as_slice_mut()?);
                let write = |i, id, is_new| (ids[i], new[i]) = (id, is_new);
                py.detach(|| with_tree!(self, tree => tree.intern_each(&batch, write))).map_err(full)?;
            }
            Ok((ids, new))
        })
    }

    #[pyo3(signature = (data, offsets = None))]
    fn find<'py>(
        &self,
        py: Python<'py>,
        data: &Bound<'py, PyAny>,
        offsets: Option<PyReadonlyArray1<'py, i64>>,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let input = Input::new(data, offsets)?;
        with_batch!(input, self.size(), batch => {
            let ids = output::<i64>(py, batch.len());
            {
                let mut ids = ids.readwrite();
                let ids = ids.as_slice_mut()?;
                let write = |i, id| ids[i] = or_minus_one(id);
                py.detach(|| with_tree!(self, tree => tree.find_each(&batch, write)));
            }
            Ok(ids)
        })
    }

    #[pyo3(signature = (data, offsets = None))]
    fn remove<'py>(
        &self,
        py: Python<'py>,
        data: &Bound<'py, PyAny>,
        offsets: Option<PyReadonlyArray1<'py, i64>>,
    ) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let input = Input::new(data, offsets)?;
        with_batch!(input, self.size(), batch => {
            let removed = output::<bool>(py, batch.len());
            {
                let mut removed = removed.readwrite();
                let removed = removed.as_slice_mut()?;
                let write = |i, was_there| removed[i] = was_there;
                py.detach(|| with_tree!(self, tree => tree.remove_each(&batch, write)));
            }
            Ok(removed)
        })
    }

    /// The rows of `ids`, end to end; of a tree of rows.
    fn get_rows<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray1<'py, u32>,
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let size = self.size();
        if size == 0 {
            return Err(PyTypeError::new_err(
                "a tree of objects of any length has no rows",
            ));
        }
        // A copy: what is asked of the tree must not change on the way there.
        let ids = slice_of(&ids)?.to_vec();
        let rows = output::<u8>(py, ids.len() * size);
        {
            let mut rows = rows.readwrite();
            let rows = rows.as_slice_mut()?;
            let missing = py.detach(|| {
                let mut missing = None;
                with_tree!(self, tree => tree.get_each(&ids, |i, bytes| match bytes {
                    Some(bytes) => rows[i * size..(i + 1) * size].copy_from_slice(bytes),
                    None => missing = missing.or(Some(ids[i])),
                }));
                missing
            });
            if let Some(id) = missing {
                return Err(PyKeyError::new_err(id));
            }
        }
        Ok(rows)
    }

    /// The objects of `ids`, as a list of `bytes`.
    fn get_list<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray1<'py, u32>,
    ) -> PyResult<Bound<'py, PyList>> {
        let ids = slice_of(&ids)?.to_vec();
        let list = PyList::empty(py);
        let mut failed = None;
        with_tree!(self, tree => tree.get_each(&ids, |i, bytes| {
            let done = match bytes {
                Some(bytes) => list.append(PyBytes::new(py, bytes)),
                None => Err(PyKeyError::new_err(ids[i])),
            };
            if let (Err(error), None) = (done, &failed) {
                failed = Some(error);
            }
        }));
        match failed {
            None => Ok(list),
            Some(error) => Err(error),
        }
    }

    fn ids<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        let ids = py.detach(|| with_tree!(self, tree => tree.ids()));
        PyArray1::from_vec(py, ids)
    }

    fn clear(&self, py: Python<'_>) {
        py.detach(|| with_tree!(self, tree => tree.clear()));
    }

    fn __len__(&self) -> usize {
        with_tree!(self, tree => tree.len())
    }

    #[getter]
    fn id_bound(&self) -> usize {
        with_tree!(self, tree => tree.id_bound())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = py.detach(|| with_tree!(self, tree => tree.stats()));
        stats_dict(py, &stats)
    }
}

/// `(first, inverse)`: the row in which each distinct row is seen first, in that order, and for each row the number
/// of its distinct row. The rows stay where they are.
type UniqueRows<'py> = (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<u32>>);

#[pyfunction]
fn unique_rows<'py>(
    py: Python<'py>,
    data: PyReadonlyArray1<'py, u8>,
    size: usize,
    seed: &[u8],
) -> PyResult<UniqueRows<'py>> {
    let data = slice_of(&data)?;
    if size == 0 || data.len() % size != 0 || data.len() / size >= u32::MAX as usize {
        return Err(PyValueError::new_err(
            "rows of at least one byte, fewer than 2**32 - 1 of them",
        ));
    }
    let n = data.len() / size;
    let inverse = output::<u32>(py, n);
    let first: Vec<u32> = {
        let mut inverse = inverse.readwrite();
        let inverse = inverse.as_slice_mut()?;
        py.detach(|| {
            // Room for a quarter: most of the growth is saved where rows differ, little is lost where they do not.
            let tree = SdTree::rows(data, size, n / 4, seed);
            let mut first = Vec::new();
            tree.intern_each(&RowBatch::new(data, size), |row, id, is_new| {
                inverse[row] = id;
                if is_new {
                    first.push(row as u32);
                }
            })?;
            Ok::<_, sdtree::Full>(first)
        })
        .map_err(full)?
    };
    Ok((PyArray1::from_vec(py, first), inverse))
}

/// Adds the submodule `one` to `parent`.
pub fn register(parent: &Bound<'_, PyModule>) -> PyResult<()> {
    let m = PyModule::new(parent.py(), "one")?;
    m.add_class::<KeyTree>()?;
    m.add_class::<SDTree>()?;
    m.add_function(wrap_pyfunction!(unique_rows, &m)?)?;
    parent.add_submodule(&m)
}
