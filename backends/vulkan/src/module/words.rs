//! The words of a module: the header, and instructions one after the other.
//!
//! SPIR-V specification, section 2.3: five words of header, then instructions whose first word holds their length in words and
//! their opcode.

use super::ModuleError;

const MAGIC: u32 = 0x0723_0203;
const HEADER: usize = 5;

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instruction<'a> {
    pub(super) opcode: u32,
    pub(super) operands: &'a [u32],
}

/// A module's bytes as words, if it has a header and is made of whole words.
pub(super) fn words(code: &[u8]) -> Result<Vec<u32>, ModuleError> {
    let (chunks, rest) = code.as_chunks::<4>();
    let words: Vec<u32> = chunks.iter().map(|w| u32::from_le_bytes(*w)).collect();
    match words.first() {
        Some(&MAGIC) if words.len() >= HEADER => {}
        Some(m) if m.swap_bytes() == MAGIC => return Err(ModuleError::OtherByteOrder),
        _ => return Err(ModuleError::NotSpirv),
    }
    if rest.is_empty() { Ok(words) } else { Err(ModuleError::Truncated { word: words.len() }) }
}

/// The version that the header states: major and minor.
pub(super) fn version(words: &[u32]) -> (u32, u32) {
    let version = words.get(1).copied().unwrap_or(0);
    (version >> 16 & 0xFF, version >> 8 & 0xFF)
}

/// The instructions behind the header, up to the first that goes on behind the end.
pub(super) fn instructions(words: &[u32]) -> impl Iterator<Item = Result<Instruction<'_>, ModuleError>> {
    let mut at = HEADER;
    std::iter::from_fn(move || {
        let first = *words.get(at)?;
        let (length, opcode) = ((first >> 16) as usize, first & 0xFFFF);
        let next = at + length;
        let Some(operands) = words.get(at + 1..next).filter(|_| length > 0) else {
            let word = at;
            at = words.len();
            return Some(Err(ModuleError::Truncated { word }));
        };
        at = next;
        Some(Ok(Instruction { opcode, operands }))
    })
}

/// A literal string, and what follows it.
pub(super) fn string(operands: &[u32]) -> (String, &[u32]) {
    let bytes: Vec<u8> = operands.iter().flat_map(|w| w.to_le_bytes()).take_while(|b| *b != 0).collect();
    // The terminating zero is in the same word or has one of its own.
    let words = (bytes.len() / 4 + 1).min(operands.len());
    (String::from_utf8_lossy(&bytes).into_owned(), &operands[words..])
}
