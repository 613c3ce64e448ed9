//! The filter of what a process's core dumps hold, which leaves frames out unless it is changed.
//!
//! [`super::merge`] changes it before there are frames; [`super::attach`] and [`super::births`] put it back.

use crate::failpoints;

/// The filter of what a process's core dumps hold. Merged pages are pages of a private file mapping to the kernel, which
/// leaves such out unless told otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CoreDumps {
    /// Whether it has been seen to.
    looked: bool,
    before: Option<u64>,
}

const PRIVATE_FILE_MAPPINGS: u64 = 1 << 2;

impl CoreDumps {
    /// Before there are any: what a program starts that has none has the program's filter as it was.
    pub(super) fn include_frames(&mut self, pid: i32) {
        if std::mem::replace(&mut self.looked, true) || failpoints::active("dumps") {
            return;
        }
        let path = format!("/proc/{pid}/coredump_filter");
        let before = Self::read(&path).filter(|f| f & PRIVATE_FILE_MAPPINGS == 0);
        if let Some(f) = before {
            let _ = std::fs::write(&path, format!("{:#x}", f | PRIVATE_FILE_MAPPINGS));
        }
        self.before = before;
    }

    /// Takes the bit away again, if it was set by us and the program has not changed the filter since.
    pub(super) fn restore(self, pid: i32) {
        let path = format!("/proc/{pid}/coredump_filter");
        if let Some(f) = self.before {
            if Self::read(&path) == Some(f | PRIVATE_FILE_MAPPINGS) {
                let _ = std::fs::write(path, format!("{f:#x}"));
            }
        }
    }

    fn read(path: &str) -> Option<u64> {
        let text = std::fs::read_to_string(path).ok()?;
        u64::from_str_radix(text.trim(), 16).ok()
    }
}
