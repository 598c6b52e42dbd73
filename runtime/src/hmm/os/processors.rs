//! On which processors threads run.

use std::fs::File;
use std::io::{Cursor, Write};
use std::os::unix::fs::FileExt;

/// A set of processors.
#[derive(Clone, Copy)]
pub(crate) struct Processors(libc::cpu_set_t);

impl Processors {
    /// Those that this thread may use; the first alone, if the system does not say.
    pub(crate) fn allowed() -> Self {
        let mut these = Self::none();
        // SAFETY: the kernel fills as much as said.
        let r = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut these.0) };
        if r == 0 { these } else { Self::one(0) }
    }

    fn none() -> Self {
        // SAFETY: plain old data for which all bits zero is the empty set.
        Self(unsafe { std::mem::zeroed() })
    }

    /// One; none, if its number is too large for a set.
    pub(crate) fn one(number: usize) -> Self {
        let mut this = Self::none();
        if number < libc::CPU_SETSIZE as usize {
            // SAFETY: the number is one of the set's.
            unsafe { libc::CPU_SET(number, &mut this.0) };
        }
        this
    }

    pub(crate) fn numbers(&self) -> Vec<usize> {
        // SAFETY: the numbers are the set's.
        (0..libc::CPU_SETSIZE as usize).filter(|&c| unsafe { libc::CPU_ISSET(c, &self.0) }).collect()
    }

    /// Keeps this thread on these, where the system allows it. Signal-safe.
    pub(crate) fn keep_this_thread(&self) {
        // SAFETY: the set is read only.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.0) };
    }
}

/// A thread of this process that can be asked where it runs.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    thread: u32,
    file: File,
}

impl Whereabouts {
    /// `None` where the system does not say. Allocates nothing.
    pub(crate) fn of(thread: u32) -> Option<Self> {
        let mut path = Cursor::new([0; 48]);
        write!(path, "/proc/self/task/{thread}/stat").ok()?;
        let end = path.position() as usize;
        let file = File::open(std::str::from_utf8(&path.get_ref()[..end]).ok()?).ok()?;
        Some(Self { thread, file: File::from(super::high(file.into()).ok()?) })
    }

    pub(crate) fn thread(&self) -> u32 {
        self.thread
    }

    /// Where it runs, or ran last; `None` once it has ended. Allocates nothing.
    pub(crate) fn processor(&self) -> Option<usize> {
        /// In `proc_pid_stat(5)`, counted from the field behind the name.
        const PROCESSOR: usize = 36;
        let mut text = [0; 1024];
        let n = self.file.read_at(&mut text, 0).ok()?;
        let name_ends = text[..n].iter().rposition(|&b| b == b')')?;
        let fields = std::str::from_utf8(&text[name_ends + 1..n]).ok()?;
        fields.split_ascii_whitespace().nth(PROCESSOR)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_found_where_it_is_kept() {
        std::thread::spawn(|| {
            let whereabouts = Whereabouts::of(super::super::thread_id() as u32).unwrap();
            for &n in &Processors::allowed().numbers() {
                Processors::one(n).keep_this_thread();
                assert_eq!(whereabouts.processor(), Some(n));
            }
        })
        .join()
        .unwrap();
        assert!(Whereabouts::of(u32::MAX).is_none());
    }
}
