//! Types and constants of a module, as far as sizes need them. Ids are defined before they are used, so that no cycle is followed.

use std::collections::HashMap;

use super::words::Instruction;

/// A type.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Type {
    /// A number, vector, matrix, array of known length, or pointer to a buffer.
    Plain { bytes: u64, shape: Shape },
    /// An array that goes on to the end of its buffer.
    RuntimeArray { stride: u64 },
    /// A struct: bytes up to the end of its last member, and the stride of a runtime array at its end.
    Struct { bytes: u64, tail: Option<u64>, buffer_block: bool },
    /// A pointer to a variable.
    Pointer { class: u32, to: u32 },
    /// Something that cannot be in a buffer: an image, a sampler.
    Opaque,
}

/// What a plain type is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    Bool,
    Number,
    Vector { count: u64, component: u64 },
    Matrix { columns: u64, rows: u64, component: u64 },
    Array,
}

/// A constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Constant {
    pub(super) value: u64,
    /// Bytes; 4 for a boolean.
    pub(super) bytes: u64,
    pub(super) boolean: bool,
}

/// Decorations of ids and of members.
#[derive(Debug, Default)]
pub(super) struct Decorations {
    pub(super) of: HashMap<(u32, u32), u32>,
    of_member: HashMap<(u32, u32, u32), u32>,
}

impl Decorations {
    pub(super) fn see(&mut self, i: Instruction<'_>) {
        match (i.opcode, i.operands) {
            (OP_DECORATE, [id, decoration, rest @ ..]) => {
                self.of.insert((*id, *decoration), rest.first().copied().unwrap_or(0));
            }
            (OP_MEMBER_DECORATE, [id, member, decoration, rest @ ..]) => {
                self.of_member.insert((*id, *member, *decoration), rest.first().copied().unwrap_or(0));
            }
            _ => {}
        }
    }

    pub(super) fn get(&self, id: u32, decoration: u32) -> Option<u32> {
        self.of.get(&(id, decoration)).copied()
    }

    fn member(&self, id: u32, member: usize, decoration: u32) -> Option<u64> {
        self.of_member.get(&(id, member as u32, decoration)).map(|v| u64::from(*v))
    }
}

/// The types and constants that have been defined so far.
#[derive(Debug, Default)]
pub(super) struct Types {
    types: HashMap<u32, Type>,
    pub(super) constants: HashMap<u32, Constant>,
    pub(super) composites: HashMap<u32, Vec<u32>>,
}

impl Types {
    pub(super) fn get(&self, id: u32) -> Option<&Type> {
        self.types.get(&id)
    }

    fn bytes(&self, id: u32) -> u64 {
        match self.types.get(&id) {
            Some(Type::Plain { bytes, .. } | Type::Struct { bytes, .. }) => *bytes,
            _ => 0,
        }
    }

    /// Takes the definition of a type or a constant into account; `special` gives the value of a specialisation constant.
    pub(super) fn see(&mut self, i: Instruction<'_>, marks: &Decorations, special: impl Fn(u32) -> Option<u64>) {
        let plain = |bytes, shape| Some(Type::Plain { bytes, shape });
        let made = match (i.opcode, i.operands) {
            (OP_TYPE_BOOL, [..]) => plain(4, Shape::Bool),
            (OP_TYPE_INT | OP_TYPE_FLOAT, [_, bits, ..]) => plain(u64::from(*bits).div_ceil(8), Shape::Number),
            (OP_TYPE_VECTOR, [_, component, count, ..]) => {
                let (component, count) = (self.bytes(*component), u64::from(*count));
                plain(component.saturating_mul(count), Shape::Vector { count, component })
            }
            (OP_TYPE_MATRIX, [_, column, columns, ..]) => match self.get(*column) {
                Some(Type::Plain { bytes, shape: Shape::Vector { count, component } }) => {
                    let (columns, rows, component) = (u64::from(*columns), *count, *component);
                    plain(bytes.saturating_mul(columns), Shape::Matrix { columns, rows, component })
                }
                _ => Some(Type::Opaque),
            },
            (OP_TYPE_ARRAY, [id, element, length, ..]) => {
                let (bytes, count) = (self.bytes(*element), self.constants.get(length).map_or(0, |c| c.value));
                let stride = marks.get(*id, ARRAY_STRIDE).map_or(bytes, u64::from);
                plain(end_of(stride, count, bytes), Shape::Array)
            }
            (OP_TYPE_RUNTIME_ARRAY, [id, element, ..]) => {
                let stride = marks.get(*id, ARRAY_STRIDE).map_or_else(|| self.bytes(*element), u64::from);
                Some(Type::RuntimeArray { stride })
            }
            (OP_TYPE_STRUCT, [id, members @ ..]) => Some(self.structure(*id, members, marks)),
            // A pointer to a buffer may be a member of a struct; what it points to is not looked at.
            (OP_TYPE_POINTER, [_, CLASS_PHYSICAL, ..]) => plain(8, Shape::Number),
            (OP_TYPE_FORWARD_POINTER, [_, CLASS_PHYSICAL, ..]) => plain(8, Shape::Number),
            (OP_TYPE_POINTER, [_, class, to, ..]) => Some(Type::Pointer { class: *class, to: *to }),
            (OP_TYPE_IMAGE..=OP_TYPE_SAMPLED_IMAGE, [..]) => Some(Type::Opaque),
            _ => None,
        };
        if let (Some(made), Some(id)) = (made, i.operands.first()) {
            self.types.insert(*id, made);
            return;
        }
        let (kind, id, value) = match (i.opcode, i.operands) {
            (OP_CONSTANT | OP_SPEC_CONSTANT, [kind, id, low, rest @ ..]) => {
                (*kind, *id, u64::from(*low) | u64::from(rest.first().copied().unwrap_or(0)) << 32)
            }
            (OP_CONSTANT_TRUE | OP_SPEC_CONSTANT_TRUE, [kind, id, ..]) => (*kind, *id, 1),
            (OP_CONSTANT_FALSE | OP_SPEC_CONSTANT_FALSE, [kind, id, ..]) => (*kind, *id, 0),
            (OP_CONSTANT_COMPOSITE | OP_SPEC_CONSTANT_COMPOSITE, [_, id, parts @ ..]) => {
                self.composites.insert(*id, parts.to_vec());
                return;
            }
            _ => return,
        };
        let value = marks.get(id, SPEC_ID).and_then(special).unwrap_or(value);
        let boolean = matches!(self.get(kind), Some(Type::Plain { shape: Shape::Bool, .. }));
        self.constants.insert(id, Constant { value, bytes: self.bytes(kind), boolean });
    }

