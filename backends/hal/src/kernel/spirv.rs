//! The SPIR-V form of a kernel, and how it gets its arguments.
//!
//! A module has an entry point of the compute stage, `main` unless [`Spirv::entry`] says otherwise. A workgroup of the dispatch is
//! a group of the launch; the module chooses its local size. There are two ways for arguments to arrive, and the module's own
//! capabilities say which it takes.
//!
//! # By address
//!
//! A module with the capability `PhysicalStorageBufferAddresses` gets everything in push constants, laid out by the std430 rules;
//! `backends/hal/glsl/sterna.glsl` declares them for GLSL:
//!
//! | offset | what |
//! |---|---|
//! | 0 | `first`, `end`: the linear numbers of the groups that this dispatch runs. Workgroup *w* (linear, x fastest) is group `first + w`; it does nothing if that is not below `end` |
//! | 8 | the launch's whole grid: x, and y in the low half of a word with z in the high half |
//! | 16 | the address of the status words |
//! | 24 | for each buffer: its address (8 bytes), its length and its chunk in elements (4 bytes each) |
//! | then | the plain value |
//!
//! If that is more than [`PUSH`] bytes, offset 24 holds the address of a block in device memory that has the buffers from its
//! offset 0 on, and the plain value behind them.
//!
//! **Status words.** Three 32-bit words, 0 at first. A module that finds its arguments wrong (buffers whose lengths do not belong
//! together, an index beyond a buffer) stores the number of a complaint, counted from 1, into the first, and details into
//! the other two; the launch then ends as [`Refused`](crate::KernelError::Refused).
//!
//! # By descriptor
//!
//! Any other module gets its buffers as storage buffers, the way most Vulkan programs write them. Parameter *n* is the *n*-th
//! binding in order of set and binding; which numbers are used is the module's choice. The plain value goes where the module
//! wants it: into its push constants, or into its one uniform buffer, which may be as long as the device takes. `gl_WorkGroupID`
//! and `gl_NumWorkGroups` are those of the launch. Such a module has no status words: it cannot refuse its arguments.

use super::Held;

/// Bytes of push constants that a kernel may count on: what every Vulkan device has.
pub const PUSH: usize = 128;
/// Bytes of the part that every launch has.
pub const HEAD: usize = 24;
/// Bytes for each buffer.
pub const BUFFER: usize = 16;

/// How many specialisation constants a form may set.
pub const CONSTANTS: usize = 8;

/// Values of specialisation constants, by id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Constants {
    list: [(u32, u64); CONSTANTS],
    count: usize,
}

impl Constants {
    const NONE: Self = Self { list: [(0, 0); CONSTANTS], count: 0 };

    /// Ids and values, in the order in which they were set.
    #[must_use]
    pub fn as_slice(&self) -> &[(u32, u64)] {
        &self.list[..self.count]
    }

    /// The value that was set for `id`.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<u64> {
        self.as_slice().iter().find(|c| c.0 == id).map(|c| c.1)
    }
}

/// A SPIR-V module as a form of a kernel.
///
/// A module that is part of the program is given by reference ([`new`](Self::new)); one that is made or read at run time is owned
/// ([`owned`](Self::owned)), and devices unload it once no kernel has it any more.
///
/// Equality is by address of the code, by entry point and by the constants.
#[derive(Clone, Debug)]
pub struct Spirv {
    /// The module: little-endian words.
    pub code: Held<[u8]>,
    /// The name of its entry point.
    pub entry: Held<str>,
    /// Values of its specialisation constants.
    pub constants: Constants,
    /// What the numbers in its status words mean. `{0}` and `{1}` stand for the details.
    pub complaints: &'static [&'static str],
}

impl Spirv {
    /// A form from a module whose entry point is `main`, without constants or complaints.
    #[must_use]
    pub const fn new(code: &'static [u8]) -> Self {
        Self { code: Held::of_static(code), entry: Held::of_static("main"), constants: Constants::NONE, complaints: &[] }
    }

