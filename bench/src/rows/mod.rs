//! The rows of the table, one file each.

mod allocation;
mod backlog;
mod bulk;
mod file_fault;
mod futures;
mod host_fault;
mod idle;
mod indexing;
mod launch;
mod one_element;
mod oversubscription;
mod strangers;
mod vulkan;
mod vulkan_bulk;
mod vulkan_part;

use anyhow::Result;

use crate::table::Sheet;

/// A row: a question and the program that answers it, run in a process of its own.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) question: &'static str,
    /// Host-fault mechanisms to force, one run each; empty for the one that this system gives.
    pub(crate) variants: &'static [&'static str],
    pub(crate) run: fn(&mut Sheet) -> Result<()>,
}

/// Every row, in the order of the table.
pub(crate) const ALL: [Row; 15] = [
    indexing::ROW,
    host_fault::ROW,
    file_fault::ROW,
    bulk::ROW,
    launch::ROW,
    futures::ROW,
    one_element::ROW,
    allocation::ROW,
    oversubscription::ROW,
    strangers::ROW,
    backlog::ROW,
    vulkan::ROW,
    vulkan_bulk::ROW,
    vulkan_part::ROW,
    idle::ROW,
];

pub(crate) fn by_name(name: &str) -> Option<&'static Row> {
    const { &ALL }.iter().find(|r| r.name == name)
}
