use ash::vk;
use proptest::prelude::*;
use sterna_hal::kernel::Takes;

use super::*;

fn can() -> Can {
    Can {
        api: vk::API_VERSION_1_3,
        max_invocations: 256,
        max_local: [256; 3],
        max_groups: [65535; 3],
        max_push: 128,
        max_uniform: 16384,
        max_storage: 128 << 20,
        max_sets: 4,
        storage_alignment: 16,
        ..Can::default()
    }
}

const PROBE: &[u8] = include_bytes!("../../../glsl/probe.spv");
const BOUND: &[u8] = include_bytes!("../../../tests/glsl/bound.spv");
const OLD: &[u8] = include_bytes!("../../../tests/glsl/old.spv");
const TABLE: &[u8] = include_bytes!("../../../tests/glsl/table.spv");
const PLACE: &[u8] = include_bytes!("../../../tests/glsl/place.spv");
const IMAGE: &[u8] = include_bytes!("../../../tests/glsl/image.spv");
const BYTES: &[u8] = include_bytes!("../../../tests/glsl/bytes.spv");
const FAR: &[u8] = include_bytes!("../../../tests/glsl/far.spv");
const ALL: [&[u8]; 8] = [PROBE, BOUND, OLD, TABLE, PLACE, IMAGE, BYTES, FAR];

const R: (Access, u32) = (Access::Read, 4);
const RW: (Access, u32) = (Access::ReadWrite, 4);
const W: (Access, u32) = (Access::Write, 4);

fn fits_in(code: &'static [u8], form: Spirv, buffers: &[(Access, u32)], value: usize, can: &Can) -> Result<Fitted, String> {
    let mut takes = Takes { value, ..Takes::default() };
    takes.buffers.iter_mut().zip(buffers).for_each(|(place, b)| *place = Some(*b));
    assert_eq!(code.as_ptr(), form.code.as_ptr());
    check(&Code { name: "test", rust: None, spirv: Some(form.clone()), takes }, &form, can).map_err(|e| e.to_string())
}

fn fits(code: &'static [u8], buffers: &[(Access, u32)], value: usize) -> Result<Fitted, String> {
    fits_in(code, Spirv::new(code), buffers, value, &can())
}

#[track_caller]
fn says(answer: Result<Fitted, String>, what: &str) {
    let answer = answer.expect_err("it does not fit");
    assert!(answer.contains(what), "{answer}");
}

/// A module that asks for another capability than the first it names.
fn asks_for(capability: u32) -> &'static [u8] {
    let mut other = BOUND.to_vec();
    assert_eq!(other[20..24], (2_u32 << 16 | 17).to_le_bytes());
    other[24..28].copy_from_slice(&capability.to_le_bytes());
    other.leak()
}

#[test]
fn good_modules_pass() {
    let probe = fits(PROBE, &[R, RW], 0).expect("by address");
    assert!(probe.descriptors.is_none() && probe.words.len() * 4 == PROBE.len());
    let bound = fits(BOUND, &[R, RW], 8).expect("by descriptor").descriptors.expect("bindings");
    assert_eq!((bound.buffers, bound.uniform, bound.push), (vec![(0, 0), (0, 2)], None, 8));
    let old = fits(OLD, &[R, W], 0).expect("buffer blocks").descriptors.expect("bindings");
    assert_eq!((old.buffers.as_slice(), old.sets()), (&[(0, 1), (2, 0)][..], 3));
    let table = fits(TABLE, &[W], 8192).expect("a uniform buffer").descriptors.expect("bindings");
    assert_eq!((table.buffers, table.uniform, table.push), (vec![(0, 0)], Some((1, 4)), 0));
    let place = fits(PLACE, &[(Access::Write, 8)], 0).expect("no value").descriptors.expect("bindings");
    assert!(place.counts_groups && !bound.counts_groups);
}

