//! What a SPIR-V module says of itself, read before a driver sees it: drivers crash on modules that are broken.
//!
//! [`Module::parse`] reads any bytes and never panics. Of the code of functions it looks at the buffers that they read and write,
//! and no further: a module that is whole and still wrong there is for `spirv-val` to find.
//!
//! The binary form is that of the SPIR-V specification, sections 2.3 (layout) and 3 (numbers).

mod check;
mod error;
mod flow;
mod types;
mod words;

use std::collections::{HashMap, HashSet};

pub(crate) use check::{Descriptors, Fitted, check};
pub use error::ModuleError;

use flow::Flow;
use types::{Decorations, SPEC_ID, Type, Types};
use words::{instructions, string, version, words};

/// What a module says of itself.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Module {
    /// Its version of SPIR-V: major and minor.
    pub version: (u32, u32),
    /// The numbers of the capabilities that it asks for.
    pub capabilities: Vec<u32>,
    /// Its entry points.
    pub entries: Vec<Entry>,
    /// Its descriptor bindings, in order of set and binding.
    pub bindings: Vec<Binding>,
    /// Bytes of its push constants, if it has any.
    pub push_constants: Option<u64>,
    /// Its specialisation constants, in order of id.
    pub constants: Vec<SpecConstant>,
    /// Whether it reads the number of workgroups of its dispatch.
    pub counts_groups: bool,
}

/// An entry point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its stage, by the number of the execution model; 5 is compute.
    pub stage: u32,
    /// Invocations of a workgroup in x, y and z, if the module says it in numbers.
    pub local: Option<[u32; 3]>,
    /// Whether the size is stated by ids, which needs a feature of the device.
    pub local_by_id: bool,
    id: u32,
    interface: Vec<u32>,
}

/// A descriptor binding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binding {
    /// Its set.
    pub set: u32,
    /// Its number in the set.
    pub binding: u32,
    /// The name of the variable or of its type, if the module has kept one.
    pub name: String,
    /// What is bound there.
    pub kind: BindingKind,
    /// Bytes up to the end of the last member of known size.
    pub bytes: u64,
    /// Bytes an element of the array without length at its end, if there is one.
    pub stride: Option<u64>,
    /// Whether the code reads it.
    pub reads: bool,
    /// Whether the code writes it.
    pub writes: bool,
}

/// What is bound.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum BindingKind {
    /// A storage buffer.
    Storage,
    /// A uniform buffer.
    Uniform,
    /// An array of buffers.
    Array,
    /// An image, a sampler, or something else that is no buffer.
    Other,
}

/// A specialisation constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpecConstant {
    /// Its id, as in `layout(constant_id = 0)`.
    pub id: u32,
    /// Its bytes; 4 for a boolean.
    pub bytes: u64,
    /// Whether it is a boolean.
    pub boolean: bool,
}

impl Module {
    /// Reads a module.
    ///
    /// ```
    /// use sterna_vulkan::module::{Module, ModuleError};
    /// assert_eq!(Module::parse(b"neither fish nor fowl"), Err(ModuleError::NotSpirv));
    /// ```
    ///
    /// # Errors
    /// It is no module, it is cut off, or an instruction that matters here lacks operands.
    pub fn parse(code: &[u8]) -> Result<Self, ModuleError> {
        Self::specialised(code, |_| None)
    }

    /// Reads a module whose specialisation constants have these values; `None` leaves the module's own.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn specialised(code: &[u8], value: impl Fn(u32) -> Option<u64>) -> Result<Self, ModuleError> {
        let words = words(code)?;
        let mut read = Reader { version: version(&words), ..Reader::default() };
        for instruction in instructions(&words) {
            read.see(instruction?, &value)?;
        }
        if !read.entries.is_empty() && read.open != Some(false) {
            return Err(ModuleError::Truncated { word: words.len() });
        }
        read.end()
    }

    /// Whether its buffers come as addresses, as `sterna.glsl` has them, and not as descriptors.
    #[must_use]
    pub fn by_address(&self) -> bool {
        self.capabilities.contains(&PHYSICAL_ADDRESSES)
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    version: (u32, u32),
    capabilities: Vec<u32>,
    entries: Vec<Entry>,
    names: HashMap<u32, String>,
    marks: Decorations,
    types: Types,
    variables: Vec<(u32, u32, u32)>,
    flow: Flow,
    /// Whether a function is open; `None` before the first.
    open: Option<bool>,
}

