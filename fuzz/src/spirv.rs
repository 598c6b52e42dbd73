//! Modules in SPIR-V, as the Vulkan backend looks through them before a driver gets them.

use sterna::vulkan::module::{Module, ModuleError};

/// Reads a module.
///
/// # Panics
/// If the reader panics, an error has no text, reading twice gives two answers, or what is read contradicts itself.
pub fn run(data: &[u8]) {
    let read = Module::parse(data);
    assert_eq!(read, Module::parse(data), "another answer to the same bytes");
    let module = match read {
        Ok(module) => module,
        Err(e) => return assert!(!e.to_string().is_empty(), "an error without a text"),
    };
    let places: Vec<_> = module.bindings.iter().map(|b| (b.set, b.binding)).collect();
    assert!(places.is_sorted(), "bindings out of order: {places:?}");
    assert!(module.constants.windows(2).all(|c| c[0].id < c[1].id), "constants twice or out of order");
    // Bytes that are no whole word are noticed, whatever comes before them.
    let longer = [data, &[0]].concat();
    assert!(matches!(Module::parse(&longer), Err(ModuleError::Truncated { .. })), "an odd byte is not noticed");
    // Values of constants change sizes, and nothing else breaks.
    for value in [0, 1, u64::from(u32::MAX), u64::MAX] {
        let special = Module::specialised(data, |_| Some(value)).expect("the same module");
        assert_eq!(special.bindings.len(), module.bindings.len());
    }
}
