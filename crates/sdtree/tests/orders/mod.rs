//! Orders that put a tree to the test; for the tests of this folder and the fuzz target.

use sdtree::Order;

/// All hashed bits collide: only the bytes are left to tell objects apart.
pub struct Colliding;

// SAFETY: functions of the bytes alone.
unsafe impl Order for Colliding {
    fn first(&self, _bytes: &[u8]) -> u64 {
        0x5555_5555_5555_5555
    }
    fn whole(&self, _bytes: &[u8]) -> u64 {
        7
    }
    fn lines(&self, _len: usize, _touch: impl FnMut(usize)) {}
}
