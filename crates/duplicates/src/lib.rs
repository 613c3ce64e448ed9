//! The count of equal pages: reads, keys, numbers and comparisons of a batch in one pass.
//!
//! For: `pageone.scan`. It calls `pagemem::read`, `keyhash` and the tree of keys; it changes no target, decides nothing
//! about merging and knows nothing of Python. `bindings` calls it.
//!
//! Pages are read chunk by chunk into a buffer that stays in the cache. While a chunk is there, each page gets its key
//! (a keyed hash of all its bytes), each key its number from the tree, and each page whose key is not new is compared,
//! all its bytes, with the first page that had this key: its *representative*, read for the purpose. So a page is read
//! once, and once more as a representative for each duplicate of it. What could not be proven equal is handed back as a
//! [`Doubt`]: the representative has changed, or two contents share a key, or another thread has not named the
//! representative yet.
//!
//! Any number of threads may count batches of one [`DuplicateCount`] at once; none waits for another.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pagemem::pagemap::ENTRY_EXCLUSIVE;
use pagemem::read::{self, AddressSpace, PageBuffer, Source, CODE_GONE, CODE_OK, CODE_ZERO};
use sdtree::{Full, KeyTree};

/// In place of the number of a content: all bytes are zero.
pub const ZERO: u32 = u32::MAX;
/// In place of the number of a content: the page was gone, or changed while it was looked at.
pub const UNSTABLE: u32 = u32::MAX - 1;

/// Bytes of a chunk, and of the representatives read at a time. Measured (Zen 3, 512 KiB of second-level cache): from
/// 128 KiB to 2 MiB it hardly matters; half a MiB is among the best.
const CHUNK_BYTES: usize = 512 << 10;
const REPRESENTATIVE_BYTES: usize = 256 << 10;
/// Targets that a call keeps open at a time for their representatives.
const OPEN: usize = 16;

/// Where the pages of a target are read from.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// A process by its number; positions are addresses.
    Process(i32),
    /// An open file; positions are offsets.
    File(RawFd),
}

/// The pages of one target, in extents: extent `i` has pages `first[i]..first[i + 1]`, from position `start[i]` on.
#[derive(Debug)]
pub struct Target {
    /// Where they are read from.
    pub place: Place,
    /// Position of each extent's first page.
    pub start: Vec<u64>,
    /// Number of each extent's first page, and the number of pages behind the last: one element more than `start`.
    pub first: Vec<u64>,
}

/// What is known of pages and contents, shared by all threads that count.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// By page: the number of its content, [`ZERO`] or [`UNSTABLE`].
    pub ids: &'a [AtomicU32],
    /// By content: pages that have it beyond the first.
    pub extra: &'a [AtomicU32],
    /// By content: the page that stands for it plus one; 0 until it is named.
    pub representative: &'a [AtomicU32],
    /// By page: its key, if a second look will want it.
    pub keys: Option<&'a [AtomicU64]>,
}

/// A page whose key another page has had, and that was not found equal to that page's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The page, counted over all targets.
    pub page: u32,
    /// The number of the content that its key stands for.
    pub id: u32,
    /// Its key.
    pub key: u64,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Counted {
    /// Pages to be looked at again.
    pub doubts: Vec<Doubt>,
    /// Pages of a process that are mapped more than once: the page, counted over all targets, and its entry in the
    /// pagemap.
    pub shared: Vec<(u32, u64)>,
    /// Why reading the target stopped; the rest of the batch is [`UNSTABLE`].
    pub stopped: Option<io::Error>,
}

/// The contents met so far, and where the pages are.
pub struct DuplicateCount {
    targets: Vec<Target>,
    /// By target: the number of its first page; then the number of all pages.
    base: Vec<u64>,
    page_size: usize,
    key: Box<keyhash::Key>,
    mask: u64,
    tree: KeyTree,
}

/// Targets opened for reading, the latest few.
struct Opened<'a> {
    targets: &'a [Target],
    open: Vec<(usize, Source)>,
    next: usize,
}

