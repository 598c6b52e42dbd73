//! What a backend gets of a kernel: type-erased code and type-erased arguments.

use std::hash::{Hash, Hasher};
use std::ptr::NonNull;

use super::{Group, Mapping, Spirv};
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

/// What a kernel takes: what can be compared with a compiled form before anything runs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Takes {
    /// What it does with each buffer, and the bytes of its elements.
    pub buffers: [Option<(Access, u32)>; 8],
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
/// kernels, and cost no more than loading it twice.
#[derive(Clone, Copy, Debug)]
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
