//! What reading promises, on memory and files of the test itself and of children it forks.

use super::*;
use crate::pagemap;
use std::io::Write;

use keyhash::Key;

fn me() -> Source {
    Source::Process(AddressSpace::open(std::process::id() as i32).unwrap())
}

/// Anonymous memory with page `i` filled with the bytes of `i`; leaked.
fn memory(pages: usize) -> *mut u8 {
    // SAFETY: a fresh anonymous mapping, written within its bounds.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::mmap(std::ptr::null_mut(), pages * PAGE, prot, flags, -1, 0).cast::<u8>();
        assert_ne!(map.cast(), libc::MAP_FAILED);
        for page in 0..pages {
            std::slice::from_raw_parts_mut(map.add(page * PAGE), PAGE).fill(page as u8);
        }
        map
    }
}

/// Makes a page unreadable. Not unmapped: another test's mapping could take its place.
fn forbid(map: *mut u8, page: usize) {
    // SAFETY: a page of a mapping that the test owns and does not touch again.
    let done = unsafe { libc::mprotect(map.add(page * PAGE).cast(), PAGE, libc::PROT_NONE) };
    assert_eq!(done, 0);
}

#[test]
fn pages_are_read_in_the_order_asked_for_and_holes_are_marked() {
    let map = memory(64);
    for hole in [0, 1, 17, 40, 63] {
        forbid(map, hole);
    }
    let order: Vec<usize> = (0..64).chain([5, 4, 3, 17, 17, 50]).collect();
    let at: Vec<u64> = order
        .iter()
        .map(|page| map as u64 + (page * PAGE) as u64)
        .collect();
    let mut out = vec![0xee; at.len() * PAGE];
    let mut code = vec![99; at.len()];
    me().read(&at, None, PAGE, &mut out, &mut code).unwrap();
    for (i, &page) in order.iter().enumerate() {
        if [0, 1, 17, 40, 63].contains(&page) {
            assert_eq!(code[i], CODE_GONE, "page {page}");
        } else {
            assert_eq!(code[i], CODE_OK, "page {page}");
            assert!(
                out[i * PAGE..(i + 1) * PAGE]
                    .iter()
                    .all(|&byte| byte == page as u8),
                "page {page}"
            );
        }
    }
}

#[test]
fn more_scattered_pages_than_one_call_takes_are_all_read() {
    let map = memory(2 * IOV_MAX + 10);
    let at: Vec<u64> = (0..2 * IOV_MAX + 10)
        .rev()
        .map(|page| map as u64 + (page * PAGE) as u64)
        .collect();
    let (mut out, mut code) = (vec![0; at.len() * PAGE], vec![99; at.len()]);
    me().read(&at, None, PAGE, &mut out, &mut code).unwrap();
    assert!(code.iter().all(|&code| code == CODE_OK));
    assert!(at
        .iter()
        .enumerate()
        .all(|(i, &at)| out[i * PAGE] == ((at - map as u64) / PAGE as u64) as u8));
}

#[test]
fn a_process_that_is_gone_has_no_page_and_one_of_no_address_fails_nobody_else() {
    // SAFETY: fork in a test; the child only exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: reaps the child just forked.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    let (mut out, mut code) = (vec![0; 2 * PAGE], vec![99; 2]);
    Source::Process(AddressSpace::open(child).unwrap())
        .read(&[4096, 8192], None, PAGE, &mut out, &mut code)
        .unwrap();
    assert_eq!(code, [CODE_GONE; 2]);
}

