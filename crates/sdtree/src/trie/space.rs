//! What the trie asks of those whose objects it orders: how their keys read, and where they are put.

/// The objects and how their keys read. The key of an object is a string of bits that depends on its bytes alone
/// and differs from that of every different object; the tree asks for bits one at a time.
///
/// With `CLASSES` there are two keys: one of `PREFIX` bits for the first root, which different objects may have in
/// common, and one for the second root. Without, there is one, and nothing is ever put below the second root.
pub(crate) trait Space: Sync {
    /// Whether objects with the same prefix become a class.
    const CLASSES: bool;
    /// Doublings that the second table is behind the first when it is made: 0 where there is memory for it.
    const SECOND_LESS: u32;
    /// An object searched for, with what has been computed of its key.
    type Query;
    /// The first 64 key bits, the first one most significant; only `PREFIX` of them are used.
    fn prefix(&self, q: &Self::Query) -> u64;
    /// The first 64 bits of the key for the second root. With `CLASSES` only, as the next three.
    fn whole(&self, q: &mut Self::Query) -> u64;
    /// The same of object `id`.
    fn whole_of(&self, id: u32) -> u64;
    /// Whether `q` equals object `id`: all the bytes.
    fn equal(&self, q: &Self::Query, id: u32) -> bool;
    /// The class that `q` was found to belong to under this pin, or `NONE`. With `CLASSES` only, as the next.
    fn class(&self, q: &Self::Query) -> u32;
    /// Notes the class that `q` belongs to.
    fn set_class(&self, q: &mut Self::Query, node: u32);
    /// Computes `whole` of those of the queries whose numbers are in `which`, each with its class.
    fn compute_wholes(&self, queries: &mut [Self::Query], which: &[(u16, u32)]);
    /// Key bit `at >= PREFIX` of `q` (below the second root, if there are `CLASSES`).
    fn bit(&self, q: &mut Self::Query, at: u32) -> usize;
    /// Compares `q` with object `id`, whose first `PREFIX` key bits are the same: all the bytes. `None` if equal,
    /// else the first key bit in which they differ.
    fn compare(&self, q: &mut Self::Query, id: u32) -> Option<u32>;
    /// Puts the object of `q` in the place of `id`, which is nobody else's. Returns whether the search must start
    /// anew: the bytes may have been written to while they were copied, and the key bits that the search has asked
    /// for, of the prefix and up to `differ` below the second root if it has come there, must be those of the copy.
    fn place(&self, id: u32, q: &mut Self::Query, differ: Option<u32>) -> bool;
    /// From here on the search for `q`, which equals object `id` of this pin, reads the tree's own copy, if there is one:
    /// what `q` was made from may be written to by others, and the search must end where it has ended before.
    fn hold(&self, _id: u32, _q: &mut Self::Query) {}
    /// `id` is in the tree no more, but may still be read.
    fn removed(&self, id: u32);
    /// `id` is read by nobody any more.
    fn release(&self, id: u32);
    /// What is kept about object `id` will be read by `look_at`.
    fn prefetch_record(&self, id: u32);
    /// Each of the queries (by number) is about to be compared with the object beside it: brings both to the caches, or
    /// compares them now, many side by side, and keeps in the query what it has found.
    fn look_at(&self, queries: &mut [Self::Query], pairs: &[(u16, u32)]);
}
