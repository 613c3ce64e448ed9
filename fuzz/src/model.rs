//! Bytes become operations on an `SdTree` and on a `BTreeMap`, and both must agree in all that can be seen.
//!
//! For: the fuzz target, and the tests of `sdtree`, which replay the corpus and random bytes. The first byte chooses the
//! kind of tree; then each operation is seven bytes, short enough for a fuzzer to find batches that are long, of
//! near-duplicates, of copies, or of objects that prefix each other:
//!
//! ```text
//! what | objects | length | fill | first bit to flip (2) | stride
//! ```
//!
//! Object `i` of a batch is `length` bytes of `fill` with bit `first + i * stride` flipped; stride 0 makes copies.

use sdtree::{AnyOrder, Batch, Fixed, Order, SdTree, Store, Variable};
use std::collections::BTreeMap;

#[path = "../../crates/sdtree/tests/orders/mod.rs"]
mod orders;
use orders::Colliding;

/// A few classes, of many objects each.
struct FewClasses;

// SAFETY: functions of the bytes alone.
unsafe impl Order for FewClasses {
    fn first(&self, bytes: &[u8]) -> u64 {
        let class = bytes.first().map_or(9, |b| *b as u64 % 4);
        (1 + class).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn whole(&self, bytes: &[u8]) -> u64 {
        let mix = |h: u64, &b: &u8| (h ^ b as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bytes.iter().fold(1, mix)
    }
    fn lines(&self, _len: usize, _touch: impl FnMut(usize)) {}
}

/// Lengths around all borders that the code knows: words, lines, the sample, streams, pages.
const LENGTHS: [usize; 32] = [
    0, 1, 2, 3, 7, 8, 9, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 257, 511, 512, 513,
    576, 1000, 1023, 1024, 1025, 2048, 4095, 4096, 4097,
];

/// Bytes that a whole input may make, so that no input is slow.
const BUDGET: usize = 4 << 20;

/// Runs the operations that `data` stands for.
///
/// # Panics
/// If tree and model disagree.
pub fn run(data: &[u8]) {
    let [kind, rest @ ..] = data else { return };
    let size = LENGTHS[*kind as usize >> 3];
    let sampled = || AnyOrder::named("sampled", b"fuzz").expect("an order");
    let hashed = || AnyOrder::named("hashed", b"fuzz").expect("an order");
    match (kind & 7, size) {
        (0, _) | (1..4, 0) => agree(&SdTree::with(Variable::new(), sampled(), 0), rest, None),
        (1, _) => agree(
            &SdTree::with(Fixed::new(size), sampled(), 0),
            rest,
            Some(size),
        ),
        (2, _) => agree(
            &SdTree::with(Fixed::new(size), hashed(), 5000),
            rest,
            Some(size),
        ),
        (3, _) => agree(
            &SdTree::with(Fixed::new(size), FewClasses, 0),
            rest,
            Some(size),
        ),
        (4, _) => agree(&SdTree::with(Variable::new(), FewClasses, 0), rest, None),
        (5, _) => agree(&SdTree::with(Variable::new(), Colliding, 0), rest, None),
        (6, _) => agree(&SdTree::with(Variable::new(), AnyOrder::Raw, 0), rest, None),
        _ => agree(&SdTree::with(Variable::new(), hashed(), 0), rest, None),
    }
}

/// The objects that seven bytes stand for.
fn objects(op: [u8; 7], size: Option<usize>) -> Vec<Vec<u8>> {
    let [_, count, length, fill, low, high, stride] = op;
    let len = size.unwrap_or(LENGTHS[length as usize % LENGTHS.len()]);
    (0..count as usize % 128)
        .map(|i| {
            let mut object = vec![fill; len];
            let bit = u16::from_le_bytes([low, high]) as usize + i * stride as usize;
            if len > 0 {
                object[bit / 8 % len] ^= 0x80 >> (bit % 8);
            }
            object
        })
        .collect()
}

fn agree<S: Store, O: Order>(tree: &SdTree<S, O>, data: &[u8], size: Option<usize>) {
    let mut model: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    let mut made = 0;
    for op in data.as_chunks::<7>().0 {
        let batch = objects(*op, size);
        made += batch.iter().map(Vec::len).sum::<usize>();
        if made > BUDGET {
            break;
        }
        match op[0] % 8 {
            0..3 => {
                let done = tree.intern(&batch[..]).expect("room");
                for ((object, id), new) in batch.into_iter().zip(done.ids).zip(done.new) {
                    assert_eq!(new, !model.contains_key(&object));
                    assert_eq!(*model.entry(object).or_insert(id), id);
                }
            }
            3 => {
                for (object, id) in batch.iter().zip(tree.find(&batch[..])) {
                    assert_eq!(id, model.get(object).copied());
                }
            }
            4..7 => {
                for (object, removed) in batch.iter().zip(tree.remove(&batch[..])) {
                    assert_eq!(removed, model.remove(object).is_some());
                }
            }
            _ if op[1] == 0 => {
                tree.clear();
                model.clear();
            }
            _ => {}
        }
        assert_eq!(tree.len(), model.len());
    }
    // Every object has an id of its own, and is what is got by it.
    let mut ids = tree.ids();
    ids.sort_unstable();
    let mut expected: Vec<u32> = model.values().copied().collect();
    expected.sort_unstable();
    assert_eq!(ids, expected);
    let (objects, ids): (Vec<_>, Vec<_>) = model.iter().unzip();
    tree.get_each(&ids, |i, bytes| {
        assert_eq!(bytes, Some(objects[i].as_slice()))
    });
    let stats = tree.stats();
    assert_eq!(
        (stats.objects, stats.shape.objects),
        (model.len(), model.len())
    );
    let found = tree.find(&Refs(&objects));
    assert!(found.iter().zip(&ids).all(|(f, id)| *f == Some(*id)));
}

/// Objects that belong to the model.
struct Refs<'a>(&'a [&'a Vec<u8>]);

impl Batch for Refs<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn get(&self, i: usize) -> &[u8] {
        self.0[i]
    }
}