#[test]
fn reading_leaves_the_pages_of_a_fork_shared() {
    const PAGES: usize = 200;
    let map = memory(PAGES);
    // SAFETY: a fork whose child writes one page of its copy and waits to be killed, allocating nothing.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            map.add(7 * PAGE).write(99);
            loop {
                libc::pause();
            }
        }
    }
    let end = map as u64 + (PAGES * PAGE) as u64;
    let exclusive = || {
        let pagemap = File::open(format!("/proc/{child}/pagemap")).unwrap();
        let entries = pagemap::entries(pagemap.as_raw_fd(), &[map as u64], &[end]).unwrap();
        entries
            .iter()
            .filter(|&entry| entry & ENTRY_EXCLUSIVE != 0)
            .count()
    };
    while exclusive() == 0 {
        std::thread::yield_now();
    }
    let at: Vec<u64> = (map as u64..end).step_by(PAGE).collect();
    let (mut out, mut code) = (vec![0; PAGES * PAGE], vec![99; PAGES]);
    Source::Process(AddressSpace::open(child).unwrap())
        .read(&at, None, PAGE, &mut out, &mut code)
        .unwrap();
    let after = exclusive();
    // SAFETY: ends and reaps the child forked above.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    assert!(code.iter().all(|&code| code == CODE_OK));
    assert!((0..PAGES).all(|page| out[page * PAGE] == if page == 7 { 99 } else { page as u8 }));
    assert_eq!(
        after, 1,
        "only the page that the child has written is its own"
    );
}

#[test]
fn reading_huge_pages_leaves_what_a_child_shares_of_them_shared() {
    const PAGES: usize = 512;
    let bytes = PAGES * PAGE;
    // SAFETY: a fresh mapping with room for a whole huge page, written within its bounds.
    let map = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::mmap(std::ptr::null_mut(), 2 * bytes, prot, flags, -1, 0).cast::<u8>();
        let map = map.add(map.align_offset(bytes));
        libc::madvise(map.cast(), bytes, libc::MADV_HUGEPAGE);
        std::slice::from_raw_parts_mut(map, bytes).fill(7);
        map
    };
    let own = File::open("/proc/self/pagemap").unwrap();
    let at: Vec<u64> = (0..PAGES)
        .map(|i| (map as usize + i * PAGE) as u64)
        .collect();
    let all: Vec<usize> = (0..PAGES).collect();
    if hold::in_huge_pages(own.as_raw_fd(), &at, &all).unwrap() != all {
        println!("skipped: the kernel gave no huge page");
        return;
    }
    let mut ends = [0; 2];
    // SAFETY: a fork whose child writes the first page of its copy, says so, and waits to be killed.
    let child = unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        let child = libc::fork();
        if child == 0 {
            map.write(99);
            libc::write(ends[1], map.cast(), 1);
            loop {
                libc::pause();
            }
        }
        let mut said = 0u8;
        assert_eq!(libc::read(ends[0], (&raw mut said).cast(), 1), 1);
        libc::close(ends[0]);
        libc::close(ends[1]);
        child
    };
    let its = File::open(format!("/proc/{child}/pagemap")).unwrap();
    let shared = || {
        let holds = hold::holds(its.as_raw_fd(), &at).unwrap();
        hold::places(&holds, hold::SHARED).len()
    };
    let before = shared();
    let (mut out, mut code) = (vec![0; bytes], vec![99; PAGES]);
    me().read(&at, None, PAGE, &mut out, &mut code).unwrap();
    let after = shared();
    // SAFETY: ends and reaps the child forked above.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    assert!(code.iter().all(|&code| code == CODE_OK) && out.iter().all(|&byte| byte == 7));
    assert_eq!((before, after), (PAGES - 1, PAGES - 1));
}

