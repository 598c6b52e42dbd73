//! The SPIR-V form of a kernel, and how it gets its arguments.
//!
//! A module has one entry point, `main`, of the compute stage. A workgroup of the dispatch is a group of the launch; the module
//! chooses its local size. All arguments arrive in push constants, laid out by the std430 rules; `backends/hal/glsl/sterna.glsl`
//! declares them for GLSL:
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

/// Bytes of push constants that a kernel may count on: what every Vulkan device has.
pub const PUSH: usize = 128;
/// Bytes of the part that every launch has.
pub const HEAD: usize = 24;
/// Bytes for each buffer.
pub const BUFFER: usize = 16;

/// How many specialisation constants a form may set, with the ids from 0 on.
pub const CONSTANTS: usize = 4;

/// A SPIR-V module as a form of a kernel.
///
/// Equality is by address of the code and by the constants.
#[derive(Clone, Copy, Debug)]
pub struct Spirv {
    /// The module: little-endian words.
    pub code: &'static [u8],
    /// Values of its specialisation constants 0 to 3. One that the module does not declare is ignored.
    pub constants: [u32; CONSTANTS],
    /// What the numbers in its status words mean. `{0}` and `{1}` stand for the details.
    pub complaints: &'static [&'static str],
}

impl Spirv {
    /// A form from a module, without constants or complaints.
    #[must_use]
    pub const fn new(code: &'static [u8]) -> Self {
        Self { code, constants: [0; CONSTANTS], complaints: &[] }
    }

    /// The form with its specialisation constants.
    #[must_use]
    pub const fn constants(mut self, constants: [u32; CONSTANTS]) -> Self {
        self.constants = constants;
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

    pub(super) fn key(&self) -> (usize, [u32; CONSTANTS]) {
        (self.code.as_ptr().addr(), self.constants)
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
