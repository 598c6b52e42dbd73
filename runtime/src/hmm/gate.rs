//! The gate: what `deref` asks before it hands out a reference.
//!
//! **Guarantee.** Whoever finds the gate open for reading sees every store of the launches that wrote, for writing also that those
//! that read have read; none of them is unfinished, and none has failed without saying so: a taint raises the gate before its
//! launch lowers it.
//!
//! **States**: two counts, of what keeps readers out and of what keeps writers out; open at zero. **Who may change them:** a launch
//! when it is recorded and when it retires; whoever taints and heals; in mode `none`, where no fault brings bytes home, whoever takes
//! bytes away, and `deref`, when it has brought them home. Atomic words, no lock.

use super::sync::{AtomicU32, Ordering};

/// See the module. All zero: open.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Gate {
    /// Unfinished launches that write the segment, and tainted ranges of it.
    writers: AtomicU32,
    /// Unfinished launches and moves that touch it, and tainted ranges of it.
    users: AtomicU32,
    /// Mode `none`: the device may have newer bytes (bit 0) or copies (bit 1). Each bit counts once in the words above, so that
    /// `deref` and `deref_mut` bring the bytes home.
    away: AtomicU32,
}

impl Gate {
    const NEWER: u32 = 1;
    const COPIES: u32 = 2;

    /// A launch is recorded, or a range is tainted: before anybody may rely on it.
    pub(crate) fn raise(&self, writes: bool) {
        if writes {
            self.writers.fetch_add(1, Ordering::AcqRel);
        }
        self.users.fetch_add(1, Ordering::AcqRel);
    }

    /// A launch has retired, with everything that its failure entails written down; or a range is healed.
    pub(crate) fn lower(&self, writes: bool) {
        self.users.fetch_sub(1, Ordering::AcqRel);
        if writes {
            self.writers.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Whether a reference to read may be handed out.
    #[inline]
    pub(crate) fn is_readable(&self) -> bool {
        self.writers.load(Ordering::Acquire) == 0
    }

    /// Whether a reference to write may be handed out.
    #[inline]
    pub(crate) fn is_writable(&self) -> bool {
        self.users.load(Ordering::Acquire) == 0
    }

    /// Mode `none`: a launch or a move takes copies to a device and, with `writes`, makes them newer than the host's.
    pub(crate) fn away(&self, writes: bool) {
        let bits = Self::COPIES | if writes { Self::NEWER } else { 0 };
        let new = bits & !self.away.fetch_or(bits, Ordering::AcqRel);
        if new & Self::NEWER != 0 {
            self.writers.fetch_add(1, Ordering::AcqRel);
        }
        if new & Self::COPIES != 0 {
            self.users.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Mode `none`: every byte of the segment is home, and with `exclusive` nowhere else.
    pub(crate) fn all_home(&self, exclusive: bool) {
        let bits = Self::NEWER | if exclusive { Self::COPIES } else { 0 };
        let old = bits & self.away.fetch_and(!bits, Ordering::AcqRel);
        if old & Self::NEWER != 0 {
            self.writers.fetch_sub(1, Ordering::AcqRel);
        }
        if old & Self::COPIES != 0 {
            self.users.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Open, whatever was before. Nobody uses it meanwhile.
    pub(crate) fn reset(&self) {
        for word in [&self.writers, &self.users, &self.away] {
            word.store(0, Ordering::Relaxed);
        }
    }
}