#[test]
fn keys_are_those_of_the_bytes_whatever_the_source_and_the_threads() {
    let pages = 3 * CHUNK_BYTES / PAGE + 7;
    let map = memory(pages);
    // SAFETY: the mapping just made, not changed while the slice lives.
    let bytes = unsafe { std::slice::from_raw_parts(map, pages * PAGE) };
    let key = Key::from_seed(b"test of pagemem!");
    let expected: Vec<u64> = bytes
        .chunks(PAGE)
        .map(|page| {
            if keyhash::is_zero(page) {
                0
            } else {
                keyhash::hash64(&key, page)
            }
        })
        .collect();
    let zero = bytes.chunks(PAGE).map(|page| {
        if keyhash::is_zero(page) {
            CODE_ZERO
        } else {
            CODE_OK
        }
    });
    let expected_code: Vec<u8> = zero.collect();
    let at: Vec<u64> = (0..pages)
        .map(|page| map as u64 + (page * PAGE) as u64)
        .collect();
    let offsets: Vec<u64> = (0..pages).map(|page| (page * PAGE) as u64).collect();
    let path = std::env::temp_dir().join(format!("pagemem-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(bytes).unwrap();
    for threads in [1, 3] {
        let (mut keys, mut code) = (vec![1; pages], vec![99; pages]);
        keys_of(bytes, PAGE, &key, &mut keys, &mut code, threads);
        assert_eq!((&keys, &code), (&expected, &expected_code));
        for (source, at) in [(&me(), &at), (&Source::File(file.as_raw_fd()), &offsets)] {
            for keep in [false, true] {
                let (mut keys, mut code) = (vec![1; pages], vec![99; pages]);
                let mut kept = vec![0; if keep { pages * PAGE } else { 0 }];
                let keep = keep.then_some(&mut kept[..]);
                read_keys(source, at, PAGE, &key, &mut keys, &mut code, keep, threads).unwrap();
                assert_eq!((&keys, &code), (&expected, &expected_code));
                assert!(kept.is_empty() || kept == bytes);
            }
        }
    }
}

#[test]
fn a_file_that_ends_within_a_page_loses_that_page_only() {
    let path = std::env::temp_dir().join(format!("pagemem-short-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(&[7; 2 * PAGE + 100]).unwrap();
    let at: Vec<u64> = (0..4).map(|page| page * PAGE as u64).collect();
    let (mut out, mut code) = (vec![0; 4 * PAGE], vec![99; 4]);
    Source::File(file.as_raw_fd())
        .read(&at, None, PAGE, &mut out, &mut code)
        .unwrap();
    assert_eq!(code, [CODE_OK, CODE_OK, CODE_GONE, CODE_GONE]);
}

#[test]
fn one_different_byte_is_found_wherever_it_is() {
    let (map, twin) = (memory(100), memory(100));
    // SAFETY: within the mappings just made.
    unsafe {
        *map.add(3 * PAGE) ^= 1;
        *twin.add(5 * PAGE - 1) ^= 0x80;
    }
    forbid(map, 6);
    forbid(twin, 7);
    let at = |map: *mut u8| {
        (0..100)
            .rev()
            .map(|page| map as u64 + page * PAGE as u64)
            .collect::<Vec<_>>()
    };
    let mut verdict = [99; 100];
    compare((&me(), &at(map)), (&me(), &at(twin)), PAGE, &mut verdict).unwrap();
    verdict.reverse();
    assert_eq!(
        verdict[..8],
        [SAME, SAME, SAME, DIFFERENT, DIFFERENT, SAME, UNREADABLE, UNREADABLE]
    );
    assert_eq!(verdict[8..], [SAME; 92]);
}

#[test]
fn a_page_buffer_begins_on_a_page_boundary_whatever_its_size() {
    let mut buffer = PageBuffer::new();
    for len in [1, 100 * PAGE, 3, 1 << 20] {
        let lent = buffer.lend(len);
        assert_eq!((lent.len(), lent.as_ptr() as usize % PAGE), (len, 0));
    }
}

#[test]
fn a_directory_is_an_error_not_a_hole() {
    let directory = std::fs::File::open("/").unwrap();
    let (mut out, mut code) = (vec![0; PAGE], vec![99; 1]);
    assert!(Source::File(directory.as_raw_fd())
        .read(&[0], None, PAGE, &mut out, &mut code)
        .is_err());
}