impl Reader {
    fn see(&mut self, i: words::Instruction<'_>, value: &impl Fn(u32) -> Option<u64>) -> Result<(), ModuleError> {
        let short = |what: &str| Err(ModuleError::Broken(format!("{what} lacks operands")));
        match (i.opcode, i.operands) {
            (OP_CAPABILITY, [capability, ..]) => self.capabilities.push(*capability),
            (OP_CAPABILITY, []) => return short("OpCapability"),
            (OP_ENTRY_POINT, [stage, id, rest @ ..]) => {
                let (name, interface) = string(rest);
                let interface = interface.to_vec();
                self.entries.push(Entry { name, stage: *stage, local: None, local_by_id: false, id: *id, interface });
            }
            (OP_ENTRY_POINT, _) => return short("OpEntryPoint"),
            (OP_EXECUTION_MODE | OP_EXECUTION_MODE_ID, [id, mode @ (MODE_LOCAL_SIZE | MODE_LOCAL_SIZE_ID), size @ ..]) => {
                let &[x, y, z, ..] = size else { return short("the local size") };
                for entry in self.entries.iter_mut().filter(|e| e.id == *id) {
                    (entry.local, entry.local_by_id) = (Some([x, y, z]), *mode == MODE_LOCAL_SIZE_ID);
                }
            }
            (OP_NAME, [id, rest @ ..]) => drop(self.names.insert(*id, string(rest).0)),
            (OP_VARIABLE, [kind, id, class, ..]) if self.open.is_none() => self.variable(*kind, *id, *class),
            (OP_FUNCTION, _) => {
                self.open = Some(true);
                self.flow.see(i);
            }
            (OP_FUNCTION_END, _) => self.open = Some(false),
            _ if self.open.is_some() => self.flow.see(i),
            _ => {
                self.marks.see(i);
                self.types.see(i, &self.marks, value);
            }
        }
        Ok(())
    }

    fn variable(&mut self, kind: u32, id: u32, class: u32) {
        if let CLASS_UNIFORM_CONSTANT | CLASS_UNIFORM | CLASS_PUSH_CONSTANT | CLASS_STORAGE = class {
            if class != CLASS_PUSH_CONSTANT {
                self.flow.root(id, self.variables.len().min(flow::MOST - 1));
            }
            self.variables.push((id, kind, class));
        }
    }

