//! What the code that carries out the rest of a transfer works on: one for each thread that runs it.

/// How many bytes a slot takes.
pub const SLOT_SIZE: u64 = 1024;
/// Buffers of a list that a slot has room for.
pub const SLOT_PIECES: usize = 12;

/// Nobody has used the slot.
pub const UNUSED: u64 = 0;
/// A thread runs the code, or a handler on top of it.
pub const BUSY: u64 = 1;
/// Its thread has left, and reads it no more.
pub const LEFT: u64 = 2;

/// Flag of `ways`: the program's own call is issued again as soon as the descriptor is ready.
pub const ISSUE_AGAIN: u64 = 1;
/// Flag of `ways`: where the descriptor has an error, what can still be read is read; the error stays the program's.
pub const KEEP_ERROR_READING: u64 = 2;
/// Flag of `ways`: where the descriptor has an error, that is the end; the error stays the program's.
pub const KEEP_ERROR: u64 = 4;

/// A slot as it lies in the target's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// One of [`UNUSED`], [`BUSY`], [`LEFT`].
    pub state: u64,
    /// The thread.
    pub tid: u64,
    /// What the program finds in the registers that the code uses; the architecture says which.
    pub saved: [u64; 9],
    /// Where the program goes on.
    pub back: u64,
    /// What the call returns to it.
    pub result: u64,
    /// Its signal mask.
    pub mask: u64,
    /// That while it waits.
    pub wait_mask: u64,
    /// A `struct pollfd`: descriptor (negative: there is none), events, what came.
    pub fd: i32,
    /// See `fd`.
    pub events: u16,
    /// See `fd`.
    pub came: u16,
    /// 1 if that descriptor is waited for, else 0.
    pub awaited: u64,
    /// Address of `timeout`, or 0: for ever.
    pub timeout_at: u64,
    /// A `struct timespec`, in which the kernel leaves the rest.
    pub timeout: [u64; 2],
    /// What is returned when it is over and nothing was done.
    pub on_timeout: u64,
    /// Number of the call that does some of the rest.
    pub call: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// A `struct iovec` for calls that take one.
    pub piece: [u64; 2],
    /// How much of the present buffer is left.
    pub left: u64,
    /// Most to be asked for at once.
    pub limit: u64,
    /// Offset of the word that grows by `scale` for each unit done.
    pub address_at: u64,
    /// Offset of the word that says how much is asked for.
    pub count_at: u64,
    /// See `address_at`.
    pub scale: u64,
    /// Buffers after the present one.
    pub pieces: u64,
    /// Where they are listed.
    pub next: u64,
    /// What has been done, the program's own call included.
    pub sum: u64,
    /// Flags.
    pub ways: u64,
    /// Nobody's.
    pub scratch: u64,
    /// Number of the program's own call.
    pub own_call: u64,
    /// Device and inode of the descriptor's file. Another thread may have closed it meanwhile, and have opened another
    /// under its number: nothing is done to that.
    pub file: [u64; 2],
    /// What the kernel says that they are (`struct stat`).
    pub status: [u64; 18],
    /// Room for a list of buffers.
    pub list: [[u64; 2]; SLOT_PIECES],
}

const _: () = assert!(std::mem::size_of::<Slot>() as u64 <= SLOT_SIZE);
const _: () = assert!(std::mem::size_of::<libc::stat>() <= 18 * 8);
