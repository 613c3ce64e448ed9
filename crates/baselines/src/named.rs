//! The baselines by name.

use crate::peer::{Locked, Peer, Rows};
use crate::tree::Sd;
use crate::{floor, maps, rbtree, table};
use sdtree::{Hashed, Raw, SampledHash};
use std::sync::Mutex;

/// The names that [`make`] knows, in the order of a report.
pub const NAMES: [&str; 11] = [
    "sdtree",
    "sdtree_hashed",
    "sdtree_raw",
    "xxh3_table",
    "xxh3_table_scalar",
    "rbtree",
    "dashmap",
    "papaya",
    "mutex_table",
    "read_once",
    "read_apart",
];

/// Those of [`NAMES`] that index nothing and find nothing, but say what the machine can do.
pub const FLOORS: [&str; 2] = ["read_once", "read_apart"];

/// Makes the baseline `name` for `rows`, with room for all of them; `None` if there is none of that name.
pub fn make<'a>(name: &str, rows: Rows<'a>) -> Option<Box<dyn Peer + 'a>> {
    /// A fixed seed: a benchmark that can be run again.
    const SEED: &[u8] = b"baselines";
    let n = rows.count();
    Some(match name {
        "sdtree" => Box::new(Sd::new(rows, SampledHash::new(SEED))),
        "sdtree_hashed" => Box::new(Sd::new(rows, Hashed::new(SEED))),
        "sdtree_raw" => Box::new(Sd::new(rows, Raw)),
        "xxh3_table" => Box::new(Locked(Mutex::new(table::Table::new(rows, n, true)), false)),
        "xxh3_table_scalar" => {
            Box::new(Locked(Mutex::new(table::Table::new(rows, n, false)), false))
        }
        "mutex_table" => Box::new(Locked(Mutex::new(table::Table::new(rows, n, true)), true)),
        "read_once" => Box::new(floor::ReadOnce(rows)),
        "read_apart" => Box::new(floor::ReadApart(rows)),
        "rbtree" => Box::new(Locked(Mutex::new(rbtree::RbTree::new(rows)), false)),
        "dashmap" => Box::new(maps::Dash::new(rows, n)),
        "papaya" => Box::new(maps::Papaya::new(rows, n)),
        _ => return None,
    })
}

/// Makes all baselines that can work on `threads` threads.
pub fn all(threads: usize) -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().filter(move |name| {
        let single = ["xxh3_table", "xxh3_table_scalar", "rbtree"].contains(name);
        if threads == 1 {
            *name != "mutex_table"
        } else {
            !single
        }
    })
}
