//! A batch, group by group: each group is read and warmed while the one before is worked on.

use crate::batch::Batch;
use crate::objects::{Objects, Query, NO_QUERY};
use crate::order::Order;
use crate::prefetch::prefetch;
use crate::store::Store;
use crate::trie::{classes::PinScope, warm::GROUP, Pin, Trie};
use std::mem::MaybeUninit;

/// Asks for what [`Order::first`] will read of object `i`.
#[inline]
fn touch<O: Order, B: Batch + ?Sized>(order: &O, batch: &B, i: usize) {
    let bytes = batch.get(i);
    let apart = !bytes.as_ptr().addr().is_multiple_of(64);
    order.lines(bytes.len(), |at| {
        let line = bytes.as_ptr().wrapping_add(at);
        prefetch(line);
        if apart {
            prefetch(line.wrapping_add(63));
        }
    });
}

/// Asks for the places in the tables where the search will begin, as far as they are known.
#[inline]
fn prefetch_place<R: Fn(u32)>(trie: &Trie, pin: &Pin<'_, R>, q: &Query) {
    let whole = (q.known != 0).then_some(q.whole);
    trie.prefetch_place(pin, q.first, whole);
}

/// Calls `f` with the queries of a range one by one, in groups that are warm in the caches.
///
/// Where the objects of the next group are not read whole, one of them is hashed and one further on is asked for
/// beside each call of `f`, since many requests at once would wait for each other. Where they are, they are read
/// between the calls of one group and those of the next, so that what was warmed for the calls is not driven out.
#[inline]
pub(crate) fn each<'t, S: Store, O: Order, B: Batch + ?Sized, R: Fn(u32)>(
    trie: &'t Trie,
    objects: &'t Objects<S, O>,
    pin: &mut Pin<'t, R>,
    batch: &B,
    range: std::ops::Range<usize>,
    mut f: impl FnMut(&mut Pin<'t, R>, &mut PinScope, usize, &mut Query),
) {
    /// Objects between asking for one and hashing it.
    const AHEAD: usize = 16;
    /// Objects read side by side where they are read whole.
    const STREAMS: usize = 4;
    /// The line asked for of an object that will be read whole: it brings the translation of the page's address. At
    /// the head, or with more lines, it would keep the hardware from seeing the stream.
    const OF_STREAM: usize = 512;
    let mut scope = trie.start(pin);
    // Not filled in advance: that would take longer than a search does, where a batch is one object.
    let mut buffers = [[const { MaybeUninit::uninit() }; GROUP]; 2];
    let [mut group, mut next] = buffers.each_mut();
    // Whether the group that begins at `start` is read as streams. With `eager` by `Order::whole`, too.
    let streams = |start: usize, eager: bool| {
        start + STREAMS <= range.end && (eager || objects.order.streams(batch.get(start).len()))
    };
    // Fills a group, as far as the range goes.
    let read = |start: usize, eager: bool, group: &mut [MaybeUninit<Query>; GROUP]| {
        let n = GROUP.min(range.end - start);
        // As far from each other as can be.
        let apart = n / STREAMS;
        for k in 0..apart {
            let bytes = std::array::from_fn(|s| batch.get(start + k + s * apart));
            let four = objects.query_four(bytes, eager);
            for (s, q) in four.into_iter().enumerate() {
                group[k + s * apart].write(q);
            }
        }
        let rest = apart * STREAMS;
        for (k, q) in group[..n].iter_mut().enumerate().skip(rest) {
            q.write(objects.query(batch.get(start + k), eager));
        }
    };
    let prepare = |i: usize, eager: bool, q: &mut MaybeUninit<Query>| {
        if i + AHEAD < range.end {
            touch(&objects.order, batch, i + AHEAD);
        }
        if i < range.end {
            q.write(objects.query(batch.get(i), eager));
        }
    };
    let touch_some = |start: usize| {
        for i in start..range.end.min(start + AHEAD) {
            touch(&objects.order, batch, i);
        }
    };
    let mut stream = streams(range.start, false);
    if stream {
        read(range.start, false, next);
    } else {
        touch_some(range.start);
        for (i, q) in range.clone().zip(&mut *next) {
            prepare(i, false, q);
        }
    }
    for start in range.clone().step_by(GROUP) {
        std::mem::swap(&mut group, &mut next);
        let group = &mut group[..GROUP.min(range.end - start)];
        // SAFETY: the queries of these objects have been written, all of them: by `read`, or by `prepare`, called for each
        // of the first group, and beside each of the group before, which was a whole one.
        let group = unsafe { &mut *(group as *mut [MaybeUninit<Query>] as *mut [Query]) };
        // All in a row: each may wait for the translation of an address, and so would streams or samples beside it.
        for q in &*group {
            prefetch_place(trie, pin, q);
        }
        let of_classes = trie.warm(objects, pin, group, &mut scope);
        // Where most of a group were of classes, the next one is read whole at once, in one pass.
        let eager = 2 * of_classes > group.len();
        let after = start + GROUP;
        let before = std::mem::replace(&mut stream, streams(after, eager));
        if before && !stream {
            touch_some(after);
        }
        for (k, q) in group.iter_mut().enumerate() {
            if !stream {
                prepare(after + k, eager, &mut next[k]);
            } else if after + k < range.end && batch.get(after + k).len() > OF_STREAM {
                prefetch(batch.get(after + k)[OF_STREAM..].as_ptr());
            }
            f(pin, &mut scope, start + k, q);
        }
        if stream {
            read(after, eager, next);
        }
    }
    trie.end(objects, pin, &mut { NO_QUERY }, scope);
}