impl Opened<'_> {
    fn get(&mut self, target: usize) -> io::Result<&Source> {
        if let Some(i) = self.open.iter().position(|&(which, _)| which == target) {
            return Ok(&self.open[i].1);
        }
        let source = match self.targets[target].place {
            Place::Process(pid) => Source::Process(AddressSpace::open(pid)?),
            Place::File(fd) => Source::File(fd),
        };
        if self.open.len() < OPEN {
            self.open.push((target, source));
            return Ok(&self.open[self.open.len() - 1].1);
        }
        self.next = (self.next + 1) % OPEN;
        self.open[self.next] = (target, source);
        Ok(&self.open[self.next].1)
    }
}

/// Space for one chunk; kept between calls.
#[derive(Default)]
struct Work {
    chunk: PageBuffer,
    representatives: PageBuffer,
    at: Vec<u64>,
    entries: Vec<u64>,
    code: Vec<u8>,
    keys: Vec<u64>,
    /// Pages of the chunk that are not zero: place in the chunk, key, number of the content, whether it is new.
    row: Vec<u32>,
    key: Vec<u64>,
    id: Vec<u32>,
    new: Vec<bool>,
    /// Pages whose representatives are elsewhere: index into `row`, the representative's target, its position.
    away: Vec<(u32, u32, u64)>,
}

thread_local! {
    static WORK: RefCell<Work> = RefCell::new(Work::default());
}

enum Failed {
    Read(io::Error),
    Full(Full),
}

impl DuplicateCount {
    /// A count of pages of `page_size` bytes; `seed` makes the keys, of which `mask` keeps bits (all, but in tests).
    ///
    /// # Panics
    /// If the page size is 0, or a target has not one element more in `first` than in `start`.
    pub fn new(targets: Vec<Target>, page_size: usize, seed: &[u8], mask: u64) -> DuplicateCount {
        assert!(page_size > 0, "pages have bytes");
        let mut base = vec![0];
        for target in &targets {
            assert_eq!(target.first.len(), target.start.len() + 1, "one end more");
            base.push(base[base.len() - 1] + target.first[target.start.len()]);
        }
        // Room at once: to move a table that has become too small costs more than a table that stays half empty.
        let pages = base[targets.len()] as usize;
        DuplicateCount {
            targets,
            base,
            page_size,
            key: Box::new(keyhash::Key::from_seed(seed)),
            mask,
            tree: KeyTree::new(pages, seed),
        }
    }

    /// Number of pages of all targets.
    pub fn pages(&self) -> u64 {
        self.base[self.targets.len()]
    }

    /// Number of pages of a target; `None` if there is no such target.
    pub fn pages_of(&self, target: usize) -> Option<u64> {
        self.targets
            .get(target)
            .map(|its| its.first[its.start.len()])
    }

    /// Reads pages `pages` of a target and counts them. Cost: what reading costs and 0.1 to 0.3 µs a page, and for each
    /// duplicate a read of its representative.
    ///
    /// # Errors
    /// [`Full`] when there are more contents than can be numbered. A target that cannot be read any more is told in
    /// [`Counted::stopped`].
    ///
    /// # Panics
    /// If there are no such pages, or a column is too short.
    pub fn count(
        &self,
        columns: &Columns<'_>,
        target: usize,
        pages: Range<u64>,
    ) -> Result<Counted, Full> {
        let its = &self.targets[target];
        assert!(pages.end <= its.first[its.start.len()], "pages it has");
        assert!(columns.ids.len() as u64 >= self.pages(), "a column by page");
        let mut opened = Opened {
            targets: &self.targets,
            open: Vec::new(),
            next: 0,
        };
        let mut counted = Counted::default();
        let step = (CHUNK_BYTES / self.page_size).max(1);
        WORK.with_borrow_mut(|work| {
            let mut low = pages.start;
            while low < pages.end {
                let high = pages.end.min(low + step as u64);
                let done = self.chunk(work, &mut opened, columns, target, low..high, &mut counted);
                match done {
                    Ok(()) => low = high,
                    Err(Failed::Full(full)) => return Err(full),
                    Err(Failed::Read(error)) => {
                        let base = self.base[target];
                        for id in &columns.ids[(base + low) as usize..(base + pages.end) as usize] {
                            id.store(UNSTABLE, Ordering::Relaxed);
                        }
                        counted.stopped = Some(error);
                        break;
                    }
                }
            }
            Ok(counted)
        })
    }

