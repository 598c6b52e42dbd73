//! What a backend gets of a kernel: type-erased code and type-erased arguments.

use std::hash::{Hash, Hasher};
use std::ptr::NonNull;

use super::held::Watch;
use super::{Group, Held, Mapping, Spirv};
use crate::Access;

/// A kernel loaded on one device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KernelId(pub u32);

/// An argument as a Rust form gets it.
#[derive(Clone, Copy, Debug)]
pub enum RawArg<'a> {
    /// A buffer in this process.
    Buffer {
        /// Its first byte.
        at: NonNull<u8>,
        /// Its length in bytes.
        bytes: u64,
        /// Which of its elements each group gets.
        mapping: Mapping,
    },
    /// The plain value.
    Plain(&'a [u8]),
}

/// A Rust form with its types erased: runs one group.
///
/// # Safety
/// The arguments are those of the kernel that the form was made for: the plain value first, then the buffers in order, each
/// valid for its parameter's access, and no group runs twice at the same time.
pub type RustForm = unsafe fn(group: Group, args: &[RawArg<'_>]);

/// Buffers that a kernel takes at most.
pub const MOST_BUFFERS: usize = 8;

/// What a kernel takes: what can be compared with a compiled form before anything runs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Takes {
    /// What it does with each buffer, and the bytes of its elements.
    pub buffers: [Option<(Access, u32)>; MOST_BUFFERS],
    /// Bytes of the plain value.
    pub value: usize,
}

impl Takes {
    /// How many buffers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.buffers.iter().flatten().count()
    }
}

/// A kernel's code, in the forms that it has.
///
/// PTX joins as a field of its own with the backend that runs it.
///
/// Equality is by name and by address of the code. Two addresses of one function, which a compiler may make, count as two
/// kernels, and cost no more than loading it twice. [`Contents`] compares modules byte by byte.
#[derive(Clone, Debug)]
pub struct Code {
    /// The kernel's name.
    pub name: &'static str,
    /// The form that runs on the CPU device.
    pub rust: Option<RustForm>,
    /// The form that runs on Vulkan devices.
    pub spirv: Option<Spirv>,
    /// What every form takes.
    pub takes: Takes,
}

/// A form of code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Form {
    /// A Rust function.
    Rust,
    /// A SPIR-V module.
    Spirv,
}

impl Code {
    /// Whether it has this form.
    #[must_use]
    pub fn has(&self, form: Form) -> bool {
        match form {
            Form::Rust => self.rust.is_some(),
            Form::Spirv => self.spirv.is_some(),
        }
    }

    /// A clone for whoever keeps loaded code: it is equal, keeps a module that is owned where it is, and does not count as a user
    /// of it.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { spirv: self.spirv.as_ref().map(Spirv::detached), ..self.clone() }
    }

    /// Tells later whether nobody has the code any more, and nobody can have it again. Never of code that is part of the program.
    #[must_use]
    pub fn watch(&self) -> Watch<[u8]> {
        self.spirv.as_ref().map_or_else(|| Held::of_static(&[] as &[u8]).watch(), |s| s.code.watch())
    }

    fn key(&self) -> impl Eq + '_ {
        (self.name, self.rust.map_or(0, |f| f as usize), self.spirv.as_ref().map(Spirv::key))
    }
}

impl PartialEq for Code {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key() && self.takes == other.takes
    }
}

impl Eq for Code {}

impl Hash for Code {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Of what is compared, as little as keeps kernels apart: every launch looks its kernel up.
        (self.rust.map_or(0, |f| f as usize), self.spirv.as_ref().map_or(0, |s| s.code.as_ptr().addr())).hash(state);
        self.spirv.iter().for_each(|s| s.constants.as_slice().hash(state));
    }
}

/// Code compared and hashed by what it is, not by where it lies: modules that are equal byte by byte are one kernel.
#[derive(Clone, Debug)]
pub struct Contents(pub Code);

impl Contents {
    fn key(&self) -> impl Eq + Hash + '_ {
        let Code { name, rust, spirv, takes } = &self.0;
        (*name, rust.map_or(0, |f| f as usize), spirv.as_ref().map(Spirv::contents), takes.value)
    }
}

impl PartialEq for Contents {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key() && self.0.takes == other.0.takes
    }
}

impl Eq for Contents {}

impl Hash for Contents {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{BuildHasher, RandomState};

    fn code(spirv: Spirv) -> Code {
        Code { name: "test", rust: None, spirv: Some(spirv), takes: Takes::default() }
    }

    #[test]
    fn equal_modules_at_two_places_are_equal_by_contents_only() {
        let module = || Spirv::owned(vec![1, 2, 3, 4]);
        let (a, b) = (code(module()), code(module()));
        assert_ne!(a, b);
        assert_eq!(a, a.detached());
        let hasher = RandomState::new();
        let (a, b, other) = (Contents(a), Contents(b), Contents(code(module().constant(0, 7))));
        assert_eq!((&a, hasher.hash_one(&a)), (&b, hasher.hash_one(&b)));
        assert_ne!(a, other);
    }
}