    fn end(self) -> Result<Module, ModuleError> {
        let Self { version, capabilities, mut entries, names, marks, types, variables, flow, .. } = self;
        let constant = |id: &u32| types.constants.get(id).and_then(|c| u32::try_from(c.value).ok());
        // A composite that is marked so overrides what the entry points say.
        let marked = types.composites.iter().find(|c| marks.get(*c.0, BUILT_IN) == Some(BUILT_IN_WORKGROUP_SIZE));
        for entry in &mut entries {
            let ids: Option<Vec<u32>> = match (marked, entry.local) {
                (Some((_, parts)), _) => Some(parts.clone()),
                (None, Some(ids)) if entry.local_by_id => Some(ids.to_vec()),
                _ => None,
            };
            if let Some(ids) = ids {
                let size: Vec<u32> = ids.iter().map_while(constant).collect();
                entry.local = <[u32; 3]>::try_from(size).ok();
            }
        }
        // From version 1.4 on an entry point lists all that it uses.
        let listed: HashSet<u32> = entries.iter().flat_map(|e| e.interface.iter().copied()).collect();
        let used = |id: &u32| version < (1, 4) || listed.contains(id);
        let (reads, writes) = flow.end();
        let mut push_constants: Option<u64> = None;
        let mut bindings = Vec::new();
        for (n, (id, kind, class)) in variables.iter().enumerate().filter(|v| used(&v.1.0)) {
            let Some(Type::Pointer { to, .. }) = types.get(*kind) else {
                return Err(ModuleError::Broken(format!("variable %{id} is no pointer")));
            };
            let (bytes, stride, block) = match types.get(*to) {
                Some(Type::Struct { bytes, tail, buffer_block }) => (*bytes, *tail, Some(*buffer_block)),
                _ => (0, None, None),
            };
            if *class == CLASS_PUSH_CONSTANT {
                push_constants = Some(push_constants.unwrap_or(0).max(bytes));
                continue;
            }
            let array = match types.get(*to) {
                Some(Type::RuntimeArray { .. }) => true,
                Some(Type::Plain { shape, .. }) => *shape == types::Shape::Array,
                _ => false,
            };
            let kind = match (class, block) {
                (&CLASS_STORAGE, Some(_)) | (&CLASS_UNIFORM, Some(true)) => BindingKind::Storage,
                (&CLASS_UNIFORM, Some(false)) => BindingKind::Uniform,
                _ if array && *class != CLASS_UNIFORM_CONSTANT => BindingKind::Array,
                _ => BindingKind::Other,
            };
            let named = |id: &u32| names.get(id).filter(|n| !n.is_empty()).cloned();
            let bit = 1 << n.min(flow::MOST - 1);
            bindings.push(Binding {
                set: marks.get(*id, DESCRIPTOR_SET).unwrap_or(0),
                binding: marks.get(*id, BINDING).unwrap_or(0),
                name: named(id).or_else(|| named(to)).unwrap_or_default(),
                kind,
                bytes,
                stride,
                reads: reads & bit != 0,
                writes: writes & bit != 0,
            });
        }
        bindings.sort_by_key(|b| (b.set, b.binding));
        let specials = marks.of.iter().filter(|m| m.0.1 == SPEC_ID);
        let mut constants: Vec<SpecConstant> = specials
            .filter_map(|((id, _), number)| types.constants.get(id).map(|c| (*number, c)))
            .map(|(id, c)| SpecConstant { id, bytes: c.bytes, boolean: c.boolean })
            .collect();
        constants.sort_by_key(|c| (c.id, c.bytes, c.boolean));
        constants.dedup_by_key(|c| c.id);
        let counts_groups = marks.of.iter().any(|m| m.0.1 == BUILT_IN && *m.1 == BUILT_IN_NUM_WORKGROUPS);
        Ok(Module { version, capabilities, entries, bindings, push_constants, constants, counts_groups })
    }
}

const OP_NAME: u32 = 5;
const OP_ENTRY_POINT: u32 = 15;
const OP_EXECUTION_MODE: u32 = 16;
const OP_CAPABILITY: u32 = 17;
const OP_FUNCTION: u32 = 54;
const OP_FUNCTION_END: u32 = 56;
const OP_VARIABLE: u32 = 59;
const OP_EXECUTION_MODE_ID: u32 = 331;
const MODE_LOCAL_SIZE: u32 = 17;
const MODE_LOCAL_SIZE_ID: u32 = 38;
const CLASS_UNIFORM_CONSTANT: u32 = 0;
const CLASS_UNIFORM: u32 = 2;
const CLASS_PUSH_CONSTANT: u32 = 9;
const CLASS_STORAGE: u32 = 12;
const BUILT_IN: u32 = 11;
const BUILT_IN_NUM_WORKGROUPS: u32 = 24;
const BUILT_IN_WORKGROUP_SIZE: u32 = 25;
const BINDING: u32 = 33;
const DESCRIPTOR_SET: u32 = 34;
const PHYSICAL_ADDRESSES: u32 = 5347;