    fn chunk(
        &self,
        work: &mut Work,
        opened: &mut Opened<'_>,
        columns: &Columns<'_>,
        target: usize,
        pages: Range<u64>,
        counted: &mut Counted,
    ) -> Result<(), Failed> {
        let (n, size) = ((pages.end - pages.start) as usize, self.page_size);
        let Work {
            chunk,
            representatives,
            at,
            entries,
            code,
            keys,
            row,
            key,
            id,
            new,
            away,
        } = work;
        let bytes = chunk.lend(n * size);
        self.positions(target, pages.clone(), at);
        code.clear();
        code.resize(n, CODE_GONE);
        keys.clear();
        keys.resize(n, 0);
        let source = opened.get(target).map_err(Failed::Read)?;
        source.entries(at, entries).map_err(Failed::Read)?;
        let known = (!entries.is_empty()).then_some(entries.as_slice());
        source
            .read(at, known, size, bytes, code)
            .map_err(Failed::Read)?;
        read::keys_of_read(&self.key, bytes, size, keys, code);

        let base = self.base[target] + pages.start;
        let shared = |&(_, &entry): &(usize, &u64)| entry & ENTRY_EXCLUSIVE == 0;
        let of = |(i, &entry): (usize, &u64)| (base as u32 + i as u32, entry);
        counted
            .shared
            .extend(entries.iter().enumerate().filter(shared).map(of));
        row.clear();
        key.clear();
        for (i, (&code, &its)) in code.iter().zip(keys.iter()).enumerate() {
            match code {
                CODE_OK => {
                    row.push(i as u32);
                    key.push(its & self.mask);
                }
                CODE_ZERO => columns.ids[base as usize + i].store(ZERO, Ordering::Relaxed),
                _ => columns.ids[base as usize + i].store(UNSTABLE, Ordering::Relaxed),
            }
        }
        if let Some(column) = columns.keys {
            for (slot, &key) in column[base as usize..].iter().zip(keys.iter()) {
                slot.store(key, Ordering::Relaxed);
            }
        }
        id.clear();
        id.resize(row.len(), 0);
        new.clear();
        new.resize(row.len(), false);
        self.tree
            .intern_each(key, |i, its, is_new| (id[i], new[i]) = (its, is_new))
            .map_err(Failed::Full)?;
        for i in 0..row.len() {
            let page = base as usize + row[i] as usize;
            columns.ids[page].store(id[i], Ordering::Relaxed);
            if new[i] {
                columns.representative[id[i] as usize].store(page as u32 + 1, Ordering::Release);
            }
        }

        // What is not new is compared: within the chunk at once, with representatives elsewhere when they have been
        // read.
        away.clear();
        let doubt = |i: usize| Doubt {
            page: base as u32 + row[i],
            id: id[i],
            key: key[i],
        };
        let page_of = |place: usize| &bytes[place * size..][..size];
        let same = |i: usize| columns.extra[id[i] as usize].fetch_add(1, Ordering::Relaxed);
        let mut finder = Finder::new(self);
        for i in (0..row.len()).filter(|&i| !new[i]) {
            let representative =
                u64::from(columns.representative[id[i] as usize].load(Ordering::Acquire));
            if representative == 0 {
                counted.doubts.push(doubt(i));
            } else if (base + 1..=base + n as u64).contains(&representative) {
                let place = (representative - 1 - base) as usize;
                // A representative is named once its bytes are here.
                if code[place] == CODE_OK && page_of(row[i] as usize) == page_of(place) {
                    same(i);
                } else {
                    counted.doubts.push(doubt(i));
                }
            } else {
                let (target, position) = finder.find(representative - 1);
                away.push((i as u32, target, position));
            }
        }
        let step = (REPRESENTATIVE_BYTES / size).max(1);
        let mut rest = away.as_slice();
        while let Some(&(_, target, _)) = rest.first() {
            let part = rest
                .iter()
                .take(step)
                .take_while(|entry| entry.1 == target)
                .count();
            let (part, behind) = rest.split_at(part);
            rest = behind;
            at.clear();
            at.extend(part.iter().map(|entry| entry.2));
            let code = &mut code[..part.len()];
            let theirs = representatives.lend(part.len() * size);
            // A target that has become unreadable has changed.
            let readable = opened
                .get(target as usize)
                .and_then(|source| source.read(at, None, size, theirs, code));
            if readable.is_err() {
                code.fill(CODE_GONE);
            }
            for ((&(i, _, _), representative), &code) in
                part.iter().zip(theirs.chunks_exact(size)).zip(&*code)
            {
                let i = i as usize;
                if code == CODE_OK && page_of(row[i] as usize) == representative {
                    same(i);
                } else {
                    counted.doubts.push(doubt(i));
                }
            }
        }
        Ok(())
    }

