//! Which buffers a module reads and writes: where pointers to its variables go.

use std::collections::HashMap;

use super::words::Instruction;

/// Variables by number, as bits.
pub(super) type Set = u64;

/// More variables than this are not told apart.
pub(super) const MOST: usize = 64;

/// Where pointers go, collected instruction by instruction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// From an id to the ids that are pointers into the same variables.
    edges: HashMap<u32, Vec<u32>>,
    roots: HashMap<u32, Set>,
    reads: Vec<u32>,
    writes: Vec<u32>,
    calls: Vec<(u32, u32, Vec<u32>)>,
    parameters: HashMap<u32, Vec<u32>>,
    function: u32,
}

impl Flow {
    /// Variable number `n` has this id.
    pub(super) fn root(&mut self, id: u32, n: usize) {
        *self.roots.entry(id).or_default() |= 1 << n;
    }

    fn edge(&mut self, from: u32, to: u32) {
        self.edges.entry(from).or_default().push(to);
    }

    /// Takes an instruction of a function's body into account.
    pub(super) fn see(&mut self, i: Instruction<'_>) {
        match (i.opcode, i.operands) {
            (OP_FUNCTION, [_, id, ..]) => self.function = *id,
            (OP_FUNCTION_PARAMETER, [_, id, ..]) => self.parameters.entry(self.function).or_default().push(*id),
            (OP_FUNCTION_CALL, [_, result, function, args @ ..]) => self.calls.push((*function, *result, args.to_vec())),
            (OP_RETURN_VALUE, [value, ..]) => self.edge(*value, self.function),
            (
                OP_ACCESS_CHAIN..=OP_PTR_ACCESS_CHAIN | OP_IN_BOUNDS_PTR_ACCESS_CHAIN | OP_COPY_OBJECT,
                [_, result, base, ..],
            ) => {
                self.edge(*base, *result);
            }
            (OP_SELECT, [_, result, _, a, b, ..]) => {
                self.edge(*a, *result);
                self.edge(*b, *result);
            }
            (OP_PHI, [_, result, sources @ ..]) => sources.iter().step_by(2).for_each(|s| self.edge(*s, *result)),
            (OP_LOAD | OP_ATOMIC_LOAD, [_, _, pointer, ..]) => self.reads.push(*pointer),
            (OP_STORE | OP_ATOMIC_STORE, [pointer, ..]) => self.writes.push(*pointer),
            (OP_COPY_MEMORY | OP_COPY_MEMORY_SIZED, [to, from, ..]) => {
                self.writes.push(*to);
                self.reads.push(*from);
            }
            (OP_ATOMIC_EXCHANGE..=OP_ATOMIC_XOR | OP_ATOMIC_FMIN | OP_ATOMIC_FMAX | OP_ATOMIC_FADD, [_, _, pointer, ..]) => {
                self.reads.push(*pointer);
                self.writes.push(*pointer);
            }
            // Some of these store one of their results through a pointer.
            (OP_EXT_INST, [_, _, _, _, operands @ ..]) => self.writes.extend(operands),
            _ => {}
        }
    }

    /// The variables that are read, and those that are written.
    pub(super) fn end(mut self) -> (Set, Set) {
        let parameters = std::mem::take(&mut self.parameters);
        for (function, result, args) in std::mem::take(&mut self.calls) {
            let into = parameters.get(&function).into_iter().flatten();
            args.iter().zip(into).for_each(|(a, p)| self.edge(*a, *p));
            // The function's own id stands for what it returns.
            self.edge(function, result);
        }
        // Each id is looked at again at most once for every variable that newly reaches it.
        let mut open: Vec<u32> = self.roots.keys().copied().collect();
        while let Some(id) = open.pop() {
            let from = self.roots.get(&id).copied().unwrap_or(0);
            for to in self.edges.get(&id).into_iter().flatten() {
                let there = self.roots.entry(*to).or_default();
                if *there | from != *there {
                    *there |= from;
                    open.push(*to);
                }
            }
        }
        let all = |ids: &[u32]| ids.iter().filter_map(|id| self.roots.get(id)).fold(0, |a, b| a | b);
        (all(&self.reads), all(&self.writes))
    }
}

const OP_EXT_INST: u32 = 12;
const OP_FUNCTION: u32 = 54;
const OP_FUNCTION_PARAMETER: u32 = 55;
const OP_FUNCTION_CALL: u32 = 57;
const OP_LOAD: u32 = 61;
const OP_STORE: u32 = 62;
const OP_COPY_MEMORY: u32 = 63;
const OP_COPY_MEMORY_SIZED: u32 = 64;
const OP_ACCESS_CHAIN: u32 = 65;
const OP_PTR_ACCESS_CHAIN: u32 = 67;
const OP_IN_BOUNDS_PTR_ACCESS_CHAIN: u32 = 70;
const OP_COPY_OBJECT: u32 = 83;
const OP_SELECT: u32 = 169;
const OP_ATOMIC_LOAD: u32 = 227;
const OP_ATOMIC_STORE: u32 = 228;
const OP_ATOMIC_EXCHANGE: u32 = 229;
const OP_ATOMIC_XOR: u32 = 242;
const OP_PHI: u32 = 245;
const OP_RETURN_VALUE: u32 = 254;
const OP_ATOMIC_FMIN: u32 = 5614;
const OP_ATOMIC_FMAX: u32 = 5615;
const OP_ATOMIC_FADD: u32 = 6035;