#[test]
fn what_is_no_whole_module_is_refused() {
    for (wrong, what) in [(&b""[..], "no SPIR-V"), (b"GIF89a, and then some", "no SPIR-V")] {
        says(fits(wrong, &[], 0), what);
    }
    let swapped: Vec<u8> = BOUND.chunks(4).flat_map(|w| w.iter().rev().copied()).collect();
    says(fits(swapped.leak(), &[R, RW], 8), "other byte order");
    // Wherever it is cut, it is noticed; but a cut between two functions is no cut.
    for length in (20..PROBE.len() - 4).step_by(2) {
        assert!(fits(PROBE[..length].to_vec().leak(), &[R, RW], 0).is_err(), "{length} bytes of {}", PROBE.len());
    }
    says(fits(&BOUND[..BOUND.len() - 40], &[R, RW], 8), "truncated");
    let mut newer = BOUND.to_vec();
    newer[5] = 9;
    says(fits(newer.leak(), &[R, RW], 8), "SPIR-V 1.9, and the device takes up to 1.6");
}

#[test]
fn another_stage_and_another_name_are_refused() {
    // The entry point's opcode with its length, then the execution model.
    let head =
        |code: &[u8]| (20..code.len()).step_by(4).find(|i| code[*i] == 15 && code[*i + 1] == 0).expect("an entry point");
    let at = head(BOUND);
    for (stage, name) in [(0_u8, "vertex"), (4, "fragment"), (6, "OpenCL"), (99, "unknown")] {
        let mut other = BOUND.to_vec();
        other[at + 4] = stage;
        says(fits(other.leak(), &[R, RW], 8), name);
    }
    says(fits_in(BOUND, Spirv::new(BOUND).entry("saxpy"), &[R, RW], 8, &can()), "no entry point `saxpy`; it has: `main`");
}

#[test]
fn missing_capabilities_have_names() {
    for (number, name) in
        [(11, "64-bit integers"), (63, "subgroup arithmetic"), (4442, "variable pointers"), (9, "16-bit floats")]
    {
        says(fits(asks_for(number), &[R, RW], 8), name);
    }
    says(fits(asks_for(6033), &[R, RW], 8), "AtomicFloat32AddEXT");
    says(fits(asks_for(31_337), &[R, RW], 8), "capability 31337");
    let all = Can { int64: true, subgroup: vk::SubgroupFeatureFlags::ARITHMETIC, ..can() };
    for number in [11, 63] {
        let code = asks_for(number);
        fits_in(code, Spirv::new(code), &[R, RW], 8, &all).expect("the device has it");
    }
}

#[test]
fn workgroups_beyond_the_device_are_refused() {
    let small = Can { max_invocations: 32, ..can() };
    says(fits_in(PROBE, Spirv::new(PROBE), &[R, RW], 0, &small), "64×1×1");
    says(fits_in(BYTES, Spirv::new(BYTES), &[RW], 196, &Can { max_local: [64, 2, 64], ..can() }), "8×4×1");
    // The size is a specialisation constant, and what was set counts.
    let form = |n| Spirv::new(BOUND).constant(3, n);
    fits_in(BOUND, form(256), &[R, RW], 8, &can()).expect("256 is right");
    says(fits_in(BOUND, form(257), &[R, RW], 8, &can()), "257×1×1");
    says(fits_in(BOUND, form(0), &[R, RW], 8, &can()), "0×1×1");
}

#[test]
fn bindings_must_be_the_kernels_buffers() {
    says(fits(BOUND, &[R], 8), "binds 2 storage buffers (0.0, 0.2), and the kernel has 1");
    says(fits(BOUND, &[R, RW, RW], 8), "the kernel has 3");
    says(fits(IMAGE, &[RW], 0), "binding 0.1 is no buffer");
    says(fits(BOUND, &[R, (Access::ReadWrite, 6)], 8), "elements of 4 bytes");
    fits(BOUND, &[(Access::Read, 16), (Access::ReadWrite, 8)], 8).expect("vectors of what the module has");
    says(fits_in(OLD, Spirv::new(OLD), &[R, W], 0, &Can { max_sets: 2, ..can() }), "binding 2.0 is in a set beyond");
}