    /// Writes the position of each page of a target into `at`.
    fn positions(&self, target: usize, pages: Range<u64>, at: &mut Vec<u64>) {
        let Target { start, first, .. } = &self.targets[target];
        at.clear();
        let mut extent = first.partition_point(|&first| first <= pages.start) - 1;
        let mut page = pages.start;
        while page < pages.end {
            let end = pages.end.min(first[extent + 1]);
            let position = start[extent] + (page - first[extent]) * self.page_size as u64;
            at.extend((0..end - page).map(|i| position + i * self.page_size as u64));
            page = end;
            extent += 1;
        }
    }
}

/// Finds the positions of pages; those asked for in a row are mostly of one extent.
struct Finder<'a> {
    count: &'a DuplicateCount,
    target: usize,
    extent: usize,
    /// The pages of the extent found last.
    here: Range<u64>,
}

impl<'a> Finder<'a> {
    fn new(count: &'a DuplicateCount) -> Self {
        Finder {
            count,
            target: 0,
            extent: 0,
            here: 0..0,
        }
    }

    /// The target of a page, and the page's position in it.
    fn find(&mut self, page: u64) -> (u32, u64) {
        let count = self.count;
        if !self.here.contains(&page) {
            self.target = count.base.partition_point(|&base| base <= page) - 1;
            let (base, first) = (count.base[self.target], &count.targets[self.target].first);
            self.extent = first.partition_point(|&first| first <= page - base) - 1;
            self.here = base + first[self.extent]..base + first[self.extent + 1];
        }
        let start = count.targets[self.target].start[self.extent];
        let position = start + (page - self.here.start) * count.page_size as u64;
        (self.target as u32, position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    const SIZE: usize = 512;

    /// An unnamed file with a page for each number: zeros for 0, else pages that differ in their last bytes.
    fn file(numbers: &[u64]) -> std::fs::File {
        let path = std::env::temp_dir().join(format!(
            "duplicates-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        for &number in numbers {
            let mut page = [0u8; SIZE];
            if number > 0 {
                page[0] = 1;
                page[SIZE - 8..].copy_from_slice(&number.to_le_bytes());
            }
            file.write_all(&page).unwrap();
        }
        file
    }

    struct Space {
        ids: Vec<AtomicU32>,
        extra: Vec<AtomicU32>,
        representative: Vec<AtomicU32>,
    }

    impl Space {
        fn new(pages: usize) -> Space {
            let column = |n: usize| (0..n).map(|_| AtomicU32::new(0)).collect();
            Space {
                ids: column(pages),
                extra: column(pages + 4096),
                representative: column(pages + 4096),
            }
        }

        fn columns(&self) -> Columns<'_> {
            Columns {
                ids: &self.ids,
                extra: &self.extra,
                representative: &self.representative,
                keys: None,
            }
        }
    }

    fn whole(file: &std::fs::File, pages: u64) -> Target {
        Target {
            place: Place::File(file.as_raw_fd()),
            start: vec![0],
            first: vec![0, pages],
        }
    }

    #[test]
    fn equal_pages_get_one_number_whether_their_representative_is_near_or_far_or_in_another_target()
    {
        let mut numbers: Vec<u64> = (0..3000).map(|i| i % 700).collect();
        numbers.extend([7; 50]);
        let (one, two) = (file(&numbers), file(&numbers[..1000]));
        let n = numbers.len();
        let space = Space::new(n + 1000);
        let count = DuplicateCount::new(
            vec![whole(&one, n as u64), whole(&two, 1000)],
            SIZE,
            b"a test of the count",
            u64::MAX,
        );
        let columns = space.columns();
        for range in [0..1700, 1700..n as u64] {
            assert!(count.count(&columns, 0, range).unwrap().doubts.is_empty());
        }
        assert!(count.count(&columns, 1, 0..1000).unwrap().doubts.is_empty());
        let id = |i: usize| space.ids[i].load(Ordering::Relaxed);
        let all: Vec<u64> = numbers.iter().chain(&numbers[..1000]).copied().collect();
        for (i, &number) in all.iter().enumerate() {
            assert_eq!(id(i) == ZERO, number == 0, "page {i}");
            if number > 0 {
                assert_eq!(id(i), id(number as usize), "page {i}");
            }
        }
        let extra: u32 = space.extra.iter().map(|x| x.load(Ordering::Relaxed)).sum();
        let zeros = all.iter().filter(|&&number| number == 0).count();
        assert_eq!(extra as usize, all.len() - zeros - 699);
    }

    #[test]
    fn different_pages_with_one_key_are_doubts_never_equal() {
        let numbers: Vec<u64> = (1..200).collect();
        let data = file(&numbers);
        let space = Space::new(199);
        // No bit of the key is kept: all contents collide.
        let count = DuplicateCount::new(vec![whole(&data, 199)], SIZE, b"a test of the count", 0);
        let counted = count.count(&space.columns(), 0, 0..199).unwrap();
        assert_eq!(counted.doubts.len(), 198);
        assert_eq!(
            counted.doubts[0],
            Doubt {
                page: 1,
                id: 0,
                key: 0
            }
        );
        assert_eq!(space.extra[0].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn pages_behind_the_end_of_a_file_are_unstable_and_extents_are_followed() {
        let data = file(&[1, 2, 3, 4, 5]);
        let size = SIZE as u64;
        let target = Target {
            place: Place::File(data.as_raw_fd()),
            start: vec![3 * size, 0, 4 * size],
            first: vec![0, 1, 3, 6],
        };
        let space = Space::new(6);
        let count = DuplicateCount::new(vec![target], SIZE, b"a test of the count", u64::MAX);
        assert_eq!(count.pages(), 6);
        let counted = count.count(&space.columns(), 0, 1..6).unwrap();
        assert!(counted.stopped.is_none() && counted.doubts.is_empty());
        let ids: Vec<u32> = space.ids[1..]
            .iter()
            .map(|id| id.load(Ordering::Relaxed))
            .collect();
        assert_eq!(ids, [0, 1, 2, UNSTABLE, UNSTABLE]);
        let representative = |id: usize| space.representative[id].load(Ordering::Relaxed);
        assert_eq!(
            [representative(0), representative(1), representative(2)],
            [2, 3, 4]
        );
    }

    #[test]
    fn a_target_that_cannot_be_read_leaves_its_pages_unstable_and_says_why() {
        let directory = std::fs::File::open("/").unwrap();
        let space = Space::new(3);
        let count = DuplicateCount::new(
            vec![whole(&directory, 3)],
            SIZE,
            b"a test of the count",
            u64::MAX,
        );
        let counted = count.count(&space.columns(), 0, 0..3).unwrap();
        assert!(counted.stopped.is_some());
        assert!(space
            .ids
            .iter()
            .all(|id| id.load(Ordering::Relaxed) == UNSTABLE));
    }
}
