//! Which files there are: folders walked from open descriptors, no link followed, no other mount entered, nothing but
//! regular files kept.
//!
//! A folder that becomes a link, or goes elsewhere, while it is walked leads nowhere: each is opened from its root in
//! one `openat2` that refuses links, other mounts and ways out. A file counts once, however many names it has.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::control::{Control, Stopped};
use crate::sys::{self, Stamp, Status};

/// What can be done on a file system, and how it frees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It cannot share extents.
    CannotShare,
    /// A block is free when nothing refers to it (XFS).
    FreesBlocks,
    /// An extent is free when nothing refers to any part of it (btrfs).
    FreesExtents,
}

/// Where a walk begins.
#[derive(Debug)]
pub struct Root {
    /// A folder or a file, opened with `O_PATH`.
    pub fd: OwnedFd,
    /// Number of its file system: only files of one are compared.
    pub fs: u32,
    /// What that can do.
    pub kind: Kind,
}

struct Folder {
    root: u32,
    /// The folder above, or [`TOP`].
    parent: u32,
    name: Box<[u8]>,
}

const TOP: u32 = u32::MAX;

/// One file.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    folder: u32,
    name: u64,
    name_len: u16,
    /// Who it is, and its times when it was listed.
    pub stamp: Stamp,
    /// Owner.
    pub uid: u32,
    /// Bytes allocated, in units of 512.
    pub blocks: u64,
}

/// What was met and not kept, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Skipped {
    /// Further names of files that are there.
    pub hard_links: u64,
    /// Symbolic links.
    pub links: u64,
    /// Sockets, pipes, devices.
    pub special: u64,
    /// Files without bytes.
    pub empty: u64,
    /// Files smaller than asked for.
    pub small: u64,
    /// Other mounts.
    pub mounts: u64,
    /// Folders and files that the caller may not look at.
    pub denied: u64,
    /// Gone or replaced while it was walked.
    pub gone: u64,
    /// Failed otherwise.
    pub failed: u64,
}

/// The files found.
#[derive(Default)]
pub struct Files {
    roots: Vec<Root>,
    folders: Vec<Folder>,
    names: Vec<u8>,
    /// The files.
    pub rows: Vec<Row>,
    /// What was not kept.
    pub skipped: Skipped,
    seen: HashSet<(u64, u64)>,
    folders_seen: HashSet<(u64, u64)>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files")
            .field("rows", &self.rows.len())
            .finish_non_exhaustive()
    }
}

/// A file open for reading; what was not in the page cache before is not left there.
#[derive(Debug)]
pub struct Opened {
    fd: OwnedFd,
    cold: bool,
    /// As it is now.
    pub status: Status,
}

impl Opened {
    /// Its descriptor.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Whether it still is as it was when it was opened.
    pub fn is_unchanged(&self) -> bool {
        sys::status(self.fd(), c"").is_ok_and(|now| now.stamp == self.status.stamp)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.cold {
            sys::forget(self.fd());
        }
    }
}