#[test]
fn accesses_must_be_declared() {
    says(fits(BOUND, &[R, R], 8), "binding 0.2 is written, and parameter 1 is only read");
    says(fits(BOUND, &[R, W], 8), "binding 0.2 is read, and parameter 1 is replaced");
    says(fits(BOUND, &[W, RW], 8), "parameter 0 is replaced");
    says(fits(OLD, &[R, R], 0), "binding 2.0 is written");
    // More than is used does no harm.
    fits(BOUND, &[RW, RW], 8).expect("declared as changed, and only read");
    let module = Module::parse(OLD).unwrap();
    let seen: Vec<_> = module.bindings.iter().map(|b| (b.reads, b.writes)).collect();
    assert_eq!(seen, [(true, false), (false, true)]);
}

#[test]
fn the_value_must_fit() {
    says(fits(BOUND, &[R, RW], 4), "push constants have 8 bytes, and the plain value has 4");
    says(fits(BOUND, &[R, RW], 64), "and the plain value has 64");
    fits(BOUND, &[R, RW], 16).expect("padding at the end");
    says(fits(PLACE, &[(Access::Write, 8)], 4), "neither push constants nor a uniform buffer");
    says(fits_in(TABLE, Spirv::new(TABLE), &[W], 8192, &Can { max_uniform: 4096, ..can() }), "the device takes 4096");
    fits(FAR, &[W], 8192).expect("a block of its own");
    says(fits(PROBE, &[R, RW], 4096), "come in a block");
}

#[test]
fn constants_must_be_the_modules() {
    let made = fits_in(BOUND, Spirv::new(BOUND).constant(7, 0x4000_0000).constant(3, 64), &[R, RW], 8, &can()).unwrap();
    assert_eq!(made.data, [0, 0, 0, 0x40, 64, 0, 0, 0]);
    says(
        fits_in(BOUND, Spirv::new(BOUND).constant(1, 0), &[R, RW], 8, &can()),
        "constant 1 is set, and the module has 3, 7",
    );
    says(fits_in(BOUND, Spirv::new(BOUND).constant(7, 1 << 32), &[R, RW], 8, &can()), "has 32 bits");
    says(fits_in(OLD, Spirv::new(OLD).constant(7, 1), &[R, W], 0, &can()), "the module has none");
}

#[test]
fn sizes_of_blocks_follow_their_layout() {
    let module = Module::parse(BYTES).unwrap();
    assert_eq!(module.bindings[1].bytes, 196, "{module:?}");
    assert_eq!(module.entries[0].local, Some([8, 4, 1]));
    assert_eq!(Module::parse(TABLE).unwrap().bindings[1].bytes, 8192);
    assert_eq!(Module::parse(FAR).unwrap().push_constants, Some(32));
}

/// A good module, cut and with some words changed, mostly to what is likely to matter.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![any::<u32>(), 0_u32..600, (0_u32..40, 0_u32..400).prop_map(|(n, op)| n << 16 | op)];
    (
        0..ALL.len(),
        proptest::collection::vec((any::<proptest::sample::Index>(), word), 0..6),
        any::<proptest::sample::Index>(),
        any::<bool>(),
    )
        .prop_map(|(which, words, end, cut)| {
            let mut code = ALL[which].to_vec();
            for (at, word) in words {
                let at = at.index(code.len() / 4) * 4;
                code[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            if cut {
                code.truncate(end.index(code.len()));
            }
            code
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn damaged_modules_never_panic(code in damaged()) {
        if let Err(e) = Module::parse(&code) {
            prop_assert!(!e.to_string().is_empty());
        }
        // Reading twice gives the same.
        prop_assert_eq!(Module::parse(&code), Module::parse(&code));
    }
}