    fn structure(&self, id: u32, members: &[u32], marks: &Decorations) -> Type {
        let (mut end, mut tail) = (0_u64, None);
        for (n, member) in members.iter().enumerate() {
            let at = marks.member(id, n, OFFSET).unwrap_or(end);
            let stride = marks.member(id, n, MATRIX_STRIDE);
            let bytes = match (self.get(*member), stride) {
                (Some(Type::RuntimeArray { stride }), _) => {
                    tail = Some(*stride);
                    0
                }
                (Some(Type::Plain { shape: Shape::Matrix { columns, rows, component }, .. }), Some(stride)) => {
                    let by_row = marks.member(id, n, ROW_MAJOR).is_some();
                    let (lines, along) = if by_row { (rows, columns) } else { (columns, rows) };
                    end_of(stride, *lines, along.saturating_mul(*component))
                }
                _ => self.bytes(*member),
            };
            end = end.max(at.saturating_add(bytes));
        }
        Type::Struct { bytes: end, tail, buffer_block: marks.get(id, BUFFER_BLOCK).is_some() }
    }
}

/// Where the last of `count` things that lie `stride` apart ends.
fn end_of(stride: u64, count: u64, bytes: u64) -> u64 {
    count.checked_sub(1).map_or(0, |n| stride.saturating_mul(n).saturating_add(bytes))
}

const OP_TYPE_BOOL: u32 = 20;
const OP_TYPE_INT: u32 = 21;
const OP_TYPE_FLOAT: u32 = 22;
const OP_TYPE_VECTOR: u32 = 23;
const OP_TYPE_MATRIX: u32 = 24;
const OP_TYPE_IMAGE: u32 = 25;
const OP_TYPE_SAMPLED_IMAGE: u32 = 27;
const OP_TYPE_ARRAY: u32 = 28;
const OP_TYPE_RUNTIME_ARRAY: u32 = 29;
const OP_TYPE_STRUCT: u32 = 30;
const OP_TYPE_POINTER: u32 = 32;
const OP_TYPE_FORWARD_POINTER: u32 = 39;
const OP_CONSTANT_TRUE: u32 = 41;
const OP_CONSTANT_FALSE: u32 = 42;
const OP_CONSTANT: u32 = 43;
const OP_CONSTANT_COMPOSITE: u32 = 44;
const OP_SPEC_CONSTANT_TRUE: u32 = 48;
const OP_SPEC_CONSTANT_FALSE: u32 = 49;
const OP_SPEC_CONSTANT: u32 = 50;
const OP_SPEC_CONSTANT_COMPOSITE: u32 = 51;
const OP_DECORATE: u32 = 71;
const OP_MEMBER_DECORATE: u32 = 72;
const CLASS_PHYSICAL: u32 = 5349;
pub(super) const SPEC_ID: u32 = 1;
const BUFFER_BLOCK: u32 = 3;
const ROW_MAJOR: u32 = 4;
const ARRAY_STRIDE: u32 = 6;
const MATRIX_STRIDE: u32 = 7;
const OFFSET: u32 = 35;