impl Files {
    /// Walks folders, takes files. `smallest`: bytes of a file at least; `leave`: inodes to be left out.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn walk(
        roots: Vec<Root>,
        smallest: u64,
        leave: &[(u64, u64)],
        control: &Control,
    ) -> Result<Files, Stopped> {
        let mut files = Files {
            roots,
            ..Files::default()
        };
        files.seen.extend(leave);
        for root in 0..files.roots.len() {
            let top = files.folders.len();
            files.folders.push(Folder {
                root: root as u32,
                parent: TOP,
                name: Box::default(),
            });
            let fd = files.roots[root].fd.as_raw_fd();
            match sys::status(fd, c"") {
                Ok(status) if status.is_file() => files.take(top as u32, b"", &status, smallest),
                Ok(status) if status.is_folder() => {
                    // The list grows while it is gone through.
                    let mut at = top;
                    while at < files.folders.len() {
                        if let Err(error) = files.folder(at as u32, smallest) {
                            files.count_error(&error);
                        }
                        control.begin(files.rows.len() as u64);
                        if control.is_stopped() {
                            return Err(Stopped);
                        }
                        at += 1;
                    }
                }
                Ok(_) => files.skipped.special += 1,
                Err(error) => files.count_error(&error),
            }
        }
        files.folders_seen = HashSet::new();
        files.seen = HashSet::new();
        Ok(files)
    }

    fn folder(&mut self, at: u32, smallest: u64) -> io::Result<()> {
        let root = self.roots[self.folders[at as usize].root as usize]
            .fd
            .as_raw_fd();
        let path = self.folder_path(at);
        let look = sys::open_beneath(root, &path, libc::O_PATH | libc::O_DIRECTORY)?;
        let status = sys::status(look.as_raw_fd(), c"")?;
        if !self
            .folders_seen
            .insert((status.stamp.dev, status.stamp.ino))
        {
            return Ok(());
        }
        let folder = sys::reopen(look.as_raw_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?;
        let mut entries: Vec<(u8, CString)> = Vec::new();
        sys::entries(folder.as_raw_fd(), |kind, name| {
            entries.push((kind, name.to_owned()))
        })?;
        for (kind, name) in entries {
            match kind {
                libc::DT_DIR => self.add_folder(at, &name),
                libc::DT_LNK => self.skipped.links += 1,
                libc::DT_REG | libc::DT_UNKNOWN => match sys::status(folder.as_raw_fd(), &name) {
                    Ok(status) if status.mount_root => self.skipped.mounts += 1,
                    Ok(status) if status.is_file() => {
                        self.take(at, name.to_bytes(), &status, smallest);
                    }
                    Ok(status) if status.is_folder() => self.add_folder(at, &name),
                    Ok(_) => self.skipped.special += 1,
                    Err(error) => self.count_error(&error),
                },
                _ => self.skipped.special += 1,
            }
        }
        Ok(())
    }

    fn add_folder(&mut self, parent: u32, name: &CStr) {
        self.folders.push(Folder {
            root: self.folders[parent as usize].root,
            parent,
            name: name.to_bytes().into(),
        });
    }

    fn take(&mut self, folder: u32, name: &[u8], status: &Status, smallest: u64) {
        let stamp = status.stamp;
        if stamp.size == 0 {
            self.skipped.empty += 1;
        } else if stamp.size < smallest {
            self.skipped.small += 1;
        } else if !self.seen.insert((stamp.dev, stamp.ino)) {
            self.skipped.hard_links += 1;
        } else {
            self.rows.push(Row {
                folder,
                name: self.names.len() as u64,
                name_len: name.len() as u16,
                stamp,
                uid: status.uid,
                blocks: status.blocks,
            });
            self.names.extend_from_slice(name);
        }
    }

    fn count_error(&mut self, error: &io::Error) {
        match error.raw_os_error() {
            Some(libc::EXDEV) => self.skipped.mounts += 1,
            Some(libc::EACCES | libc::EPERM) => self.skipped.denied += 1,
            Some(libc::ENOENT | libc::ELOOP | libc::ENOTDIR | libc::ESTALE) => {
                self.skipped.gone += 1
            }
            _ => self.skipped.failed += 1,
        }
    }

    fn folder_path(&self, at: u32) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = at;
        while at != TOP {
            names.push(&self.folders[at as usize].name);
            at = self.folders[at as usize].parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev().filter(|name| !name.is_empty()) {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        path
    }

    fn root_of(&self, file: u32) -> &Root {
        let folder = self.rows[file as usize].folder;
        &self.roots[self.folders[folder as usize].root as usize]
    }

    /// Where it lies below the root of this number; empty for the root itself.
    pub fn path(&self, file: u32) -> (u32, Vec<u8>) {
        let row = &self.rows[file as usize];
        let mut path = self.folder_path(row.folder);
        if row.name_len > 0 && !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&self.names[row.name as usize..][..row.name_len as usize]);
        (self.folders[row.folder as usize].root, path)
    }

    /// What the file system of a file can do.
    pub fn kind(&self, file: u32) -> Kind {
        self.root_of(file).kind
    }

    /// Number of the file system of a file.
    pub fn fs(&self, file: u32) -> u32 {
        self.root_of(file).fs
    }

    /// Opens a file for reading, if its name still stands for the inode that was listed. What is no regular file is
    /// never opened: the kernel is asked what it is first.
    ///
    /// # Errors
    /// The kernel's; `ESTALE` if it is another file now.
    pub fn open(&self, file: u32) -> io::Result<Opened> {
        let (root, path) = self.path(file);
        let root = self.roots[root as usize].fd.as_raw_fd();
        let look;
        let at = if path.is_empty() {
            root
        } else {
            look = sys::open_beneath(root, &path, libc::O_PATH)?;
            look.as_raw_fd()
        };
        let status = sys::status(at, c"")?;
        let listed = self.rows[file as usize].stamp;
        if !status.is_file() || (status.stamp.dev, status.stamp.ino) != (listed.dev, listed.ino) {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        let fd = sys::reopen(at, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY)?;
        Ok(Opened {
            cold: sys::is_cold(fd.as_raw_fd()),
            fd,
            status,
        })
    }

    /// As [`Files::open`], if the file has not been written either since it was listed.
    ///
    /// # Errors
    /// As [`Files::open`]; `ESTALE` if it has been written.
    pub fn open_unchanged(&self, file: u32) -> io::Result<Opened> {
        let opened = self.open(file)?;
        if opened.status.stamp != self.rows[file as usize].stamp {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        Ok(opened)
    }
}

/// Files open at a time, the latest few.
pub struct OpenFiles<'a> {
    files: &'a Files,
    open: Vec<(u32, Opened)>,
    next: usize,
}

/// Files that [`OpenFiles`] keeps.
const KEPT: usize = 16;

impl<'a> OpenFiles<'a> {
    /// None yet.
    pub fn new(files: &'a Files) -> Self {
        OpenFiles {
            files,
            open: Vec::new(),
            next: 0,
        }
    }

    /// The file, opened unless it is; with `unchanged`, only if it has not been written since it was listed.
    ///
    /// # Errors
    /// As [`Files::open`].
    pub fn get(&mut self, file: u32, unchanged: bool) -> io::Result<&Opened> {
        let at = self.slot(file, unchanged, KEPT)?;
        Ok(&self.open[at].1)
    }

    /// Two files at once.
    ///
    /// # Errors
    /// As [`Files::open`].
    pub fn pair(&mut self, one: u32, other: u32) -> io::Result<(&Opened, &Opened)> {
        let one = self.slot(one, false, KEPT)?;
        let other = self.slot(other, false, one)?;
        Ok((&self.open[one].1, &self.open[other].1))
    }

    /// Where the file is, opened unless it is; not in the place of `stays`.
    fn slot(&mut self, file: u32, unchanged: bool, stays: usize) -> io::Result<usize> {
        if let Some(at) = self.open.iter().position(|&(which, _)| which == file) {
            return Ok(at);
        }
        let opened = if unchanged {
            self.files.open_unchanged(file)?
        } else {
            self.files.open(file)?
        };
        if self.open.len() < KEPT {
            self.open.push((file, opened));
            return Ok(self.open.len() - 1);
        }
        self.next = (self.next + 1) % KEPT;
        if self.next == stays {
            self.next = (self.next + 1) % KEPT;
        }
        self.open[self.next] = (file, opened);
        Ok(self.next)
    }
}
