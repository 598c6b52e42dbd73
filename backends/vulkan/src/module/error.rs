//! What can be wrong with a module, by name, with the remedy.

/// Why a module cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// The bytes are something else.
    #[error("it is no SPIR-V module: the first word is not its magic number; hand over the bytes of a compiled .spv file")]
    NotSpirv,
    /// Its words are big-endian.
    #[error("its words have the other byte order; write the module in little-endian order")]
    OtherByteOrder,
    /// An instruction goes on behind the end, or the last function is not closed.
    #[error("it is truncated: the instruction at word {word} has no end; compile it again or copy the file whole")]
    Truncated {
        /// Where that instruction begins.
        word: usize,
    },
    /// An instruction does not have the operands that it must have.
    #[error("it is broken: {0}; spirv-val says more")]
    Broken(String),
    /// It is of a version of SPIR-V that the device does not take.
    #[error("it is SPIR-V {}.{}, and the device takes up to {}.{}: compile it for vulkan1.2", .is.0, .is.1, .newest.0, .newest.1)]
    TooNew {
        /// Its version.
        is: (u32, u32),
        /// The device's.
        newest: (u32, u32),
    },
    /// No entry point has the name that the form says.
    #[error("it has no entry point `{wanted}`; it has: {there}. Name the right one with `Spirv::entry`")]
    NoEntry {
        /// The name.
        wanted: String,
        /// Those that there are.
        there: String,
    },
    /// The entry point is for another stage.
    #[error(
        "its entry point `{entry}` is for another stage ({stage}) than compute; compile a compute shader (glslc: .comp)"
    )]
    OtherStage {
        /// The entry point.
        entry: String,
        /// The stage.
        stage: &'static str,
    },
    /// It asks for something that the device lacks or that sterna does not switch on.
    #[error("it needs {name}, {why}")]
    Capability {
        /// What it needs.
        name: String,
        /// Why it is not there.
        why: &'static str,
    },
    /// Its workgroups are larger than the device's.
    #[error("its workgroups have {}×{}×{} invocations, and the device runs up to {most} in {most_local:?}; choose a smaller local size", .local[0], .local[1], .local[2])]
    Workgroup {
        /// Invocations in x, y and z.
        local: [u32; 3],
        /// The most that the device runs.
        most: u32,
        /// The most in each direction.
        most_local: [u32; 3],
    },
    /// Its bindings are not as many as the kernel has buffers.
    #[error(
        "it binds {bound} storage buffers ({list}), and the kernel has {declared} buffer parameters; parameter n is the n-th binding, in order of set and binding"
    )]
    Bindings {
        /// How many it has.
        bound: usize,
        /// Which.
        list: String,
        /// How many parameters the kernel has.
        declared: usize,
    },
    /// One binding does not fit.
    #[error("binding {set}.{binding}{name} {what}")]
    Binding {
        /// Its set.
        set: u32,
        /// Its number.
        binding: u32,
        /// Its name in backquotes, or nothing.
        name: String,
        /// What does not fit, and the remedy.
        what: String,
    },
    /// Its push constants, or its parameter block, do not fit the plain value.
    #[error("{0}")]
    Value(String),
    /// A specialisation constant that the form sets does not fit the module.
    #[error("specialisation constant {id} {what}")]
    Constant {
        /// Its id.
        id: u32,
        /// What does not fit.
        what: String,
    },
}