    /// As [`new`](Self::new), of a module that the program has made or read: a `Vec<u8>` or an `Arc<[u8]>`.
    ///
    /// Every clone of the form, and of a kernel made with it, shares the module. When the last one is gone, a device that has
    /// loaded the module unloads it, at the latest when it loads another one.
    ///
    /// ```
    /// use sterna_hal::kernel::Spirv;
    /// let module: Vec<u8> = vec![3, 2, 35, 7]; // std::fs::read("kernel.spv")?
    /// let form = Spirv::owned(module).entry(String::from("step"));
    /// assert_eq!((form.code.len(), &*form.entry), (4, "step"));
    /// ```
    #[must_use]
    pub fn owned(code: impl Into<Held<[u8]>>) -> Self {
        Self { code: code.into(), ..Self::new(&[]) }
    }

    /// The form with another entry point: a `&'static str`, a `String` or an `Arc<str>`.
    #[must_use]
    pub fn entry(mut self, name: impl Into<Held<str>>) -> Self {
        self.entry = name.into();
        self
    }

    /// A clone for whoever keeps loaded code: it is equal, keeps the module where it is, and does not count as a user of it.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { code: self.code.detached(), ..self.clone() }
    }

    /// The form with a value for the specialisation constant with this id: a number as its bits, a boolean as 0 or 1.
    ///
    /// ```
    /// use sterna_hal::kernel::Spirv;
    /// const FORM: Spirv = Spirv::new(&[]).constant(0, 256).constant(3, 0.5_f32.to_bits() as u64);
    /// assert_eq!(FORM.constants.get(0), Some(256));
    /// ```
    ///
    /// # Panics
    /// At more than [`CONSTANTS`] of them, or if `id` has a value.
    #[must_use]
    pub const fn constant(mut self, id: u32, value: u64) -> Self {
        let mut i = 0;
        while i < self.constants.count {
            assert!(self.constants.list[i].0 != id, "a specialisation constant is set once");
            i += 1;
        }
        assert!(i < CONSTANTS, "at most 8 specialisation constants can be set");
        self.constants.list[i] = (id, value);
        self.constants.count += 1;
        self
    }

    /// The form with the meaning of its status words.
    #[must_use]
    pub const fn complaints(mut self, complaints: &'static [&'static str]) -> Self {
        self.complaints = complaints;
        self
    }

    /// What status words stand for.
    #[must_use]
    pub fn complaint(&self, [code, a, b]: [u32; 3]) -> String {
        match (code as usize).checked_sub(1).and_then(|i| self.complaints.get(i)) {
            Some(text) => text.replace("{0}", &a.to_string()).replace("{1}", &b.to_string()),
            None => format!("complaint {code} ({a}, {b})"),
        }
    }

    pub(super) fn key(&self) -> (usize, &str, &[(u32, u64)]) {
        (self.code.as_ptr().addr(), &self.entry, self.constants.as_slice())
    }

    /// What two forms that do the same have in common, wherever their modules lie.
    pub(super) fn contents(&self) -> impl Eq + std::hash::Hash + '_ {
        (&*self.code, &*self.entry, self.constants.as_slice(), self.complaints)
    }
}

/// Whether arguments of so many buffers and so long a plain value are passed in a block of their own.
#[must_use]
pub const fn spills(buffers: usize, value: usize) -> bool {
    HEAD + BUFFER * buffers + value > PUSH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_have_their_details() {
        let form = Spirv::new(&[]).complaints(&["{0} of {1}"]);
        assert_eq!(form.complaint([1, 7, 9]), "7 of 9");
        assert_eq!(form.complaint([2, 7, 9]), "complaint 2 (7, 9)");
    }

    #[test]
    fn what_does_not_fit_spills() {
        assert!(!spills(5, 24) && spills(5, 25) && spills(7, 0) && !spills(6, 8));
    }
}
