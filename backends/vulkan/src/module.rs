//! What a SPIR-V module says of itself, read before a driver sees it: drivers crash on modules that are broken.
//!
//! The binary form is that of the SPIR-V specification, section 2.3: a header of five words, then instructions whose first word
//! holds their length and their opcode.

use crate::gpu::Can;

const MAGIC: u32 = 0x0723_0203;

/// Looks whether a module is whole, has an entry point `main` for compute, takes its arguments as it must, and asks for nothing
/// that the device lacks.
pub(crate) fn check(code: &[u8], can: &Can) -> Result<Vec<u32>, String> {
    let (chunks, rest) = code.as_chunks::<4>();
    let words: Vec<u32> = chunks.iter().map(|w| u32::from_le_bytes(*w)).collect();
    if words.len() < 5 || words[0] != MAGIC {
        return Err("it is no SPIR-V module (the first word is not its magic number)".into());
    }
    let version = words[1];
    let newest = if can.api >= ash::vk::API_VERSION_1_3 { 0x0001_0600 } else { 0x0001_0500 };
    if version > newest {
        return Err(format!(
            "it is SPIR-V {}.{}, and the device takes up to {}.{}: compile it for vulkan1.2",
            version >> 16,
            version >> 8 & 0xFF,
            newest >> 16,
            newest >> 8 & 0xFF
        ));
    }
    let truncated = || Err("it is truncated: its last instruction goes on behind its end".to_string());
    if !rest.is_empty() {
        return truncated();
    }
    let (mut at, mut entry, mut has_function) = (5, None, false);
    while at < words.len() {
        let (length, opcode) = ((words[at] >> 16) as usize, words[at] & 0xFFFF);
        if length == 0 || at + length > words.len() {
            return truncated();
        }
        let operands = &words[at + 1..at + length];
        match (opcode, operands) {
            (OP_CAPABILITY, [capability, ..]) => capable(*capability, can)?,
            (OP_ENTRY_POINT, [model, id, name @ ..]) if string(name) == "main" => {
                if *model != MODEL_COMPUTE {
                    return Err("its entry point `main` is for another stage than compute".into());
                }
                entry = Some(*id);
            }
            (OP_EXECUTION_MODE, [id, MODE_LOCAL_SIZE, x, y, z, ..]) if Some(*id) == entry => {
                let size = [*x, *y, *z];
                let all = size.iter().try_fold(1_u32, |n, s| n.checked_mul(*s)).unwrap_or(u32::MAX);
                if all > can.max_invocations || size.iter().zip(can.max_local).any(|(s, m)| *s > m) {
                    return Err(format!(
                        "its workgroups have {x}×{y}×{z} invocations, and the device runs up to {} in {:?}",
                        can.max_invocations, can.max_local
                    ));
                }
            }
            (OP_DECORATE, [_, DECORATION_BINDING, ..]) => {
                return Err("it uses descriptor bindings; pass buffers by address, as sterna.glsl does".into());
            }
            (OP_FUNCTION_END, _) => has_function = true,
            _ => {}
        }
        at += length;
    }
    match entry {
        None => Err("it has no entry point `main`".into()),
        Some(_) if !has_function => truncated(),
        Some(_) => Ok(words),
    }
}

const OP_ENTRY_POINT: u32 = 15;
const OP_EXECUTION_MODE: u32 = 16;
const OP_CAPABILITY: u32 = 17;
const OP_FUNCTION_END: u32 = 56;
const OP_DECORATE: u32 = 71;
const MODEL_COMPUTE: u32 = 5;
const MODE_LOCAL_SIZE: u32 = 17;
const DECORATION_BINDING: u32 = 33;

fn string(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|w| w.to_le_bytes()).take_while(|b| *b != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}

/// Numbers of capabilities: SPIR-V specification, section 3.31.
fn capable(capability: u32, can: &Can) -> Result<(), String> {
    let (there, name) = match capability {
        // Matrix, Shader, PhysicalStorageBufferAddresses
        0 | 1 | 5347 => return Ok(()),
        9 => (can.float16, "16-bit floats"),
        10 => (can.float64, "64-bit floats"),
        11 => (can.int64, "64-bit integers"),
        12 => (can.int64_atomics, "64-bit atomic operations"),
        22 => (can.int16, "16-bit integers"),
        39 => (can.int8, "8-bit integers"),
        4433 => (can.storage16, "16-bit storage"),
        4448 => (can.storage8, "8-bit storage"),
        other => return Err(format!("it asks for capability {other}, which sterna does not enable")),
    };
    if there { Ok(()) } else { Err(format!("it needs {name}, which the device does not have")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn can() -> Can {
        Can {
            api: ash::vk::API_VERSION_1_3,
            max_invocations: 256,
            max_local: [256; 3],
            max_groups: [65535; 3],
            ..Can::default()
        }
    }

    const GOOD: &[u8] = include_bytes!("../glsl/probe.spv");

    #[test]
    fn a_good_module_passes() {
        assert_eq!(check(GOOD, &can()).map(|w| w.len() * 4), Ok(GOOD.len()));
    }

    #[test]
    fn broken_modules_are_refused() {
        let says = |code: &[u8], what: &str| {
            let answer = check(code, &can()).expect_err("it is broken");
            assert!(answer.contains(what), "{answer}");
        };
        says(b"", "no SPIR-V");
        says(b"GIF89a, and then some", "no SPIR-V");
        // Wherever it is cut, it is noticed; but a cut between two functions is no cut.
        for length in (20..GOOD.len() - 4).step_by(2) {
            assert!(check(&GOOD[..length], &can()).is_err(), "{length} bytes of {}", GOOD.len());
        }
        let mut other = GOOD.to_vec();
        other[5] = 9;
        says(&other, "SPIR-V 1.9");
    }

    #[test]
    fn limits_are_looked_at() {
        let small = Can { max_invocations: 32, ..can() };
        assert!(check(GOOD, &small).unwrap_err().contains("64×1×1"));
    }
}
